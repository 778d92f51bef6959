"""Capture, decisions only: which frames to keep, when they were taken, what was not seen, when to try again."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline.types import CameraCoverage, Gap

SECOND_NS = 1_000_000_000
EARLIEST_YEAR, LATEST_YEAR = 1990, 2100  # a clock outside is unset: QuickTime writes 1904, a camera without a battery 1970
LONGEST_PAUSE_NS = 86_400 * SECOND_NS  # a file that jumps further ahead has a damaged time, not a pause
_TIME_IN_NAME = re.compile(
    r"(?<!\d)(\d{4})[-_.]?(\d{2})[-_.]?(\d{2})[T_\- .]{0,3}(\d{2})[-_.:h]?(\d{2})[-_.:m]?(\d{2})(?:[.,_-](\d{3}|\d{6}))?(?!\d)"
)


class Sampler:
    """Keeps the frames of a wished rate, by presentation time.

    The kept frame is the first at or after each tick of a grid of 1/sampling_hz that starts with the source, so the rate never drifts
    and a part of a file keeps the frames that the whole file keeps (given one frame before the part). A source at most a tenth faster
    than wished is kept whole: its jitter would otherwise lose every other tick.
    """

    def __init__(self, sampling_hz: float) -> None:
        self._hz = sampling_hz
        self._previous_ns: int | None = None

    def keep(self, offset_ns: int) -> bool:
        """Whether the frame ``offset_ns`` after the start of the source is kept. Called for every frame, in order."""
        previous, self._previous_ns = self._previous_ns, offset_ns
        if self._hz <= 0 or previous is None or offset_ns < previous:
            return True
        if (offset_ns - previous) * self._hz >= 0.9 * SECOND_NS:
            return True
        return self._tick(offset_ns) != self._tick(previous)

    def _tick(self, offset_ns: int) -> int:
        return int((offset_ns * self._hz + 1_000) // SECOND_NS)  # 1 µs of slack: presentation times are rounded to their time base


class Clock:
    """Presentation time to UTC nanoseconds that never go backwards.

    A file counts from its start; where its time jumps back (joined recordings, loops) or ahead by more than a day (damage) it goes on
    one frame interval after the last frame.
    A live source is anchored at the wall clock of its first frame, and again after ``reconnected``, when its time jumps back (looped
    RTSP servers), runs ahead of the wall clock by more than ``ahead_s`` or falls behind by more than ``behind_s``.
    """

    def __init__(self, start_ns: int | None = None, ahead_s: float = 2.0, behind_s: float = 15.0) -> None:
        self._start_ns = start_ns  # None: live
        self._ahead_ns, self._behind_ns = int(ahead_s * SECOND_NS), int(behind_s * SECOND_NS)
        self._anchor_ns: int | None = start_ns
        self._last_offset_ns: int | None = None
        self._last_ns: int | None = None
        self._interval_ns = SECOND_NS // 25

    @property
    def anchor_ns(self) -> int | None:
        """UTC of offset 0 as understood now; None before the first frame of a live source."""
        return self._anchor_ns

    def reconnected(self) -> None:
        """The next frame begins a new run of presentation times."""
        self._last_offset_ns = None
        if self._start_ns is None:
            self._anchor_ns = None

    def utc_ns(self, offset_ns: int | None, now_ns: int = 0) -> int:
        """UTC of the frame at ``offset_ns`` (None: it came without a time); ``now_ns``: wall clock, used by live sources only."""
        if offset_ns is None:
            offset_ns = 0 if self._last_offset_ns is None else self._last_offset_ns + self._interval_ns
        self._re_anchor(offset_ns, now_ns)
        assert self._anchor_ns is not None  # set by _re_anchor
        moment = self._anchor_ns + offset_ns
        if self._last_ns is not None and moment <= self._last_ns:
            moment = self._last_ns + 1
        if self._last_offset_ns is not None and 0 < offset_ns - self._last_offset_ns < SECOND_NS:
            self._interval_ns = offset_ns - self._last_offset_ns
        self._last_offset_ns, self._last_ns = offset_ns, moment
        return moment

    def _re_anchor(self, offset_ns: int, now_ns: int) -> None:
        is_new_run = self._last_offset_ns is None or offset_ns < self._last_offset_ns - self._interval_ns
        if self._start_ns is None:
            ahead_ns = 0 if self._anchor_ns is None else self._anchor_ns + offset_ns - now_ns
            if self._anchor_ns is None or is_new_run or ahead_ns > self._ahead_ns or ahead_ns < -self._behind_ns:
                # never backwards, nor two frames on one moment: time that ran ahead waits at half its pace for the wall clock
                earliest_ns = now_ns if self._last_ns is None else self._last_ns + self._interval_ns // 2
                self._anchor_ns = max(now_ns, earliest_ns) - offset_ns
        elif self._last_ns is not None and (is_new_run or offset_ns - (self._last_offset_ns or 0) > LONGEST_PAUSE_NS):
            self._anchor_ns = self._last_ns + self._interval_ns - offset_ns


def is_late(captured_at_ns: int, newest_ns: int, late_s: float) -> bool:
    """Whether a live frame lies more than ``late_s`` behind the newest one and is to be dropped."""
    return newest_ns - captured_at_ns > late_s * SECOND_NS


class CoverageAccount:
    """What one camera saw and what it did not. Safe to write in one thread and to read in another.

    Two frames further apart than ``gap_after_s`` (or five usual intervals, for slow sources) leave a gap; a reason told by ``away``
    names it, else it is "corrupt frames" where such came in between, or "no frames in the source".
    """

    def __init__(self, camera_id: str, gap_after_s: float = 2.0) -> None:
        self._camera_id = camera_id
        self._gap_after_ns = int(gap_after_s * SECOND_NS)
        self._lock = threading.Lock()
        self._seen = self._sampled = self._dropped = self._corrupt = 0
        self._first_ns: int | None = None
        self._last_ns = 0
        self._interval_ns = 0
        self._gaps: list[Gap] = []
        self._away_since_ns: int | None = None
        self._away_reason = ""
        self._is_damaged = False  # corrupt frames came after the last good one

    def began(self, at_ns: int) -> None:
        """The account starts at ``at_ns``, before the first frame."""
        with self._lock:
            if self._first_ns is None:
                self._first_ns = self._last_ns = at_ns

    def saw(self, at_ns: int) -> None:
        """A frame of ``at_ns`` arrived, whatever becomes of it."""
        with self._lock:
            self._seen += 1
            is_first = self._first_ns is None
            step_ns = at_ns - self._last_ns
            if is_first:
                self._first_ns = at_ns
            elif self._away_since_ns is not None:
                self._add_gap(self._away_since_ns, at_ns, self._away_reason)
            else:
                if step_ns > max(self._gap_after_ns, 5 * self._interval_ns):
                    self._add_gap(self._last_ns, at_ns, "corrupt frames" if self._is_damaged else "no frames in the source")
                if self._seen > 1:
                    self._learn_interval(step_ns)
            self._away_since_ns, self._is_damaged = None, False
            self._last_ns = at_ns if is_first else max(self._last_ns, at_ns)

    def sampled(self) -> None:
        """A frame was handed on."""
        with self._lock:
            self._sampled += 1

    def dropped(self, frames: int = 1) -> None:
        """Frames that arrived were left out because the consumer was late."""
        with self._lock:
            self._dropped += frames

    def corrupt(self, frames: int = 1) -> None:
        """Frames arrived that did not decode."""
        with self._lock:
            self._seen += frames
            self._corrupt += frames
            self._is_damaged = True

    def away(self, since_ns: int, reason: str) -> None:
        """The source gives nothing from ``since_ns`` (or the last frame, if later) on; the first reason of an absence stays."""
        with self._lock:
            if self._away_since_ns is None:
                self._away_since_ns, self._away_reason = max(since_ns, self._last_ns), reason
                if self._first_ns is None:
                    self._first_ns = self._last_ns = since_ns

    def ended(self, expected_ns: int, reason: str) -> None:
        """The source ended before ``expected_ns``, where it should have ended."""
        with self._lock:
            if self._first_ns is None:
                self._first_ns = self._last_ns = expected_ns
            self._add_gap(self._last_ns, expected_ns, reason)
            self._last_ns = max(self._last_ns, expected_ns)

    def snapshot(self, now_ns: int = 0) -> CameraCoverage:
        """The account so far; an absence that still lasts is a gap until ``now_ns``."""
        with self._lock:
            gaps, last_ns = list(self._gaps), self._last_ns
            if self._away_since_ns is not None:
                last_ns = max(last_ns, now_ns, self._away_since_ns)
                gaps.append(Gap(self._away_since_ns, last_ns, self._away_reason))
            first_ns = last_ns if self._first_ns is None else self._first_ns
            return CameraCoverage(self._camera_id, first_ns, last_ns, self._seen, self._sampled, self._dropped, self._corrupt, tuple(gaps))

    def _learn_interval(self, step_ns: int) -> None:
        usual_ns = self._interval_ns
        # one gap at most doubles it: else a lost minute would hide the lost seconds after it
        self._interval_ns = min((7 * usual_ns + step_ns) // 8, 2 * usual_ns) if usual_ns else max(step_ns, 0)

    def _add_gap(self, from_ns: int, to_ns: int, reason: str) -> None:
        if to_ns > from_ns:
            self._gaps.append(Gap(from_ns, to_ns, reason))


@dataclass(frozen=True, slots=True)
class Part:
    """The part from_s..to_s of a source, in seconds after its first frame; to_s 0 = to the end. Neighbouring parts share no frame."""

    from_s: float = 0.0
    to_s: float = 0.0

    def __post_init__(self) -> None:
        if self.from_s < 0 or (self.to_s and self.to_s <= self.from_s):
            raise ValueError(f"Part must have 0 <= from_s < to_s (or to_s 0 for the end), got {self.from_s} to {self.to_s}")

    @property
    def from_ns(self) -> int:
        return round(self.from_s * SECOND_NS)

    @property
    def to_ns(self) -> int:
        return round(self.to_s * SECOND_NS) if self.to_s else 2**62

    @property
    def is_whole(self) -> bool:
        return not self.from_s and not self.to_s

    def is_after(self, offset_ns: int) -> bool:
        """Whether the part begins after that moment. Frames before the nominal start of a source belong to its first part."""
        return self.from_s > 0 and offset_ns < self.from_ns

    def holds(self, offset_ns: int) -> bool:
        return not self.is_after(offset_ns) and offset_ns < self.to_ns


def start_of_file(starts_at_ns: int, creation_time: str, name: str, modified_ns: int, duration_s: float) -> int:
    """UTC of the first frame of a file: what the camera says, else its metadata, else its name, else modification time less duration."""
    return starts_at_ns or time_of_metadata(creation_time) or time_in_name(name) or modified_ns - round(duration_s * SECOND_NS)


def time_of_metadata(text: str) -> int:
    """A creation_time such as ``2026-11-21T04:00:00.000000Z`` in UTC nanoseconds; 0 when there is none or its clock was never set."""
    try:
        moment = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError:
        return 0
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return _as_ns(moment) if EARLIEST_YEAR <= moment.year <= LATEST_YEAR else 0


def time_in_name(name: str) -> int:
    """The UTC time that a file name carries (2026-11-21T04-00-00, 20261121_040000, ...), in nanoseconds; 0 when it carries none."""
    for found in _TIME_IN_NAME.finditer(name):
        *numbers, fraction = found.groups()
        year, month, day, hour, minute, second = (int(number) for number in numbers)
        if not EARLIEST_YEAR <= year <= LATEST_YEAR:
            continue
        try:
            moment = datetime(year, month, day, hour, minute, second, int((fraction or "0").ljust(6, "0")), UTC)
        except ValueError:
            continue
        return _as_ns(moment)
    return 0


def _as_ns(moment: datetime) -> int:
    return int(moment.replace(microsecond=0).timestamp()) * SECOND_NS + moment.microsecond * 1_000


def without_credentials(uri: str) -> str:
    """``uri`` with its user, password and secret parameters replaced by ***: what may appear in a log, an error or an id."""
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return uri
    place, question, query = rest.partition("?")
    host, slash, path = place.partition("/")
    if "@" in host:
        host = "***@" + host.rpartition("@")[2]
    elif "@" in path and ":" in host and not re.search(r":\d+$", host):  # a password with a slash in it
        host, path = "***@", path.rpartition("@")[2]
        slash = ""
    query = re.sub(r"(?i)\b((?:user|usr|login|pass|pwd|pw|token|key|secret|auth|sig)\w*=)[^&]*", r"\1***", query)
    return f"{scheme}://{host}{slash}{path}{question}{query}"
