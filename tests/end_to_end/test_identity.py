"""One portrait finds a person whose face was never seen again: real faces, voices and clothes, the real workers, the real command line.

Who has which face, voice and coat is put together for the test: the data sets know nothing of each other.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.types import BODY, Embedding, Tracklet
from services import wire, wiring
from services.adapters.sqlite_broker import SqliteBroker
from services.settings import Settings
from services.topics import AUDIT, TRACKLETS, create_all
from tests.end_to_end.conftest import Line

pytestmark = [pytest.mark.accuracy, pytest.mark.usefixtures("base_weights", "voice_weights")]

MINUTE_NS = 60_000_000_000
NOON_NS = 1_700_000_000_000_000_000


@pytest.fixture(scope="module")
def voice_weights(weights: Callable[[str], Path]) -> None:
    for name in ("campplus", "segmentation", "silero-vad"):
        weights(name)


class Media:
    """Vectors of real pictures and sound by the encoders of the settings."""

    def __init__(self, folder: Path) -> None:
        self.folder, settings = folder, Settings()
        self._faces, self._looks = wiring.face_encoder(settings), wiring.look_encoder(settings)
        self._voices = wiring.voice_encoder(settings)

    def face(self, name: str) -> Embedding:
        found = self._faces.faces(cv2.imread(str(self.folder / "faces" / "sitcom" / name)))[0].embedding
        assert found is not None
        return found

    def voice(self, name: str) -> Embedding:
        return self._voices.encode(wiring.read_voice(self.folder / "voices" / name))

    def coat(self, name: str) -> Embedding:
        vectors = self._looks.encode([cv2.imread(str(self.folder / "persons" / name))])[BODY]
        return Embedding(BODY, vectors.space, vectors.values[0], 0.8)


def seen(name: str, camera: str, minute: float, *embeddings: Embedding) -> Tracklet:
    at = NOON_NS + int(minute * MINUTE_NS)
    times, boxes = np.asarray([at, at + MINUTE_NS // 6]), np.asarray([[10, 10, 40, 90]] * 2, np.float32)
    return Tracklet(name, 1, camera, at, at + MINUTE_NS // 6, times, boxes, np.ones(2, np.float32), embeddings, is_closed=True)


@pytest.fixture(scope="module")
def people(shared_data: Path) -> list[Tracklet]:
    """Her face and voice in the hall; an hour later her voice and coat at the stairs; her coat in the yard soon after, and others."""
    media = Media(shared_data)
    coats = sorted(path.parent.name for path in (shared_data / "persons").glob("cuhk01_*/a1.jpg") if path.with_name("b3.jpg").exists())
    hers, others = coats[0], coats[5:9]
    strangers = [
        seen(f"stranger-{number}-0123456789", camera, 61 + number, media.coat(f"{coat}/b3.jpg"))
        for number, (coat, camera) in enumerate(zip(others, ("yard", "stairs", "yard", "gate"), strict=True))
    ]
    return [
        seen("her-face-0123456789", "hall", 0, media.face("amy/amy1.png"), media.voice("1688/1688-142285-0000.flac")),
        seen("her-voice-0123456789", "stairs", 60, media.voice("1688/1688-142285-0004.flac"), media.coat(f"{hers}/a1.jpg")),
        seen("her-coat-0123456789", "yard", 80, media.coat(f"{hers}/b3.jpg")),
        seen("another-face-0123456789", "hall", 3, media.face("raj/raj1.png"), media.voice("2033/2033-164914-0000.flac")),
        *strangers,
    ]


@pytest.fixture
def indexed(line: Line, people: list[Tracklet]) -> Line:
    line.data.mkdir(parents=True)
    with closing(SqliteBroker(line.data / "log.sqlite")) as broker:
        create_all(broker)
        for tracklet in people:
            broker.produce(TRACKLETS, wire.encode(tracklet), tracklet.camera_id.encode())
        broker.flush()
    line.start("worker", "index", "--port", "0")
    until(lambda: line.run("status", "--json").returncode == 0 and line.json("status")["tracklets"] == len(people))
    return line


def until(is_so: Callable[[], bool], within_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.2)


def test_a_portrait_leads_through_the_voice_to_the_coat(indexed: Line, shared_data: Path) -> None:
    answer = indexed.json("search", "--portrait", shared_data / "faces" / "sitcom" / "amy" / "amy3.png")
    names = [match["tracklet_id"].rsplit("-", 1)[0] for match in answer["matches"] if match["score"] >= 0.5]
    assert names == ["her-face", "her-voice", "her-coat"]
    coat = next(match for match in answer["matches"] if match["tracklet_id"].startswith("her-coat"))
    assert [step["modality"] for step in coat["path"]] == ["face", "voice", "body"]
    assert coat["why"][0].startswith("face 0.")
    assert " → voice 0." in coat["why"][0]
    assert " → body within 20 min 0." in coat["why"][0]
    assert [stay["camera_id"] for stay in answer["sightings"][0]["trajectory"]] == ["hall", "stairs", "yard"]


def test_a_voice_finds_the_one_who_spoke(indexed: Line, shared_data: Path) -> None:
    answer = indexed.json("search", "--voice", shared_data / "voices" / "1688" / "1688-142285-0007.flac", "--steps", "0")
    assert {match["tracklet_id"] for match in answer["matches"] if match["score"] >= 0.5} == {"her-face-0123456789", "her-voice-0123456789"}


def test_an_operators_cut_sticks_and_the_search_obeys(indexed: Line, shared_data: Path) -> None:
    portrait = ("search", "--portrait", shared_data / "faces" / "sitcom" / "amy" / "amy3.png")
    done = indexed.run("identity", "cut", "her-face-0123456789", "her-voice-0123456789", "--purpose", "not her")
    assert done.returncode == 0, done.stderr

    def probable() -> list[str]:
        return [match["tracklet_id"] for match in indexed.json(*portrait)["matches"] if match["score"] >= 0.5]

    until(lambda: probable() == ["her-face-0123456789"])
    with closing(SqliteBroker(indexed.data / "log.sqlite")) as broker, closing(broker.reader([AUDIT])) as reader:
        records: list[dict[str, Any]] = [json.loads(message.value or b"{}") for message in reader.poll(1.0)]
    assert [record["purpose"] for record in records if record["action"] != "search"] == ["not her"]
