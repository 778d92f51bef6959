"""How long tracklets are kept: days per camera."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

NS_PER_DAY = 86_400 * 10**9


@dataclass(frozen=True, slots=True)
class Expiry:
    """Every tracklet of ``cameras`` that ended before ``before_ns`` goes."""

    before_ns: int
    cameras: tuple[str, ...]


def expiries(now_ns: int, cameras: Iterable[str], default_days: float, days_of: Mapping[str, float] | None = None) -> list[Expiry]:
    """What to expire now, oldest first; cameras of the same days share one Expiry.

    default_days and days_of (per camera): days to keep, 0 = for ever. Raises ValueError for negative days.
    """
    own = days_of or {}
    by_days: dict[float, list[str]] = defaultdict(list)
    for camera in sorted(set(cameras)):
        days = own.get(camera, default_days)
        if not days >= 0:
            raise ValueError(f"retention of camera {camera!r} must be 0 (for ever) or more days, got {days}")
        if days > 0:
            by_days[days].append(camera)
    return [Expiry(now_ns - round(days * NS_PER_DAY), tuple(names)) for days, names in sorted(by_days.items(), reverse=True)]
