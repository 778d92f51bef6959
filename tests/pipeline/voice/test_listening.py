"""One camera's ears: sound and pictures of the same moments, to turns and the people they belong to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.types import Camera, Frame, Sound
from pipeline.voice.attribution import AttributionRules
from pipeline.voice.listening import HEADS_AT_ONCE, Listening, Spoken, head_of
from tests.fakes import NOON_NS, S
from tests.voices import ANNA_HZ, RATE_HZ, BrightMouths, ToneVoices, babbled, pieces, silence

HZ = 25
SIDE = 80
Box = tuple[float, float, float, float]
LEFT: Box = (0, 0, SIDE, SIDE)
RIGHT: Box = (SIDE, 0, 2 * SIDE, SIDE)


def speech() -> np.ndarray:
    return np.concatenate([silence(0.8), babbled(3.0, ANNA_HZ), silence(1.2)])


def loudness_at(samples: np.ndarray, at_s: float) -> float:
    start = int(at_s * RATE_HZ)
    return float(np.abs(samples[start : start + RATE_HZ // HZ]).max(initial=0.0))


def a_frame(at_s: float, *brightness: float) -> Frame:
    """Heads of some brightness side by side."""
    cells = [np.full((SIDE, SIDE, 3), np.clip(bright, 0, 255), np.uint8) for bright in brightness]
    return Frame("north", NOON_NS + round(at_s * S), np.concatenate(cells, axis=1))


def watch(listening: Listening, samples: np.ndarray, sounds: Sequence[Sound], people: Sequence[str], hz: float = HZ) -> list[Spoken]:
    """Pictures in which the mouth on the left moves with the sound and the other rests; sound comes just ahead of them."""
    waiting, spoken = list(sounds), []
    for number in range(int(len(samples) / RATE_HZ * hz)):
        at_s = number / hz
        frame = a_frame(at_s, 20 + 600 * loudness_at(samples, at_s), 60)
        while waiting and waiting[0].started_at_ns <= frame.captured_at_ns:
            listening.hear(waiting.pop(0))
        boxes = np.asarray([LEFT, RIGHT][: len(people)], np.float32)
        listening.see(frame, people, boxes, [True] * len(people))
        spoken += listening.ready(frame.captured_at_ns)
    return spoken + listening.finish()


def ears(camera: Camera | None = None) -> Listening:
    return Listening(camera or Camera("north", "film"), ToneVoices(), BrightMouths())


def owners(spoken: Sequence[Spoken]) -> list[str | None]:
    return [each.verdict.tracklet_id for each in spoken]


def test_the_turn_of_whoever_moves_the_lips_is_theirs() -> None:
    samples = speech()
    assert owners(watch(ears(), samples, pieces(samples, NOON_NS), ["a", "b"])) == ["a"]


def test_the_same_sound_and_pictures_give_the_same_turns() -> None:
    samples = speech()
    first, second = (watch(ears(), samples, pieces(samples, NOON_NS), ["a", "b"]) for _ in range(2))
    assert [(s.turn.started_at_ns, s.verdict) for s in first] == [(s.turn.started_at_ns, s.verdict) for s in second]
    np.testing.assert_array_equal(first[0].turn.embedding.vector, second[0].turn.embedding.vector)


def test_sound_that_comes_two_seconds_late_finds_its_pictures_again() -> None:
    samples = speech()
    late = [Sound("north", each.started_at_ns, each.samples, RATE_HZ) for each in pieces(samples, NOON_NS)]
    listening = ears(Camera("north", "film", is_live=True))
    spoken: list[Spoken] = []
    for number in range(7 * HZ):
        at_s = number / HZ
        while late and late[0].started_at_ns + 2 * S <= NOON_NS + at_s * S:
            listening.hear(late.pop(0))
        listening.see(
            a_frame(at_s, 20 + 600 * loudness_at(samples, at_s), 60), ["a", "b"], np.asarray([LEFT, RIGHT], np.float32), [True, True]
        )
        spoken += listening.ready(NOON_NS + round(at_s * S))
    assert owners(spoken) == ["a"]


def test_at_five_pictures_a_second_lips_are_not_read() -> None:
    samples = speech()
    spoken = watch(ears(), samples, pieces(samples, NOON_NS), ["a"], hz=5)
    assert owners(spoken) == [None]
    assert "lips could not be read at 5." in spoken[0].verdict.why


def test_a_turn_with_nobody_in_view_is_nobodys() -> None:
    samples = speech()
    spoken = watch(ears(), samples, pieces(samples, NOON_NS), [])
    assert [each.verdict.why for each in spoken] == ["nobody in view"]


def test_mouths_are_read_only_around_speech() -> None:
    mouths = BrightMouths()
    samples = np.concatenate([silence(20.0), babbled(2.0, ANNA_HZ), silence(20.0)])
    watch(Listening(Camera("north", "film"), ToneVoices(), mouths), samples, pieces(samples, NOON_NS), ["a"])
    assert 2 * HZ <= mouths.read_heads <= 4 * HZ


def test_little_is_held_however_long_it_lasts() -> None:
    listening = ears()
    samples = babbled(60.0, ANNA_HZ)
    watch(listening, samples, pieces(samples, NOON_NS), ["a", "b"])
    assert len(listening._pictures_ns) < 20 * HZ
    assert all(len(person.lips) < 20 * HZ and len(person.waiting) < 4 * HZ for person in listening._people.values())


def test_pictures_whose_sound_never_comes_are_let_go() -> None:
    listening = ears()
    for number in range(30 * HZ):
        listening.see(a_frame(number / HZ, 50), ["a"], np.asarray([LEFT], np.float32), [True])
    assert len(listening._people["a"].waiting) <= 4 * HZ + 1


def test_of_a_crowd_the_nearest_are_read() -> None:
    mouths = BrightMouths()
    listening = Listening(Camera("north", "film"), ToneVoices(), mouths)
    boxes = np.asarray([[0, 0, 60, 60 + number] for number in range(20)], np.float32)
    listening.see(a_frame(0, 50, 50), [str(number) for number in range(20)], boxes, [True] * 20)
    assert sum(len(person.waiting) for person in listening._people.values()) == HEADS_AT_ONCE
    assert listening._people["19"].waiting
    assert not listening._people["0"].waiting


def test_whoever_stands_in_the_microphones_zone_speaks() -> None:
    camera = Camera(
        "north", "film", zones={"counter": ((0, 0), (SIDE, 0), (SIDE, SIDE + 1), (0, SIDE + 1))}, options={"microphone_zone": "counter"}
    )
    samples = speech()
    spoken = watch(Listening(camera, ToneVoices(), None), samples, pieces(samples, NOON_NS), ["a", "b"])
    assert owners(spoken) == ["a"]
    assert spoken[0].verdict.why == "alone in the microphone's zone counter"


def test_a_forgotten_track_was_nobody() -> None:
    listening = Listening(Camera("north", "film"), ToneVoices(), None, rules=AttributionRules(single_visible=True))
    samples = speech()
    for sound in pieces(samples, NOON_NS):
        listening.hear(sound)
    for number in range(5 * HZ):
        listening.see(a_frame(number / HZ, 50, 50), ["a", "ghost"], np.asarray([LEFT, RIGHT], np.float32), [True, False])
    assert listening.ready(NOON_NS) == []
    listening.forget(["ghost"])
    assert owners(listening.ready(NOON_NS + 6 * S)) == ["a"]


def test_a_head_is_the_upper_square_of_a_low_box_and_the_top_of_a_tall_one() -> None:
    frame = Frame("north", NOON_NS, np.zeros((600, 600, 3), np.uint8))
    bust, standing, far = (head_of(frame, np.asarray(box, np.float32)) for box in ((0, 0, 100, 100), (0, 0, 100, 500), (0, 0, 30, 90)))
    assert bust is not None
    assert bust.grey.shape == (100, 100)
    assert standing is not None
    assert standing.grey.shape == (200, 100)
    assert far is None
    near = head_of(frame, np.asarray([0, 0, 500, 600], np.float32))
    assert near is not None
    assert near.scale == 2
    assert near.grey.shape == (250, 250)
