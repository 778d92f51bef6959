"""Sound to speaker turns: stretches in which one person speaks alone, each with the vector of its voice.

A turn is closed by a silence, by its length, by others who speak at the same time, and where the voice changes: then the vectors of what
lies before and after differ. One SpeakerTurns per camera; the same pieces of sound give the same turns, number for number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInputError
from pipeline.ports import VoiceEncoder
from pipeline.types import Embedding, Sound

Float32 = NDArray[np.float32]

RATE_HZ = 16_000
STEP = 512  # samples of one probability of activity or overlap
STEP_NS = STEP * 1_000_000_000 // RATE_HZ  # exactly 32 ms
LOUD_STEP = 160  # samples of one loudness: 10 ms
CONTEXT_STEPS = 31  # heard again before each new piece: the activity network starts anew at every call
BREAK_NS = 100_000_000  # pieces further apart than this do not belong together
QUIET_DB = -60.0


@dataclass(frozen=True, slots=True)
class TurnRules:
    """Times in seconds, probabilities and cosines as the encoder gives them.

    speech: from here a step holds speech; silence_s: so long without speech ends a turn; longest_s: cap of a turn; least_s: clean speech
    that a turn must hold; overlap: from here two speak at once, and least_overlap_s of it parts a turn; doubt: halves of a turn less alike
    than this may be two speakers; change: sides less alike than this are, where they differ most; side_s: least length of a side.
    """

    speech: float = 0.5
    silence_s: float = 0.4
    longest_s: float = 8.0
    least_s: float = 0.8
    overlap: float = 0.5
    least_overlap_s: float = 0.16
    doubt: float = 0.55
    change: float = 0.35
    side_s: float = 1.2


@dataclass(frozen=True, slots=True, eq=False)
class Loudness:
    """Decibels below full scale, float32 (L,), every ``step_ns`` from ``from_ns`` on."""

    from_ns: int
    step_ns: int
    db: Float32

    def at(self, moments_ns: NDArray[np.int64]) -> Float32:
        """The loudness at some moments (K,), linear between; beyond its ends the quietest."""
        own = self.from_ns + self.step_ns * np.arange(len(self.db), dtype=np.int64) + self.step_ns // 2
        quiet = float(self.db.min()) if len(self.db) else QUIET_DB
        if not len(self.db):
            return np.full(len(moments_ns), quiet, np.float32)
        base = self.from_ns
        return np.interp((moments_ns - base).astype(np.float64), (own - base).astype(np.float64), self.db, quiet, quiet).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One person speaking alone, UTC nanoseconds. speech_s: clean speech in it; loudness: of it and of half a second on both sides."""

    camera_id: str
    started_at_ns: int
    ended_at_ns: int
    speech_s: float
    embedding: Embedding
    loudness: Loudness


