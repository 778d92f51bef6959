"""A question and the window it is asked of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.types.checks import in_order, storable
from pipeline.types.embedding import Embedding

FOREVER_NS = 2**62


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing known about the person: words, vectors of a picture or voice, or a tracklet that shows the person.

    kind: text, speech (words from a recogniser), portrait, look-alike, tracklet or voice; text: the words, for text and speech;
    embeddings: for portrait, look-alike and voice; tracklet_id: for tracklet; weight > 0; is_negative: less of this, please.
    """

    kind: str
    text: str = ""
    embeddings: tuple[Embedding, ...] = ()
    tracklet_id: str = ""
    weight: float = 1.0
    is_negative: bool = False

    LARGEST_WEIGHT: ClassVar[float] = 1e6
    KINDS: ClassVar[tuple[str, ...]] = ("text", "speech", "portrait", "look-alike", "tracklet", "voice")

    def __post_init__(self) -> None:
        if self.kind not in Probe.KINDS:
            raise ValueError(f"Probe.kind must be one of {', '.join(Probe.KINDS)}, got {self.kind!r}")
        if self.kind in ("text", "speech") and not self.text.strip():
            raise ValueError(f"a {self.kind} probe must carry words, got none")
        if self.kind in ("portrait", "look-alike", "voice") and not self.embeddings:
            raise ValueError(f"a {self.kind} probe must carry at least one embedding, got none")
        if self.kind == "tracklet" and not self.tracklet_id:
            raise ValueError("a tracklet probe must carry a tracklet_id, got none")
        if not 0 < self.weight <= Probe.LARGEST_WEIGHT:
            raise ValueError(f"Probe.weight must be above 0 and at most {Probe.LARGEST_WEIGHT:g}, got {self.weight}")


@dataclass(frozen=True, slots=True)
class Filter:
    """Where and when to look. Empty cameras or zones: all. A tracklet passes when it overlaps from_ns..to_ns (inclusive)."""

    from_ns: int = 0
    to_ns: int = FOREVER_NS
    cameras: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        in_order(self.from_ns, self.to_ns, "Filter")


EVERYTHING = Filter(-FOREVER_NS, FOREVER_NS)


@dataclass(frozen=True, slots=True)
class Query:
    """A search: probes, window, how many matches, until when, who asks and why.

    steps: a face, a voice or a tracklet leads on from match to match at most so often; 0: only what the probes find themselves.
    """

    query_id: str
    probes: tuple[Probe, ...]
    window: Filter = Filter()
    top_k: int = 20
    deadline_s: float = 10.0
    issued_by: str = ""
    purpose: str = ""
    steps: int = 3

    MOST_STEPS: ClassVar[int] = 10

    def __post_init__(self) -> None:
        if not self.probes:
            raise ValueError("Query.probes must hold at least one probe, got none")
        storable(self.top_k, "Query.top_k")
        if self.top_k < 1:
            raise ValueError(f"Query.top_k must be 1 or more, got {self.top_k}")
        if not 0 <= self.steps <= Query.MOST_STEPS:
            raise ValueError(f"Query.steps must be 0 to {Query.MOST_STEPS}, got {self.steps}")
