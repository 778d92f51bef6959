"""Stored people looked at by another model, over a real index, media store and log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import BadInputError
from pipeline.ports import Face
from pipeline.types import BODY, CropReference, Embedding, Filter, Tracklet, Vectors
from services.adapters.disk_media import DiskMedia
from services.adapters.faiss_gallery import FaissGallery
from services.adapters.sqlite_broker import SqliteBroker
from services.crops import to_jpeg
from services.index import IndexHandler, index_worker
from services.reembed import Faces, Looks, Progress, reembed
from services.topics import create_all
from tests.fakes import NOON_NS, S, a_tracklet, embedding

OLD = embedding(BODY, 1, 0, space="old-body@1")


class Brightness:
    """A model whose vector tells how bright the pictures are; it sees nothing in a black one."""

    space = "brightness@2"

    def __init__(self) -> None:
        self.looked_at = 0

    def describe(self, crops: Sequence[NDArray[np.uint8]], quality: Sequence[float]) -> tuple[Embedding, ...]:
        self.looked_at += 1
        assert len(crops) == len(quality)
        light = float(np.mean([crop.mean() for crop in crops]))
        return (Embedding(BODY, self.space, [light, 255.0 - light], 0.5),) if light > 1 else ()


def person(number: int, **changes: object) -> Tracklet:
    key = f"north/{number}/0.jpg"
    crops = (
        CropReference(key, NOON_NS, (0.0, 0.0, 8.0, 16.0), 0.5),
        CropReference(f"north/{number}/context.jpg", NOON_NS, (0.0, 0.0, 8.0, 16.0), 0.0),
    )
    return a_tracklet(f"person-{number}", OLD, started_at_ns=NOON_NS + number * S, crops=crops, is_closed=True, **changes)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[SqliteBroker]:
    with SqliteBroker(tmp_path / "log.sqlite") as opened:
        create_all(opened)
        yield opened


@pytest.fixture
def media(tmp_path: Path) -> DiskMedia:
    """A picture of each of ten people, the brighter the higher the number; the first is black."""
    made = DiskMedia(tmp_path / "crops")
    for number in range(10):
        made.put(f"north/{number}/0.jpg", to_jpeg(np.full((16, 8, 3), 20 * number, np.uint8)))
        made.put(f"north/{number}/context.jpg", to_jpeg(np.full((16, 8, 3), 255, np.uint8)))
    return made


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[FaissGallery]:
    with FaissGallery(tmp_path / "index", segment_size=100) as made:
        made.upsert([person(number) for number in range(10)])
        yield made


def take_in(broker: SqliteBroker, gallery: FaissGallery) -> None:
    index_worker(broker, IndexHandler(gallery)).run(until_drained=True)


def test_the_old_model_answers_until_the_new_one_has_looked(gallery: FaissGallery, media: DiskMedia, broker: SqliteBroker) -> None:
    progress = reembed(gallery, media, broker, Brightness(), Filter())
    assert (progress.tracklets, progress.described) == (10, 9)
    assert len(gallery.search(OLD, Filter(), 20)) == 10
    assert Brightness.space not in gallery.statistics().by_modality[BODY]
    take_in(broker, gallery)
    assert gallery.statistics().by_modality[BODY] == {"old-body@1": 10, Brightness.space: 9}
    assert gallery.search(Embedding(BODY, Brightness.space, [180, 75]), Filter(), 1)[0].tracklet_id == "person-9"
    assert len(gallery.search(OLD, Filter(), 20)) == 10


def test_nobody_is_looked_at_twice_not_even_those_without_a_vector(gallery: FaissGallery, media: DiskMedia, broker: SqliteBroker) -> None:
    first, second = Brightness(), Brightness()
    reembed(gallery, media, broker, first, Filter(to_ns=NOON_NS + 4 * S))
    take_in(broker, gallery)
    progress = reembed(gallery, media, broker, second, Filter())
    assert (first.looked_at, second.looked_at, progress.known) == (5, 5, 5)


def test_open_tracklets_and_lost_pictures_are_counted_and_speaker_turns_left(
    gallery: FaissGallery, media: DiskMedia, broker: SqliteBroker
) -> None:
    gallery.upsert([replace(person(3), revision=2, is_closed=False), replace(person(11), crops=())])
    media.delete(["north/4/0.jpg"])
    progress = reembed(gallery, media, broker, Brightness(), Filter())
    assert progress == Progress(tracklets=8, described=7, known=0, open=1, without_pictures=1)


def test_a_tracklet_that_grew_meanwhile_keeps_what_it_has(gallery: FaissGallery, media: DiskMedia, broker: SqliteBroker) -> None:
    reembed(gallery, media, broker, Brightness(), Filter())
    gallery.upsert([replace(person(9), revision=2)])
    take_in(broker, gallery)
    (grown,) = gallery.tracklets(["person-9"])
    assert [each.space for each in grown.embeddings] == ["old-body@1"]


def test_looks_are_pooled_as_the_ingest_line_pools_them() -> None:
    class Encoder:
        spaces: ClassVar = {BODY: "body@2"}

        def encode(self, crops):  # type: ignore[no-untyped-def]
            return {BODY: Vectors("body@2", np.eye(2, dtype=np.float32)[: len(crops)])}

        def attributes(self, vectors, quality):  # type: ignore[no-untyped-def]
            return ()

    crop = np.zeros((4, 2, 3), np.uint8)
    (made,) = Looks(Encoder(), BODY).describe([crop, crop], [0.9, 0.3])
    assert made.vector.tolist() == pytest.approx([0.9487, 0.3162], abs=1e-3)
    with pytest.raises(BadInputError, match="must give face vectors"):
        Looks(Encoder(), "face")


def test_faces_are_the_persons_own_and_those_that_agree() -> None:
    """The stranger in the second crop's background is a better picture, and stays out; the third crop shows nobody's face."""

    class Encoder:
        space = "face@2"

        def __init__(self) -> None:
            centre, corner = np.array([35, 5, 65, 35], np.float32), np.array([0, 20, 8, 28], np.float32)
            own, stranger = Embedding("face", "face@2", [1, 0], 0.6), Embedding("face", "face@2", [0, 1], 1.0)
            self.answers = [[Face(centre, 1.0, 0.6, own)], [Face(corner, 1.0, 1.0, stranger), Face(centre, 1.0, 0.6, own)], []]

        def faces(self, bgr):  # type: ignore[no-untyped-def]
            return self.answers.pop(0)

    crop = np.zeros((250, 100, 3), np.uint8)
    (made,) = Faces(Encoder(), 0.5).describe([crop] * 3, [0.5] * 3)
    assert (made.modality, made.vector.tolist()) == ("face", [1.0, 0.0])
    assert Faces(Encoder(), 0.5).describe([], []) == ()