class SpeakerTurns:
    """Finds the turns of one camera's sound. Holds ``longest_s`` and a few seconds of sound, never more."""

    MARGIN_NS = 500_000_000

    def __init__(self, voice: VoiceEncoder, rules: TurnRules | None = None) -> None:
        self._voice = voice
        self.rules = rules or TurnRules()
        self._camera_id = ""
        self._silence_steps = round(self.rules.silence_s * 1e9 / STEP_NS)
        self._longest_steps = max(2, round(self.rules.longest_s * 1e9 / STEP_NS))
        self._margin_steps = round(self.MARGIN_NS / STEP_NS)
        self._spoken: deque[tuple[int, int]] = deque(maxlen=512)  # UTC spans that hold speech, rising
        self._heard_until_ns: int | None = None
        self._is_running = False
        self._run_ns = 0  # UTC at which this run of sound began; steps count from there
        self._first_step = 0  # step of the first sample held
        self._samples: Float32 = np.zeros(0, np.float32)
        self._speech: NDArray[np.bool_] = np.zeros(0, bool)  # from _first_step on
        self._activity: Float32 = np.zeros(0, np.float32)
        self._open_at: int | None = None
        self._settled = 0  # steps before this one are in a turn that is closed, or hold no speech

    @property
    def heard_until_ns(self) -> int | None:
        """UTC up to which the sound was looked at; None before the first piece."""
        return self._heard_until_ns

    def hear(self, sound: Sound) -> list[Turn]:
        """Take in a piece of sound, mono at 16 kHz, of any length; gives the turns that it closed.

        A piece that begins elsewhere than the last one ended closes what was open. Raises BadInputError for another rate.
        """
        if sound.rate_hz != RATE_HZ:
            raise BadInputError(f"Sound.rate_hz must be {RATE_HZ}, got {sound.rate_hz}: resample it first")
        self._camera_id = sound.camera_id
        turns: list[Turn] = []
        if not self._is_running or abs(sound.started_at_ns - self._end_ns) > BREAK_NS:
            turns += self.finish()
            self._restart(sound.started_at_ns)
        whole = np.nan_to_num(sound.samples, posinf=0.0, neginf=0.0).clip(-1.0, 1.0)  # a damaged stream decodes to anything
        self._samples = np.concatenate([self._samples, whole])
        self._look()
        turns += self._close_ended()
        self._drop_old()
        return turns

    def finish(self) -> list[Turn]:
        """The sound ends here, or goes on elsewhere: what is open is closed."""
        turns = list(self._turns_of(self._open_at, self._last_speech() + 1)) if self._open_at is not None else []
        self._open_at = None
        return turns

    def spoke_within(self, from_ns: int, to_ns: int) -> bool:
        """Whether anybody spoke between two moments, as far as was heard."""
        for first, last in reversed(self._spoken):
            if last <= from_ns:
                return False
            if first < to_ns:
                return True
        return False

    # ------------------------------------------------------------------------------------------ steps

    def _restart(self, started_at_ns: int) -> None:
        self._is_running = True
        self._run_ns, self._first_step, self._settled, self._open_at = started_at_ns, 0, 0, None
        self._samples, self._activity, self._speech = np.zeros(0, np.float32), np.zeros(0, np.float32), np.zeros(0, bool)

    @property
    def _end_ns(self) -> int:
        return self._run_ns + self._first_step * STEP_NS + len(self._samples) * 1_000_000_000 // RATE_HZ

    def _utc(self, step: int) -> int:
        return self._run_ns + step * STEP_NS

    def _look(self) -> None:
        """Activity of the steps that are whole now."""
        known, whole = len(self._speech), len(self._samples) // STEP
        if whole == known:
            return
        start = max(0, known - CONTEXT_STEPS)
        found = self._voice.activity(self._samples[start * STEP : whole * STEP])[known - start :]
        fresh = np.zeros(whole - known, np.float32)
        fresh[: len(found)] = found[: len(fresh)]
        self._activity = np.concatenate([self._activity, fresh])
        self._speech = np.concatenate([self._speech, fresh >= self.rules.speech])
        for step in np.flatnonzero(self._speech[known:]) + known + self._first_step:
            self._note_speech(self._utc(int(step)))
        self._heard_until_ns = self._utc(self._first_step + whole)

    def _note_speech(self, at_ns: int) -> None:
        if self._spoken and at_ns - self._spoken[-1][1] <= STEP_NS:
            first, _ = self._spoken.pop()
            self._spoken.append((first, at_ns + STEP_NS))
        else:
            self._spoken.append((at_ns, at_ns + STEP_NS))

    # ------------------------------------------------------------------------------------------ closing

    def _close_ended(self) -> list[Turn]:
        turns: list[Turn] = []
        last = self._first_step + len(self._speech)
        step = self._settled
        silent = 0
        while step < last:
            is_speech = bool(self._speech[step - self._first_step])
            if self._open_at is None:
                if is_speech:
                    self._open_at = step
                else:
                    self._settled = step + 1
                step, silent = step + 1, 0
                continue
            silent = 0 if is_speech else silent + 1
            if silent > self._silence_steps:
                turns += self._turns_of(self._open_at, step - silent + 1)
                self._open_at, self._settled, silent = None, step + 1, 0
            elif step + 1 - self._open_at >= self._longest_steps:
                cut = self._quietest(step + 1 - self._longest_steps // 4, step + 1)
                turns += self._turns_of(self._open_at, cut)
                self._open_at, self._settled, silent, step = None, cut, 0, cut - 1
            step += 1
        return turns

    def _quietest(self, first: int, last: int) -> int:
        """The step in first..last with the least speech, where a long turn is cut."""
        return first + int(np.argmin(self._activity[first - self._first_step : last - self._first_step]))

    def _last_speech(self) -> int:
        where = np.flatnonzero(self._speech)
        return self._first_step + (int(where[-1]) if len(where) else 0)

    def _drop_old(self) -> None:
        open_at = self._open_at if self._open_at is not None else self._first_step + len(self._speech)
        keep = open_at - max(CONTEXT_STEPS, self._margin_steps)
        gone = keep - self._first_step
        if gone > 0:
            self._samples = self._samples[gone * STEP :].copy()
            self._speech, self._activity = self._speech[gone:], self._activity[gone:]
            self._first_step = keep
            self._settled = max(self._settled, keep)

    # ------------------------------------------------------------------------------------------ one turn

    def _turns_of(self, first: int, last: int) -> Iterator[Turn]:
        """The turns between two steps: parted where several speak at once and where the voice changes."""
        if (last - first) * STEP_NS < self.rules.least_s * 1e9:
            return
        samples = self._between(first, last)
        overlapped = np.zeros(last - first, bool)
        found = self._voice.overlap(samples)[: last - first]
        overlapped[: len(found)] = found >= self.rules.overlap
        least = max(1, round(self.rules.least_overlap_s * 1e9 / STEP_NS))
        for start, end in _stretches(~_runs_of(overlapped, least)):
            for part_start, part_end in self._by_voice(first + start, first + end):
                turn = self._turn(part_start, part_end)
                if turn is not None:
                    yield turn

    def _by_voice(self, first: int, last: int) -> list[tuple[int, int]]:
        """Steps first..last parted where the voice changes."""
        side = round(self.rules.side_s * 1e9 / STEP_NS)
        if last - first < 2 * side:
            return [(first, last)]
        middle = (first + last) // 2
        if self._alike(first, middle, last) >= self.rules.doubt:
            return [(first, last)]
        places = sorted({*range(first + side, last - side + 1, max(1, side // 2)), middle})
        likeness = [self._alike(first, place, last) for place in places]
        least = int(np.argmin(likeness))
        if likeness[least] >= self.rules.change:
            return [(first, last)]
        return [*self._by_voice(first, places[least]), *self._by_voice(places[least], last)]

    def _alike(self, first: int, place: int, last: int) -> float:
        """The cosine of the voices before and after a step, 1 where one of them cannot be told."""
        try:
            before = self._voice.encode(self._between(first, place))
            after = self._voice.encode(self._between(place, last))
        except BadInputError:
            return 1.0
        return before.similarity(after)

    def _turn(self, first: int, last: int) -> Turn | None:
        speech = np.flatnonzero(self._speech[first - self._first_step : last - self._first_step])
        if not len(speech):
            return None
        first, last = first + int(speech[0]), first + int(speech[-1]) + 1
        speech_s = len(speech) * STEP_NS / 1e9
        if speech_s < self.rules.least_s:
            return None
        try:
            embedding = self._voice.encode(self._between(first, last))
        except BadInputError:
            return None
        return Turn(self._camera_id, self._utc(first), self._utc(last), speech_s, embedding, self._loudness(first, last))

    def _between(self, first: int, last: int) -> Float32:
        return self._samples[(first - self._first_step) * STEP : (last - self._first_step) * STEP]

    def _loudness(self, first: int, last: int) -> Loudness:
        start = max(first - self._margin_steps, self._first_step)
        end = min(last + self._margin_steps, self._first_step + len(self._speech))
        return Loudness(self._utc(start), LOUD_STEP * 1_000_000_000 // RATE_HZ, loudness(self._between(start, end)))


def loudness(samples: Float32) -> Float32:
    """Decibels of every 10 ms of samples (N,) at 16 kHz, float32 (N // 160,), not below -60."""
    whole = len(samples) // LOUD_STEP
    power = np.square(samples[: whole * LOUD_STEP].astype(np.float64)).reshape(whole, LOUD_STEP).mean(axis=1)  # (L,)
    db: Float32 = np.maximum(10 * np.log10(power + 1e-12), QUIET_DB).astype(np.float32)
    return db


def _runs_of(mask: NDArray[np.bool_], least: int) -> NDArray[np.bool_]:
    """``mask`` (N,) without its runs of True shorter than ``least``."""
    kept = np.zeros_like(mask)
    for start, end in _stretches(mask):
        kept[start:end] = end - start >= least
    return kept


def _stretches(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last + 1 of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]
