"""The digest of an index, and the index built anew from its topics."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.errors import NotReadyError, SettingsError
from pipeline.types import Attribute, CameraCoverage, Embedding, Erasure, Filter, Gap, Reembedding, Tracklet
from services import wire
from services.adapters.faiss_gallery import FaissGallery
from services.adapters.sqlite_broker import SqliteBroker
from services.cli.app import app
from services.index import IndexHandler, index_worker
from services.replay import Digest, index_digest, replay, replay_index
from services.settings import Settings, StorageSettings
from services.topics import COVERAGE, ERASURES, REEMBEDDINGS, TRACKLETS, create_all
from tests.fakes import NOON_NS, InMemoryGallery, S, a_tracklet, embedding

Live = Callable[..., Digest]


def people(count: int = 7) -> list[Tracklet]:
    """People of two cameras, each with a body and a text vector."""
    return [
        a_tracklet(
            f"person-{number:02}",
            embedding("body", 1, number, 2, 3, space="fake-body@1"),
            embedding("text", number, 1, 0, 5, space="fake-text@1"),
            camera_id=("north", "south")[number % 2],
            started_at_ns=NOON_NS + number * S,
            attributes=(Attribute("upper colour", "red", 0.25),),
        )
        for number in range(count)
    ]


ACCOUNTS = (
    CameraCoverage("north", NOON_NS, NOON_NS + 9 * S, 90, 80, 7, 3, (Gap(NOON_NS + S, NOON_NS + 2 * S, "no frames"),)),
    CameraCoverage("south", NOON_NS, NOON_NS + 9 * S, 90, 90),
)


def flipped(tracklet: Tracklet) -> Tracklet:
    """The same but for the last bit of one number of one vector, as the index keeps it."""
    first, *others = tracklet.embeddings
    halves = first.vector.astype(np.float16)
    bits = halves.view(np.uint16)
    bits[-1] ^= 1
    return replace(tracklet, embeddings=(replace(first, vector=halves.astype(np.float32)), *others))


@pytest.fixture
def digest_of(tmp_path: Path) -> Callable[..., Digest]:
    """The digest of an index that was given these batches, one after another."""
    made = iter(range(1_000))

    def build(*batches: Sequence[Tracklet], accounts: Sequence[CameraCoverage] = ACCOUNTS, segment_size: int = 100) -> Digest:
        with closing(FaissGallery(tmp_path / f"index-{next(made)}", segment_size=segment_size)) as gallery:
            for batch in batches:
                gallery.upsert(batch)
            for account in accounts:
                gallery.record_coverage(account)
            return index_digest(gallery)

    return build


# -------------------------------------------------------------------------------------------------- digest


def test_a_digest_counts_what_it_covers(digest_of: Callable[..., Digest]) -> None:
    made = digest_of(people())
    assert (made.tracklets, made.vectors, made.coverage, len(made.sha256)) == (7, 14, 2, 64)
    assert made.text().startswith(f"{made.sha256}  7 tracklets")


def test_order_segments_and_duplicates_do_not_matter(digest_of: Callable[..., Digest]) -> None:
    plain = digest_of(people())
    assert digest_of(people()[::-1], accounts=ACCOUNTS[::-1]) == plain
    assert digest_of(people()[:4], people()[4:], segment_size=2) == plain
    assert digest_of(people(), people()[2:5], people(), accounts=ACCOUNTS * 2, segment_size=3) == plain
    second = [replace(each, revision=2) for each in people()]
    assert digest_of(second) == digest_of(people(), second) == digest_of(second, people())


@pytest.mark.parametrize(
    "change",
    [
        flipped,
        lambda each: replace(each, revision=2),
        lambda each: replace(each, ended_at_ns=each.ended_at_ns + 1),
        lambda each: replace(each, is_closed=True),
        lambda each: replace(each, zones=("door",)),
        lambda each: replace(each, embeddings=each.embeddings[:1]),
        lambda each: replace(each, embeddings=(replace(each.embeddings[0], quality=0.81), each.embeddings[1])),
        lambda each: replace(each, attributes=(Attribute("upper colour", "blue", 0.25),)),
        lambda each: replace(each, crops=(replace(each.crops[0], captured_at_ns=each.crops[0].captured_at_ns + 1),)),
        lambda each: replace(each, xyxy=each.xyxy + np.float32(2**-18)),
    ],
    ids=["bit", "revision", "time", "closed", "zone", "vector", "quality", "attribute", "crop", "box"],
)
def test_any_change_of_one_tracklet_shows(digest_of: Callable[..., Digest], change: Callable[[Tracklet], Tracklet]) -> None:
    first, *others = people()
    assert digest_of([first, *others]).sha256 != digest_of([change(first), *others]).sha256


@pytest.mark.parametrize(
    "accounts",
    [ACCOUNTS[:1], (replace(ACCOUNTS[0], seen=91), ACCOUNTS[1]), (replace(ACCOUNTS[0], gaps=()), ACCOUNTS[1])],
    ids=["missing", "count", "gap"],
)
def test_any_change_of_one_coverage_account_shows(digest_of: Callable[..., Digest], accounts: Sequence[CameraCoverage]) -> None:
    assert digest_of(people()).sha256 != digest_of(people(), accounts=accounts).sha256


class BusyGallery(InMemoryGallery):
    """A gallery that somebody writes to the first ``changes`` times that it is read."""

    changes = 0

    def tracklets(self, tracklet_ids: Sequence[str]) -> list[Tracklet]:
        if self.changes:
            self.changes -= 1
            self.upsert([a_tracklet(f"late-{self.changes}")])
        return super().tracklets(tracklet_ids)


def test_an_index_that_changes_while_it_is_read_is_read_again() -> None:
    gallery = BusyGallery(*people())
    gallery.changes = 1
    assert index_digest(gallery) == index_digest(InMemoryGallery(*people(), a_tracklet("late-0")))


def test_an_index_that_never_rests_has_no_digest() -> None:
    gallery = BusyGallery(*people())
    gallery.changes = 99
    with pytest.raises(NotReadyError, match="changed each of the 3 times"):
        index_digest(gallery)


# -------------------------------------------------------------------------------------------------- replay


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(storage=StorageSettings(data_folder=tmp_path / "data"))


@pytest.fixture
def broker(settings: Settings) -> Iterator[SqliteBroker]:
    settings.storage.data_folder.mkdir()
    with SqliteBroker(settings.storage.data_folder / "log.sqlite", session_timeout_s=1.0) as opened:
        create_all(opened)
        yield opened


def publish(broker: SqliteBroker, *values: Tracklet | CameraCoverage | Erasure | Reembedding) -> None:
    for value in values:
        if isinstance(value, Erasure | Reembedding):
            broker.produce(ERASURES if isinstance(value, Erasure) else REEMBEDDINGS, wire.encode(value), value.tracklet_id.encode())
        else:
            broker.produce(TRACKLETS if isinstance(value, Tracklet) else COVERAGE, wire.encode(value), value.camera_id.encode())
    broker.flush()


@pytest.fixture
def live(broker: SqliteBroker, settings: Settings) -> Callable[[], Digest]:
    """The digest of the index of this machine, brought up to the end of its topics by its worker."""

    def work() -> Digest:
        with closing(FaissGallery(settings.storage.data_folder / "index")) as gallery:
            index_worker(broker, IndexHandler(gallery), batch=3).run(until_drained=True)
            return index_digest(gallery)

    return work


def test_an_index_built_anew_equals_the_live_one(broker: SqliteBroker, live: Live, settings: Settings, tmp_path: Path) -> None:
    publish(broker, *people(), replace(ACCOUNTS[0], seen=1), *ACCOUNTS)
    live()
    publish(broker, *(replace(each, revision=2, is_closed=True) for each in people()[:5]), *people())
    said: list[str] = []
    made = replay_index(settings, tmp_path / "anew", said.append)
    assert made.digest == live()
    assert (made.digest.tracklets, made.digest.coverage) == (7, 2)
    assert (made.erased, made.bad, made.gone) == (0, 0, 0)
    assert said == ["tracklets: 19 messages", "reembeddings: 0 messages", "coverage: 3 messages"]
    assert [path.name for path in (tmp_path / "anew").iterdir()] == ["index"]
    with closing(FaissGallery(tmp_path / "anew" / "index", read_only=True)) as gallery:
        body = people()[0].embeddings[0]
        assert gallery.search(body, Filter(), 1)[0].tracklet_id == "person-00"


def test_what_another_model_made_is_built_anew_too(broker: SqliteBroker, live: Live, settings: Settings, tmp_path: Path) -> None:
    new = Embedding("body", "new-body@2", np.arange(1, 5, dtype=np.float32), 0.5)
    publish(broker, *people(), *ACCOUNTS)
    live()
    publish(broker, *(Reembedding(each.tracklet_id, each.revision, new.space, (new,)) for each in people()[:4]))
    publish(broker, Reembedding("person-05", 77, new.space, (new,)), replace(people()[1], revision=2))
    made = replay_index(settings, tmp_path / "anew")
    assert made.digest == live()
    with closing(FaissGallery(tmp_path / "anew" / "index", read_only=True)) as gallery:
        assert gallery.statistics().by_modality["body"][new.space] == 3, "a later revision and another one do without"


def test_who_was_erased_stays_away(broker: SqliteBroker, live: Live, settings: Settings, tmp_path: Path) -> None:
    publish(broker, *people(), *ACCOUNTS)
    live()
    publish(broker, Erasure("person-03", NOON_NS), replace(people()[3], revision=2))
    made = replay_index(settings, tmp_path / "anew")
    assert made.digest == live()
    assert (made.digest.tracklets, made.erased) == (6, 1)
    assert b"person-03" not in b"".join(path.read_bytes() for path in (tmp_path / "anew").rglob("*") if path.is_file())


def test_who_is_erased_while_we_read_stays_away_too(broker: SqliteBroker, settings: Settings, tmp_path: Path) -> None:
    publish(broker, *people())

    def erase_after_the_tracklets(text: str) -> None:
        if text.startswith(TRACKLETS):
            publish(broker, Erasure("person-03", NOON_NS))

    made = replay_index(settings, tmp_path / "anew", erase_after_the_tracklets)
    assert (made.digest.tracklets, made.erased) == (6, 1)


def test_the_crops_of_the_erased_are_left_to_the_live_worker(broker: SqliteBroker, settings: Settings, tmp_path: Path) -> None:
    crop = settings.storage.data_folder / "crops" / "kept.jpg"
    crop.parent.mkdir()
    crop.write_bytes(b"picture")
    publish(broker, *people(), Erasure("person-03", NOON_NS))
    replay_index(settings, tmp_path / "anew")
    assert crop.exists()


def test_messages_that_cannot_be_worked_are_left_out_and_counted(
    broker: SqliteBroker, live: Live, settings: Settings, tmp_path: Path
) -> None:
    bad_vector = a_tracklet("bad", embedding("body", 1, 0, space="fake-body@1"))
    publish(broker, *people(), *ACCOUNTS)
    broker.produce(TRACKLETS, b"not ours", b"north")
    broker.produce(TRACKLETS, wire.encode(ACCOUNTS[0]), b"north")
    publish(broker, bad_vector)
    made = replay_index(settings, tmp_path / "anew")
    assert made.bad == 3
    assert made.digest == live()


def test_what_the_topics_no_longer_hold_is_counted(settings: Settings, tmp_path: Path) -> None:
    now_s = [1_000.0]
    settings.storage.data_folder.mkdir()
    with SqliteBroker(settings.storage.data_folder / "log.sqlite", clock=lambda: now_s[0]) as broker:
        create_all(broker)
        publish(broker, *people(4), ACCOUNTS[0])
        now_s[0] += 8 * 86_400
        publish(broker, *people()[4:])
        assert broker.maintain() == 5
        made = replay(broker, InMemoryGallery())
    assert (made.gone, made.digest.tracklets, made.digest.coverage) == (5, 3, 0)


def test_a_folder_with_something_in_it_is_refused(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").touch()
    for place in (tmp_path / "full", tmp_path / "full" / "letter"):
        with pytest.raises(SettingsError, match="must name a folder that is empty"):
            replay_index(settings, place)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["letter"]


def test_a_replay_that_breaks_off_leaves_nothing(broker: SqliteBroker, settings: Settings, tmp_path: Path) -> None:
    publish(broker, *people())

    def break_off(text: str) -> None:
        raise NotReadyError("the broker went away")

    with pytest.raises(NotReadyError, match="went away"):
        replay_index(settings, tmp_path / "anew", break_off)
    assert list((tmp_path / "anew").iterdir()) == []
    assert replay_index(settings, tmp_path / "anew").digest.tracklets == 7


# ------------------------------------------------------------------------------------------------ commands


def sightline(data: Path, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["--data", str(data), "index", *words, "--json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


def test_the_commands_show_both_digests(broker: SqliteBroker, live: Live, settings: Settings, tmp_path: Path) -> None:
    publish(broker, *people(), *ACCOUNTS)
    expected = live().as_dict()
    data, anew = settings.storage.data_folder, tmp_path / "anew"
    assert json.loads(sightline(data, "digest")[1]) == expected
    assert json.loads(sightline(data, "replay", "--into", str(anew))[1]) == expected | {"erased": 0, "bad": 0, "gone": 0}
    assert json.loads(sightline(anew, "digest")[1]) == expected


def test_a_digest_needs_an_index(tmp_path: Path) -> None:
    with pytest.raises(NotReadyError, match="not there yet"):
        sightline(tmp_path / "nothing", "digest")
