"""What the stages ask of the world. Adapters in services/ and networks in models/ answer; one contract suite tests them all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipeline.types import (
    Attribute,
    Camera,
    CameraCoverage,
    CropReference,
    Decision,
    Detections,
    Embedding,
    Filter,
    Frame,
    Identity,
    IdentityEvent,
    Link,
    Reembedding,
    Sound,
    Tracklet,
    Vectors,
)

# ---------------------------------------------------------------------------------------------- capture


class Capture(Protocol):
    """An open source of frames. Frames come in order of captured_at_ns; a corrupt or late frame is counted, not raised."""

    camera: Camera

    def frames(self) -> Iterator[Frame]:
        """Frames until the end (file) or until close (live). Raises UnreadableMediaError or SourceUnavailableError."""
        ...

    def sounds(self) -> Iterator[Sound]:
        """The sound track in pieces of about a second; none where there is no sound."""
        ...

    def coverage(self) -> CameraCoverage:
        """The account so far; may be called from another thread."""
        ...

    def close(self) -> None: ...


# ----------------------------------------------------------------------------------------------- models


class Detector(Protocol):
    """Finds people in a batch of frames, of any cameras and sizes."""

    name: str

    def detect(self, frames: Sequence[Frame]) -> list[Detections]:
        """One Detections per frame, in order; boxes in pixels of each original frame."""
        ...


@runtime_checkable
class PreparingDetector(Detector, Protocol):
    """A detector whose input can be made in another thread than its forward pass."""

    def prepare(self, frames: Sequence[Frame]) -> Any:
        """The network's input for these frames."""
        ...

    def detect_prepared(self, frames: Sequence[Frame], batches: Any) -> list[Detections]:
        """As ``detect``, from what ``prepare`` made of the same frames."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Sought:
    """One frame searched for Q descriptions.

    detections: its N people; similarity: float32 (N, Q), how well each fits each description: query-free cosine and what the
    query-conditioned heads add; heat: float32 (Q, h, w) 0..1 over the frame, where the network looks, or None when not asked for.
    """

    detections: Detections
    similarity: NDArray[np.float32]
    heat: NDArray[np.float32] | None = None


class Retriever(Protocol):
    """Finds the people of full frames and how well each fits any number of standing descriptions."""

    name: str

    def ask(self, descriptions: Sequence[str]) -> Any:
        """Descriptions made ready once, for any number of frames. Raises BadInputError when one says nothing that can be seen."""
        ...

    def look_for(self, frames: Sequence[Frame], asked: Any, with_heat: bool = False) -> list[Sought]:
        """One Sought per frame, in order, for what ``ask`` gave."""
        ...


class LookEncoder(Protocol):
    """Crops to vectors of several modalities, and plain attributes from those that words can be compared with."""

    @property
    def spaces(self) -> Mapping[str, str]:
        """Modality -> space of what ``encode`` gives; that of TEXT is the TextEncoder's."""
        ...

    def encode(self, crops: Sequence[NDArray[np.uint8]]) -> Mapping[str, Vectors]:
        """BGR uint8 (h, w, 3) crops of any size -> modality -> their N vectors, one entry for each of ``spaces``."""
        ...

    def attributes(self, vectors: NDArray[np.float32], quality: Sequence[float]) -> tuple[Attribute, ...]:
        """The plain attributes of one person from text-aligned vectors (K, D), weighted by quality (K,), most certain first."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """A face in a picture: box in its pixels, confidence 0..1, quality 0..1 (size, sharpness, pose), its vector, or None below the gate.

    flaw: what closed the gate, "blurred".
    """

    xyxy: NDArray[np.float32]
    confidence: float
    quality: float
    embedding: Embedding | None
    flaw: str = ""


class FaceEncoder(Protocol):
    """Faces of a picture and their vectors."""

    space: str

    def faces(self, bgr: NDArray[np.uint8]) -> list[Face]:
        """All faces, best quality first; ``embedding`` is None where the quality gate closed."""
        ...


class VoiceEncoder(Protocol):
    """Who speaks: where there is speech, where several speak at once, and a vector of one voice. Sound is mono float32 (N,) at 16 kHz."""

    space: str

    def activity(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """How likely each 32 ms (512 samples; the rest is left out) holds speech, float32 (N // 512,) 0..1."""
        ...

    def overlap(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """How likely two or more speak in each 32 ms, float32 (N // 512,) 0..1."""
        ...

    def encode(self, samples: NDArray[np.float32]) -> Embedding:
        """Modality VOICE, its quality 0..1 from length, loudness over noise and band. Raises BadInputError for what holds no voice."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """The upper part of a person in one frame: grey uint8 (h, w); left, top: its corner in frame pixels; scale: frame pixels per pixel."""

    at_ns: int
    grey: NDArray[np.uint8]
    left: float
    top: float
    scale: float = 1.0


class LipReader(Protocol):
    """How a mouth moves."""

    def read(self, heads: Sequence[Head]) -> NDArray[np.float32]:
        """How much the mouth changed since the picture before, in grey levels, float32 (K,) for K pictures of one person in time order.

        nan for the first, and where no face large enough was seen.
        """
        ...


class TextEncoder(Protocol):
    """A description to a vector in the text-aligned space of a LookEncoder."""

    space: str

    def encode(self, text: str) -> Embedding:
        """Modality TEXT. Raises BadInputError, naming the words, when nothing in the description can be seen in a picture."""
        ...

    def explain(self, text: str, attributes: Sequence[Attribute]) -> tuple[str, ...]:
        """Why a tracklet with these attributes fits or fails the description: short phrases such as "red upper body: yes, 0.91"."""
        ...


class SentenceEncoder(Protocol):
    """Words to vectors that are near when the meaning is."""

    space: str

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 (N, D), length 1."""
        ...


class SpeechRecogniser(Protocol):
    """Sound to words."""

    def transcribe(self, samples: NDArray[np.float32], rate_hz: int) -> str:
        """Mono float32 (N,) -1..1 -> words; raises BadInputError when nothing was said."""
        ...


# ----------------------------------------------------------------------------------------------- broker


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic and its settings, in Kafka's words. retention_ms and retention_bytes -1: for ever."""

    name: str
    partitions: int = 1
    cleanup: str = "delete"  # or "compact"
    retention_ms: int = -1
    retention_bytes: int = -1
    max_message_bytes: int = 1_048_576

    def differences(self, there: TopicSpec) -> str:
        """What ``there`` has otherwise than this, "retention_ms 3600000, got -1; ..."; empty when nothing."""
        pairs = ((each.name, getattr(self, each.name), getattr(there, each.name)) for each in fields(self))
        return "; ".join(f"{name} {wanted}, got {got}" for name, wanted, got in pairs if wanted != got)


@dataclass(frozen=True, slots=True)
class TopicPartition:
    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class Message:
    """A record of a topic. value None is a tombstone."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp_ms: int = 0


class Consumer(Protocol):
    """A member of a consumer group. Auto-commit is off."""

    def poll(self, timeout_s: float = 1.0, max_messages: int = 500) -> list[Message]:
        """Messages of the assigned partitions, in offset order per partition; [] when the time is up. Keeps the membership alive."""
        ...

    def keep_alive(self) -> None:
        """Stay a member while messages take long to handle; may be called from another thread. Raises NotReadyError when it is lost."""
        ...

    def assignment(self) -> frozenset[TopicPartition]: ...

    def is_stable(self) -> bool:
        """Whether the group has told this member its partitions and nothing is changing; always so outside of a group."""
        ...

    def position(self, partition: TopicPartition) -> int: ...

    def seek(self, partition: TopicPartition, offset: int) -> None: ...

    def committed(self, partition: TopicPartition) -> int | None: ...

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Store the NEXT offset to read per partition; raises NotReadyError when the partition was taken away meanwhile."""
        ...

    def lag(self) -> int:
        """Messages of the assigned partitions not yet read."""
        ...

    def close(self) -> None:
        """Leave the group, so that others take over at once."""
        ...


@runtime_checkable
class Broker(Protocol):
    """A durable log of topics with partitions, keys, offsets and consumer groups."""

    def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Create those that are missing; an existing one with other partitions or settings raises SettingsError."""
        ...

    def topics(self) -> Mapping[str, TopicSpec]: ...

    def produce(self, topic: str, value: bytes | None, key: bytes | None = None, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        """Queue one message; the same key always goes to the same partition. BadInputError when it is larger than the topic allows."""
        ...

    def flush(self, timeout_s: float = 10.0) -> None:
        """Return once every produced message is durable; raises NotReadyError or StorageFullError otherwise."""
        ...

    def consumer(self, topics: Sequence[str], group: str, start: str = "earliest") -> Consumer:
        """Join ``group``; where it has no committed offset, start at "earliest" or "latest"."""
        ...

    def reader(self, topics: Sequence[str], start: str = "earliest") -> Consumer:
        """A consumer of all partitions that belongs to no group and commits nothing: for those who must know everything."""
        ...

    def end_offsets(self, topic: str) -> Mapping[TopicPartition, int]: ...

    def groups(self) -> Mapping[str, Mapping[TopicPartition, int]]:
        """Committed next offsets of every group."""
        ...

    def close(self) -> None: ...


# ------------------------------------------------------------------------------------- gallery and stores


@dataclass(frozen=True, slots=True)
class Hit:
    """A vector search result: the tracklet and the cosine, bigger is better."""

    tracklet_id: str
    similarity: float


@dataclass(frozen=True, slots=True)
class IndexStatistics:
    """What the index holds: tracklets, vectors per embedding space, cameras, first and last time, segments, bytes on disk.

    by_modality: modality -> space -> vectors.
    """

    tracklets: int
    vectors: Mapping[str, int]
    cameras: tuple[str, ...]
    from_ns: int
    to_ns: int
    segments: int
    bytes_on_disk: int
    by_modality: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


class Gallery(Protocol):
    """The identity index: tracklets and their vectors, in time segments. One writer, any number of readers (processes)."""

    def upsert(self, tracklets: Sequence[Tracklet]) -> int:
        """Write tracklets durably; a revision not above the stored one is ignored. Gives how many were written.

        Raises StorageFullError, ReadOnlyStorageError; BadInputError for a vector whose dimension differs from its space's.
        """
        ...

    def add_embeddings(self, added: Sequence[Reembedding]) -> int:
        """Put another model's vectors beside those of stored tracklets; gives how many were written.

        A tracklet that is not stored, or in another revision, is left as it is. What the same space held of it before is replaced.
        """
        ...

    def search(self, embedding: Embedding, window: Filter, top_k: int) -> list[Hit]:
        """The nearest tracklets of the window by cosine, best first; filters are applied inside the search.

        Raises SpaceMismatchError when the gallery holds that modality only in other spaces.
        """
        ...

    def tracklets(self, tracklet_ids: Sequence[str]) -> list[Tracklet]:
        """The stored tracklets, in the order asked; missing ones are left out."""
        ...

    def scan(self, window: Filter) -> Iterator[Tracklet]:
        """All tracklets of the window without their boxes and vectors (empty arrays), by start time."""
        ...

    def record_coverage(self, coverage: CameraCoverage) -> None:
        """Replace the account of that camera for that stretch (same camera_id and from_ns)."""
        ...

    def coverage(self, window: Filter) -> tuple[CameraCoverage, ...]: ...

    def delete(self, tracklet_ids: Sequence[str]) -> list[CropReference]:
        """Really remove: rows, vectors in every segment, nothing left on disk; gives the crop references to remove from the media store."""
        ...

    def expire(self, before_ns: int, cameras: Sequence[str] = ()) -> list[CropReference]:
        """Retention: delete every tracklet that ended before ``before_ns`` (of ``cameras``, or all)."""
        ...

    def statistics(self) -> IndexStatistics: ...

    def close(self) -> None: ...


class MediaStore(Protocol):
    """Crops, by key."""

    def put(self, key: str, jpeg: bytes) -> None: ...

    def get(self, key: str) -> bytes:
        """Raises NotFoundError."""
        ...

    def delete(self, keys: Sequence[str]) -> None: ...


# ---------------------------------------------------------------------------------------------- identities


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """One tracklet beside N others in one space: cosine float (N,), nan where it cannot be compared; other_quality (N,)."""

    modality: str
    space: str
    cosine: NDArray[np.float64]
    quality: float
    other_quality: NDArray[np.float64]


class Neighbours(Protocol):
    """The vectors of face, voice and, for some hours, body: who is near whom."""

    def add(self, tracklets: Sequence[Tracklet]) -> None:
        """Take them in; another revision of a known one replaces it."""
        ...

    def remove(self, tracklet_ids: Sequence[str]) -> None:
        """Never given again, whatever is asked."""
        ...

    def told_apart(self, tracklet_id: str, others: Sequence[str]) -> None:
        """They were in one picture at one time, so they are two people: what their bodies have in common is their camera's."""
        ...

    def near(self, tracklet_ids: Sequence[str], top_k: int) -> list[list[str]]:
        """For each known one its nearest others, most ``top_k`` of every space; by body only those within the horizon of its time."""
        ...

    def compare(self, tracklet_id: str, others: Sequence[str]) -> list[Compared]:
        """A known tracklet beside N others, one entry for each of its spaces; nothing for one that is not known."""
        ...


@dataclass(frozen=True, slots=True)
class Member:
    """A tracklet's place among the identities. is_heard: an unattributed speaker turn, a voice without a body."""

    tracklet_id: str
    identity_id: str
    revision: int
    camera_id: str
    started_at_ns: int
    ended_at_ns: int
    is_heard: bool = False


@dataclass(frozen=True, slots=True)
class LinkChanges:
    """What linking changed, to be written whole. unlinked: pairs whose link is no more; gone: tracklets that are no more;
    decisions: in force or withdrawn; forgotten: keys of decisions on tracklets that are no more."""

    members: tuple[Member, ...] = ()
    links: tuple[Link, ...] = ()
    unlinked: tuple[tuple[str, str], ...] = ()
    gone: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()
    forgotten: tuple[str, ...] = ()
    events: tuple[IdentityEvent, ...] = ()


class IdentityStore(Protocol):
    """Who probably is who, with the evidence. One writer, any number of readers (processes)."""

    def identity_of(self, tracklet_ids: Sequence[str]) -> dict[str, str]:
        """tracklet id -> identity id; tracklets that are not linked yet are left out."""
        ...

    def identity(self, identity_id: str) -> Identity | None:
        """Its tracklets by start time and the links among them; None where there is none of that id."""
        ...

    def identities(self, least: int = 2, most: int = 1000) -> list[tuple[str, int]]:
        """(identity id, tracklets) of those with ``least`` tracklets or more, the largest first, at most ``most``."""
        ...

    def links_of(self, tracklet_id: str) -> list[Link]:
        """All links of a tracklet, also those that an operator cut."""
        ...

    def decisions(self) -> list[Decision]:
        """The operators' words in force, oldest first."""
        ...

    def members(self) -> Iterator[Member]:
        """All of them."""
        ...

    def links(self) -> Iterator[Link]:
        """All of them."""
        ...

    def write(self, changes: LinkChanges) -> None:
        """All of it durably, or nothing. Raises StorageFullError, ReadOnlyStorageError."""
        ...

    def remove(self, tracklet_ids: Sequence[str]) -> None:
        """Tracklets that are no more, their links and the decisions on them; nothing is left on disk."""
        ...

    def ended_before(self, before_ns: int) -> list[str]:
        """The tracklets that ended before a time."""
        ...

    def untold(self) -> list[tuple[int, IdentityEvent]]:
        """Events written and not yet told, with their numbers, oldest first."""
        ...

    def told(self, up_to: int) -> None:
        """The events up to this number are with whoever follows them."""
        ...

    def close(self) -> None: ...
