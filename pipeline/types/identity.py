"""Which tracklets probably show one person: hypotheses with their evidence, and an operator's word on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from pipeline.types.checks import fraction

MODEL = "model"
LARGEST_PROBABILITY = 0.999  # nothing is ever called certain


def in_pair(first: str, second: str, name: str) -> None:
    """Raises ValueError unless two different tracklets are named."""
    if not first or not second or first == second:
        raise ValueError(f"{name} must name two different tracklets, got {first!r} and {second!r}")


@dataclass(frozen=True, slots=True)
class Link:
    """The evidence that two tracklets show one person. first: the one that was there; second: the one that came to it.

    probability: calibrated 0..0.999; similarities: cosine per modality; log_odds: what each modality says; gap_s: seconds between the two;
    made_by: "model" or the operator who decided; verdict: "probable" of the model, or the operator's "same" or "different".
    """

    first: str
    second: str
    probability: float
    similarities: Mapping[str, float] = field(default_factory=dict)
    log_odds: Mapping[str, float] = field(default_factory=dict)
    gap_s: float = 0.0
    made_by: str = MODEL
    made_at_ns: int = 0
    verdict: str = "probable"

    VERDICTS: ClassVar[tuple[str, ...]] = ("probable", "same", "different")

    def __post_init__(self) -> None:
        in_pair(self.first, self.second, "Link")
        fraction(self.probability, "Link.probability")
        if self.probability > LARGEST_PROBABILITY:
            raise ValueError(f"Link.probability must be {LARGEST_PROBABILITY} or less, nothing is certain, got {self.probability}")
        if self.verdict not in Link.VERDICTS:
            raise ValueError(f"Link.verdict must be one of {', '.join(Link.VERDICTS)}, got {self.verdict!r}")


@dataclass(frozen=True, slots=True)
class Identity:
    """Tracklets that probably show one person: a hypothesis, never a civil name. links: the evidence among them."""

    identity_id: str
    tracklet_ids: tuple[str, ...]
    links: tuple[Link, ...] = ()

    def __post_init__(self) -> None:
        if not self.identity_id or not self.tracklet_ids:
            raise ValueError("Identity must have an identity_id and at least one tracklet, got none")


@dataclass(frozen=True, slots=True)
class Decision:
    """An operator's word on two tracklets. verdict: "same", "different", or "withdrawn" when an earlier word no longer holds."""

    first: str
    second: str
    verdict: str
    decided_by: str
    decided_at_ns: int
    purpose: str = ""

    VERDICTS: ClassVar[tuple[str, ...]] = ("same", "different", "withdrawn")

    def __post_init__(self) -> None:
        in_pair(self.first, self.second, "Decision")
        if self.verdict not in Decision.VERDICTS:
            raise ValueError(f"Decision.verdict must be one of {', '.join(Decision.VERDICTS)}, got {self.verdict!r}")

    @property
    def key(self) -> str:
        """The pair, in whatever order it was named: a later word on it replaces this one."""
        return pair_key(self.first, self.second)


def pair_key(first: str, second: str) -> str:
    """Two tracklets as one key."""
    return "+".join(sorted((first, second)))


@dataclass(frozen=True, slots=True)
class IdentityEvent:
    """How an identity changed.

    kind: made (two tracklets became one identity), grown (tracklets joined), merged (``other`` came into it and is no more) or split
    (tracklets left it for ``other``); tracklet_ids: those that came, or left; link: the evidence that did it, none for a split.
    """

    kind: str
    identity_id: str
    tracklet_ids: tuple[str, ...]
    at_ns: int
    other: str = ""
    link: Link | None = None

    KINDS: ClassVar[tuple[str, ...]] = ("made", "grown", "merged", "split")

    def __post_init__(self) -> None:
        if self.kind not in IdentityEvent.KINDS:
            raise ValueError(f"IdentityEvent.kind must be one of {', '.join(IdentityEvent.KINDS)}, got {self.kind!r}")
