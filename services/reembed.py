"""Stored tracklets looked at again by another model, while the old one answers.

The pictures come from the media store, the vectors go onto a topic, and every copy of the index takes them in beside the old ones. A
space answers for itself alone, so nothing is mixed half way; a search says how many tracklets the new one does not know yet. Broken off, it
goes on where it stopped: a tracklet that was looked at carries the model's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInputError
from pipeline.faces import HEAD_PART, own_face, pooled
from pipeline.ports import Broker, FaceEncoder, Gallery, LookEncoder, MediaStore
from pipeline.shots import pool
from pipeline.types import CropReference, Embedding, Filter, Reembedding, Tracklet
from services import wire
from services.contact_sheet import is_context
from services.crops import load
from services.topics import REEMBEDDINGS

PAGE = 64

Pixels = NDArray[np.uint8]
OnProgress = Callable[["Progress"], None]


class Describer(Protocol):
    """A model that makes vectors of a tracklet's best shots."""

    @property
    def space(self) -> str: ...

    def describe(self, crops: Sequence[Pixels], quality: Sequence[float]) -> tuple[Embedding, ...]:
        """BGR crops (h, w, 3) of one person and their qualities -> vectors in ``space``, none where nothing can be described."""
        ...


@dataclass(slots=True)
class Progress:
    """tracklets: looked at; described: of these, with a vector; known: carried the model's name already; open: will be published again;
    without_pictures: the media store keeps none."""

    tracklets: int = 0
    described: int = 0
    known: int = 0
    open: int = 0
    without_pictures: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Faces:
    """The Describer of faces: the person's own in each crop, the best few that agree pooled, as the ingest line does.

    same_face: the cosine from which on two faces are taken for one person's.
    """

    def __init__(self, encoder: FaceEncoder, same_face: float) -> None:
        self._encoder, self._same_face = encoder, same_face
        self.space = encoder.space

    def describe(self, crops: Sequence[Pixels], quality: Sequence[float]) -> tuple[Embedding, ...]:
        """See Describer; ``quality`` is of the bodies, and is not used: a face has its own."""
        own = []
        for crop in crops:
            height, width = crop.shape[:2]
            head = np.ascontiguousarray(crop[: max(int(height * HEAD_PART), min(height, width), 2)])
            own.append(own_face(self._encoder.faces(head), (0.0, 0.0, float(width), float(height))))
        found = sorted((face.embedding for face in own if face is not None and face.embedding is not None), key=lambda each: -each.quality)
        made = pooled(found, self._same_face)
        return (made,) if made is not None else ()


class Looks:
    """The Describer of body and text-aligned vectors, as the ingest line pools them. Raises BadInputError when they have no one space."""

    def __init__(self, encoder: LookEncoder, modality: str) -> None:
        if modality not in encoder.spaces:
            raise BadInputError(f"the encoder must give {modality} vectors, got {', '.join(encoder.spaces)}")
        self._encoder, self._modality = encoder, modality
        self.space = encoder.spaces[modality]

    def describe(self, crops: Sequence[Pixels], quality: Sequence[float]) -> tuple[Embedding, ...]:
        """See Describer."""
        vectors = self._encoder.encode(crops)[self._modality].values
        made = pool(list(vectors), quality, self._modality, self.space)
        return (made,) if made is not None else ()


def reembed(
    gallery: Gallery,
    media: MediaStore,
    broker: Broker,
    describer: Describer,
    window: Filter,
    on_progress: OnProgress = lambda progress: None,
) -> Progress:
    """Look at every closed tracklet of ``window`` that the model has not looked at; what comes of it is durable on its topic."""
    progress = Progress()
    waiting = _waiting(gallery, describer.space, window, progress)
    while page := list(islice(waiting, PAGE)):
        for tracklet in page:
            _look_at(tracklet, media, broker, describer, progress)
        broker.flush()
        on_progress(progress)
    return progress


def _waiting(gallery: Gallery, space: str, window: Filter, progress: Progress) -> Iterator[Tracklet]:
    for tracklet in gallery.scan(window):
        if space in tracklet.model_versions:
            progress.known += 1
        elif not tracklet.is_closed:
            progress.open += 1
        elif tracklet.crops:  # a speaker turn has none
            yield tracklet


def _look_at(tracklet: Tracklet, media: MediaStore, broker: Broker, describer: Describer, progress: Progress) -> None:
    shots = [(picture, crop.quality) for crop in _shots(tracklet.crops) if (picture := load(media, crop.key)) is not None]
    if not shots:
        progress.without_pictures += 1
        return
    embeddings = describer.describe([picture for picture, _ in shots], [quality for _, quality in shots])
    made = Reembedding(tracklet.tracklet_id, tracklet.revision, describer.space, embeddings)
    broker.produce(REEMBEDDINGS, wire.encode(made), tracklet.tracklet_id.encode())
    progress.tracklets += 1
    progress.described += bool(embeddings)


def _shots(crops: Sequence[CropReference]) -> list[CropReference]:
    return [crop for crop in crops if not is_context(crop)]
