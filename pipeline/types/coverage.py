"""What was seen, and what was not: the account that every camera keeps and every ranking carries."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.types.checks import in_order


@dataclass(frozen=True, slots=True)
class Gap:
    """A time span (UTC nanoseconds) in which the camera was not seen, and why."""

    from_ns: int
    to_ns: int
    reason: str

    def __post_init__(self) -> None:
        in_order(self.from_ns, self.to_ns, "Gap")


@dataclass(frozen=True, slots=True)
class CameraCoverage:
    """One camera's account over from_ns..to_ns.

    seen: frames that arrived; sampled: frames handed on; dropped: left out because we were late; corrupt: did not decode.
    seen = sampled + dropped + corrupt + those that the sampling rate left out.
    """

    camera_id: str
    from_ns: int
    to_ns: int
    seen: int = 0
    sampled: int = 0
    dropped: int = 0
    corrupt: int = 0
    gaps: tuple[Gap, ...] = ()

    def __post_init__(self) -> None:
        in_order(self.from_ns, self.to_ns, "CameraCoverage")

    @property
    def gap_s(self) -> float:
        return sum(gap.to_ns - gap.from_ns for gap in self.gaps) / 1e9


@dataclass(frozen=True, slots=True)
class Coverage:
    """What an answer rests on: the cameras and hours searched, the embedding spaces, tracklets looked at, and what is missing."""

    cameras: tuple[CameraCoverage, ...] = ()
    spaces: tuple[str, ...] = ()
    tracklets: int = 0
    notes: tuple[str, ...] = field(default_factory=tuple)
