"""One camera's ears: sound and pictures of the same moments to speaker turns and the people they belong to.

Sound and pictures come apart, either may be ahead. A turn is judged when the pictures have passed its end; the mouths of the people in view
are read only around moments in which somebody spoke, and pixels are held only until the sound of their moment was heard.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import feet, inside_polygon
from pipeline.ports import Head, LipReader, VoiceEncoder
from pipeline.types import Camera, Frame, Sound
from pipeline.voice import MICROPHONE_ZONE
from pipeline.voice.attribution import AttributionRules, LipMotion, Presence, Verdict, attribute
from pipeline.voice.turns import SpeakerTurns, Turn, TurnRules

SECOND_NS = 1_000_000_000
MARGIN_NS = SpeakerTurns.MARGIN_NS  # around a turn: lips that were still before it and move in it say most
UNHEARD_NS = 4 * SECOND_NS  # pictures whose sound has not come by then are let go
HEADS_AT_ONCE = 8  # people, the largest, whose mouths are looked at in one picture
LEAST_HEAD_PX = 40
HEAD_SIDE_PX = 192  # a larger head is thinned
HEAD_SHARE = 0.4  # of a standing person's box; of a lower box its upper square


@dataclass(frozen=True, slots=True, eq=False)
class Spoken:
    """A speaker turn and whose it is."""

    turn: Turn
    verdict: Verdict


@dataclass(slots=True, eq=False)
class _Person:
    """What is remembered of somebody in view: when, whether in the microphone's zone, and how the mouth moved."""

    is_confirmed: bool = False
    seen_ns: deque[int] = field(default_factory=deque)
    zone_ns: deque[int] = field(default_factory=deque)
    waiting: deque[Head] = field(default_factory=deque)  # the sound of their moments was not heard yet
    last: Head | None = None  # the last one read
    lips: deque[tuple[int, float]] = field(default_factory=deque)


