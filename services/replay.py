"""An index built anew from the topics, and the digest that shows it equal to the one that was built live."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import BadInputError, NotReadyError, ReadOnlyStorageError, SettingsError
from pipeline.ports import Broker, Gallery, Message, TopicPartition
from pipeline.types import CameraCoverage, Reembedding, Tracklet
from pipeline.types.query import EVERYTHING
from services import wire
from services.index import BATCH, IndexHandler, erased_ids
from services.reading import in_pages, until_end
from services.settings import Settings
from services.topics import COVERAGE, REEMBEDDINGS, TRACKLETS
from services.worker import Received, where

log = logging.getLogger("sightline.replay")

TRIES = 3
SAY_EVERY_S = 1.0
UNFINISHED = "unfinished"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Digest:
    """What an index holds, in one line. sha256: over every tracklet, its vectors bit by bit, and every coverage account."""

    sha256: str
    tracklets: int
    vectors: int
    coverage: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        return f"{self.sha256}  {self.tracklets} tracklets, {self.vectors} vectors, {self.coverage} coverage accounts"


def index_digest(gallery: Gallery) -> Digest:
    """The digest of an index: equal for equal content, however it is cut into segments and in whatever order it arrived.

    Raises NotReadyError when a writer changes the index whenever it is read: such a digest would be of no moment at all.
    """
    for _ in range(TRIES):
        before = _held(gallery)
        digest = _digest_of(gallery, *before)
        if _held(gallery) == before:
            return digest
    raise NotReadyError(f"the index changed each of the {TRIES} times that it was read: ask again when its worker is stopped or idle")


def _held(gallery: Gallery) -> tuple[dict[str, int], tuple[CameraCoverage, ...]]:
    """tracklet id -> revision, and the coverage accounts."""
    return {each.tracklet_id: each.revision for each in gallery.scan(EVERYTHING)}, gallery.coverage(EVERYTHING)


def _digest_of(gallery: Gallery, revisions: dict[str, int], accounts: Sequence[CameraCoverage]) -> Digest:
    sha256, vectors = hashlib.sha256(), 0
    for page in in_pages(gallery, sorted(revisions)):
        for tracklet in page:
            vectors += len(tracklet.embeddings)
            _add(sha256, wire.encode(tracklet, "<f4"))
    for account in sorted(accounts, key=lambda each: (each.camera_id, each.from_ns)):
        _add(sha256, wire.encode(account))
    return Digest(sha256.hexdigest(), len(revisions), vectors, len(accounts))


def _add(sha256: Any, piece: bytes) -> None:
    """A piece and before it its length, so that no two lists of pieces read the same."""
    sha256.update(len(piece).to_bytes(8, "little"))
    sha256.update(piece)


# -------------------------------------------------------------------------------------------------- replay


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of a replay.

    erased: ids that were kept out; bad: messages that cannot be worked; gone: messages that their topics hold no more, so that an index
    built while they were there may hold more.
    """

    digest: Digest
    erased: int
    bad: int
    gone: int

    def as_dict(self) -> dict[str, Any]:
        return {**self.digest.as_dict(), "erased": self.erased, "bad": self.bad, "gone": self.gone}


def replay_index(settings: Settings, into: Path, say: Say = lambda text: None) -> Replay:
    """Build the index anew from the start of its topics, in ``into``/index: ``into`` can be used as a data folder once it is done.

    Raises SettingsError when ``into`` holds anything; one that was broken off leaves it empty, or an ``unfinished`` that says so.
    """
    from services.wiring import make_gallery, open_broker

    _must_be_empty(into)
    unfinished = into / UNFINISHED
    storage = settings.storage.model_copy(update={"data_folder": unfinished})
    with open_broker(settings) as broker:
        try:
            with closing(make_gallery(settings.model_copy(update={"storage": storage}))) as gallery:
                made = replay(broker, gallery, say)
            (unfinished / "index").rename(into / "index")
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return made


def _must_be_empty(folder: Path) -> None:
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise SettingsError(f"--into must name a folder that is empty or not there yet, got {folder}: choose another")
    except PermissionError:
        raise ReadOnlyStorageError(f"--into must name a folder that can be written, got {folder}: change its owner") from None


def replay(broker: Broker, gallery: Gallery, say: Say = lambda text: None) -> Replay:
    """Everything on the topics of the index, to their end as it is now, into ``gallery``; who was erased stays away."""
    erased = erased_ids(broker)
    handler = IndexHandler(gallery, erased=erased)
    kinds: dict[str, type[Any]] = {TRACKLETS: Tracklet, REEMBEDDINGS: Reembedding, COVERAGE: CameraCoverage}  # vectors need their tracklets
    counts = [_replay_topic(broker, handler, topic, kind, say) for topic, kind in kinds.items()]
    late = erased_ids(broker) - erased
    if late:  # erased while we read
        gallery.delete(sorted(late))
    return Replay(index_digest(gallery), len(erased | late), *(sum(column) for column in zip(*counts, strict=True)))


def _replay_topic(broker: Broker, handler: IndexHandler, topic: str, kind: type[Any], say: Say) -> tuple[int, int]:
    """Handle all messages of a topic; gives how many can never work and how many are gone."""
    ends = broker.end_offsets(topic)
    firsts: dict[TopicPartition, int] = {}
    read = bad = 0
    said_at = time.monotonic()
    batch: list[Received] = []
    with closing(broker.reader([topic])) as reader:
        for message in until_end(broker, reader, topic):
            firsts.setdefault(TopicPartition(topic, message.partition), message.offset)
            read += 1
            try:
                batch.append(Received(message, None if message.value is None else wire.decode(kind, message.value)))
            except BadInputError as error:
                bad += 1
                _leave_out(message, error)
            if len(batch) == BATCH:
                bad += _handle(handler, batch)
                batch = []
            if time.monotonic() - said_at > SAY_EVERY_S:
                said_at = time.monotonic()
                say(f"{topic}: {read} messages of {sum(ends.values()) - sum(firsts.values())}")
    bad += _handle(handler, batch)
    gone = sum(firsts.get(partition, end) for partition, end in ends.items())
    say(f"{topic}: {read} messages, {gone} before them are gone" if gone else f"{topic}: {read} messages")
    return bad, gone


def _handle(handler: IndexHandler, batch: Sequence[Received]) -> int:
    """Handle a batch, one by one where one of it is bad; gives how many are."""
    try:
        handler.handle(batch)
    except BadInputError as error:
        if len(batch) > 1:
            return sum(_handle(handler, [each]) for each in batch)
        _leave_out(batch[0].message, error)
        return 1
    return 0


def _leave_out(message: Message, error: BadInputError) -> None:
    log.warning("message left out", extra={**where([message]), "reason": str(error)})