class Listening:
    """Turns of one camera, in the order of their ends. Memory is bounded by the longest turn, not by the stream."""

    def __init__(
        self,
        camera: Camera,
        voice: VoiceEncoder,
        lips: LipReader | None = None,
        turn_rules: TurnRules | None = None,
        rules: AttributionRules | None = None,
    ) -> None:
        """lips: None where mouths are not to be read. The camera's option ``microphone_zone`` names one of its zones."""
        self._camera = camera
        self._turns = SpeakerTurns(voice, turn_rules)
        self._lips = lips
        self._rules = rules or AttributionRules()
        self._zone = str(camera.options.get(MICROPHONE_ZONE, ""))
        if self._zone not in camera.zones:
            self._zone = ""
        self._keep_ns = round((self._turns.rules.longest_s + self._turns.rules.silence_s + 8.0) * 1e9)
        self._people: dict[str, _Person] = {}
        self._pictures_ns: deque[int] = deque()
        self._closed: deque[Turn] = deque()  # turns whose end the pictures have not passed

    @property
    def zone(self) -> str:
        """The microphone's zone, "" where it has none."""
        return self._zone

    def hear(self, sound: Sound) -> None:
        """Take in the next piece of sound."""
        self._closed.extend(self._turns.hear(sound))
        heard_ns = self._turns.heard_until_ns
        if heard_ns is not None:
            self._read_lips(heard_ns - MARGIN_NS)

    def see(self, frame: Frame, tracklet_ids: Sequence[str], xyxy: NDArray[np.float32], is_confirmed: Sequence[bool]) -> None:
        """Take in the N people tracked in a frame: ids, boxes (N, 4), and whether each is confirmed."""
        at_ns = frame.captured_at_ns
        self._pictures_ns.append(at_ns)
        self._drop_before(at_ns - self._keep_ns)
        if not len(tracklet_ids):
            return
        in_zone = inside_polygon(feet(xyxy), self._camera.zones[self._zone]) if self._zone else np.zeros(len(xyxy), bool)
        largest = set(np.argsort(-(xyxy[:, 3] - xyxy[:, 1]), kind="stable")[:HEADS_AT_ONCE].tolist())
        for row, tracklet_id in enumerate(tracklet_ids):
            person = self._people.setdefault(tracklet_id, _Person())
            person.is_confirmed = person.is_confirmed or bool(is_confirmed[row])
            person.seen_ns.append(at_ns)
            if in_zone[row]:
                person.zone_ns.append(at_ns)
            if self._lips is not None and row in largest:
                head = head_of(frame, xyxy[row])
                if head is not None:
                    person.waiting.append(head)
            while person.waiting and at_ns - person.waiting[0].at_ns > UNHEARD_NS:
                person.waiting.popleft()

    def forget(self, tracklet_ids: Sequence[str]) -> None:
        """These were nobody, or somebody who has another id."""
        for tracklet_id in tracklet_ids:
            self._people.pop(tracklet_id, None)

    def ready(self, now_ns: int) -> list[Spoken]:
        """The turns whose end the pictures have passed at ``now_ns``, judged."""
        spoken = []
        while self._closed and now_ns >= self._closed[0].ended_at_ns + MARGIN_NS:
            spoken.append(self._judge(self._closed.popleft()))
        return spoken

    def finish(self) -> list[Spoken]:
        """Pictures and sound are over: every turn, judged."""
        self._closed.extend(self._turns.finish())
        spoken = [self._judge(turn) for turn in self._closed]
        self._closed.clear()
        return spoken

    def is_awaited(self, tracklet_id: str) -> bool:
        """Whether a turn that is not judged yet could still become this person's."""
        return tracklet_id in self._people

    # ------------------------------------------------------------------------------------------ lips

    def _read_lips(self, until_ns: int) -> None:
        """Read the mouths of the waiting pictures before ``until_ns`` that lie near speech; the others are let go."""
        for person in self._people.values():
            batch: list[Head] = [person.last] if person.last is not None else []
            held = len(batch)
            while person.waiting and person.waiting[0].at_ns <= until_ns:
                head = person.waiting.popleft()
                if self._turns.spoke_within(head.at_ns - MARGIN_NS, head.at_ns + MARGIN_NS):
                    batch.append(head)
                    continue
                self._read(person, batch, held)
                batch, held, person.last = [], 0, None
            self._read(person, batch, held)

    def _read(self, person: _Person, batch: list[Head], held: int) -> None:
        """held: how many at the start were read before."""
        if self._lips is None or len(batch) <= held:
            return
        motion = self._lips.read(batch)
        person.lips.extend((head.at_ns, float(value)) for head, value in zip(batch[held:], motion[held:], strict=True))
        person.last = batch[-1]

    # ------------------------------------------------------------------------------------------ judging

    def _judge(self, turn: Turn) -> Spoken:
        self._read_lips(turn.ended_at_ns + MARGIN_NS)
        pictures = _count(self._pictures_ns, turn)
        people = []
        for tracklet_id, person in self._people.items():
            seen = _count(person.seen_ns, turn)
            if seen:
                in_zone = _count(person.zone_ns, turn) / seen
                people.append(Presence(tracklet_id, person.is_confirmed, seen / max(pictures, 1), in_zone, _motion(person)))
        pictures_hz = pictures * 1e9 / max(turn.ended_at_ns - turn.started_at_ns, 1)
        return Spoken(turn, attribute(turn, people, self._zone, pictures_hz, self._rules))

    def _drop_before(self, before_ns: int) -> None:
        _drop(self._pictures_ns, before_ns)
        gone = []
        for tracklet_id, person in self._people.items():
            _drop(person.seen_ns, before_ns)
            _drop(person.zone_ns, before_ns)
            while person.lips and person.lips[0][0] < before_ns:
                person.lips.popleft()
            if not person.seen_ns:
                gone.append(tracklet_id)
        self.forget(gone)


def head_of(frame: Frame, box: NDArray[np.float32]) -> Head | None:
    """The upper part of a person, thinned where it is large; None where it is too small for lips."""
    width, height = float(box[2] - box[0]), float(box[3] - box[1])
    lower = float(box[1]) + max(HEAD_SHARE * height, min(height, width))
    x1, y1 = max(0, round(float(box[0]))), max(0, round(float(box[1])))
    x2, y2 = min(frame.width, round(float(box[2]))), min(frame.height, round(lower))
    if x2 - x1 < LEAST_HEAD_PX or y2 - y1 < LEAST_HEAD_PX:
        return None
    grey = frame.bgr[y1:y2, x1:x2, 1]  # green: lips and skin differ most in it
    step = max(1, min(grey.shape) // HEAD_SIDE_PX)
    if step == 1:
        return Head(frame.captured_at_ns, grey.copy(), float(x1), float(y1))
    rows, columns = grey.shape[0] // step, grey.shape[1] // step
    blocks = grey[: rows * step, : columns * step].reshape(rows, step, columns, step)
    return Head(frame.captured_at_ns, blocks.mean(axis=(1, 3)).astype(np.uint8), float(x1), float(y1), float(step))


def _count(moments_ns: deque[int], turn: Turn) -> int:
    return sum(turn.started_at_ns <= moment <= turn.ended_at_ns for moment in moments_ns)


def _motion(person: _Person) -> LipMotion | None:
    if not person.lips:
        return None
    return LipMotion(np.asarray([at for at, _ in person.lips], np.int64), np.asarray([value for _, value in person.lips], np.float32))


def _drop(moments_ns: deque[int], before_ns: int) -> None:
    while moments_ns and moments_ns[0] < before_ns:
        moments_ns.popleft()
