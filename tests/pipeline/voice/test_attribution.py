"""Whose turn it is: mouths that move with the sound, and those that do not."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.voice.attribution import AttributionRules, LipMotion, Presence, attribute, lip_fit
from pipeline.voice.turns import Loudness, Turn
from tests.fakes import NOON_NS, S, embedding
from tests.voices import syllables

HZ = 25
SECONDS = 4.0


def level(at_s: np.ndarray, seed: int) -> np.ndarray:
    """Loudness -30..0 dB: syllables with silence before and after."""
    spoken = 20 * np.log10(np.interp(at_s, *syllables(SECONDS, seed)))
    return np.where((at_s > 0.5) & (at_s < SECONDS - 0.5), spoken, -30.0)


def moving(at_s: np.ndarray, seed: int) -> np.ndarray:
    """A mouth moves while it is loud, and most where that changes."""
    loud = level(at_s, seed)
    return 2 + loud / 25 + 0.3 * np.abs(np.gradient(loud))


def a_turn(seed: int = 0) -> Turn:
    at_s = (np.arange(int(SECONDS * 100)) + 0.5) / 100
    heard = Loudness(NOON_NS, S // 100, level(at_s, seed).astype(np.float32))
    return Turn("north", NOON_NS + S // 2, NOON_NS + int((SECONDS - 0.5) * S), 3.0, embedding("voice", 1, 0), heard)


def lips(seed: int | None, hz: float = HZ, late_s: float = 0.0, noise: float = 0.1) -> LipMotion:
    """A mouth that speaks with the loudness of ``seed``, or rests (None)."""
    at_s = np.arange(int(SECONDS * hz)) / hz
    motion = np.zeros(len(at_s)) if seed is None else moving(at_s - late_s, seed)
    motion += np.abs(np.random.default_rng(7).normal(0, noise, len(at_s)))
    return LipMotion(NOON_NS + (at_s * S).astype(np.int64), motion.astype(np.float32))


def chewing(seed: int) -> LipMotion:
    """A mouth that is never at rest, and not because of this sound."""
    mouth = lips(None)
    at_s = (mouth.at_ns - NOON_NS) / S
    return LipMotion(mouth.at_ns, (mouth.motion + 2 * np.interp(at_s, *syllables(SECONDS, seed))).astype(np.float32))


def person(name: str, mouth: LipMotion | None = None, share: float = 1.0, in_zone: float = 0.0, is_confirmed: bool = True) -> Presence:
    return Presence(name, is_confirmed, share, in_zone, mouth)


def test_one_in_view_whose_lips_move_with_the_sound_is_the_speaker() -> None:
    verdict = attribute(a_turn(), [person("anna", lips(0))])
    assert verdict.tracklet_id == "anna"
    assert verdict.confidence > 0.8
    assert "lips move with the sound" in verdict.why


def test_one_in_view_whose_lips_rest_is_not() -> None:
    verdict = attribute(a_turn(), [person("anna", lips(None))])
    assert verdict.tracklet_id is None
    assert "do not move with the sound" in verdict.why


def test_one_in_view_who_chews_is_not() -> None:
    named = [attribute(a_turn(), [person("anna", chewing(seed))]).tracklet_id for seed in range(1, 21)]
    assert sum(each is not None for each in named) <= 1


def test_lips_unread_are_enough_only_where_the_settings_say_so() -> None:
    alone = [person("anna")]
    careful, trusting = attribute(a_turn(), alone), attribute(a_turn(), alone, rules=AttributionRules(single_visible=True))
    assert careful.tracklet_id is None
    assert "lips could not be read" in careful.why
    assert (trusting.tracklet_id, trusting.confidence) == ("anna", 0.5)


def test_slow_pictures_are_named_as_the_reason() -> None:
    slow = attribute(a_turn(), [person("anna", lips(0, hz=5))], pictures_hz=5.0)
    assert slow.tracklet_id is None
    assert slow.why == "alone in view, lips could not be read at 5.0 pictures a second, 8 are needed"


def test_resting_lips_outweigh_the_settings() -> None:
    assert attribute(a_turn(), [person("anna", lips(None))], rules=AttributionRules(single_visible=True)).tracklet_id is None


@pytest.mark.parametrize("others", [1, 2, 3])
def test_of_several_it_is_the_one_whose_lips_fit(others: int) -> None:
    people = [person("anna", lips(0)), *(person(f"other {seed}", chewing(seed)) for seed in range(1, others + 1))]
    verdict = attribute(a_turn(), people)
    assert verdict.tracklet_id == "anna"
    assert f"among {others + 1} in view" in verdict.why


def test_two_whose_lips_fit_alike_leave_it_open() -> None:
    verdict = attribute(a_turn(), [person("anna", lips(0)), person("echo", lips(0, noise=0.2))])
    assert verdict.tracklet_id is None
    assert "two whose lips fit the sound" in verdict.why


def test_several_without_lips_leave_it_open() -> None:
    assert attribute(a_turn(), [person("anna"), person("bert")], rules=AttributionRules(single_visible=True)).tracklet_id is None


def test_an_unread_mouth_beside_makes_it_less_sure() -> None:
    both = attribute(a_turn(), [person("anna", lips(0)), person("bert", lips(None))])
    unread = attribute(a_turn(), [person("anna", lips(0)), person("bert")])
    assert unread.tracklet_id == both.tracklet_id == "anna"
    assert unread.confidence < both.confidence


def test_who_came_half_way_or_is_not_confirmed_is_not_named() -> None:
    assert attribute(a_turn(), [person("anna", lips(0), share=0.5)]).tracklet_id is None
    assert attribute(a_turn(), [person("anna", lips(0), is_confirmed=False)]).tracklet_id is None


def test_nobody_in_view_is_said() -> None:
    assert attribute(a_turn(), []).why == "nobody in view"
    assert attribute(a_turn(), [person("anna", share=0.05)]).why == "nobody in view"


def test_whoever_stands_alone_in_the_microphones_zone_is_the_speaker() -> None:
    people = [person("anna", in_zone=1.0), person("bert", in_zone=0.0)]
    verdict = attribute(a_turn(), people, zone="counter")
    assert (verdict.tracklet_id, verdict.confidence) == ("anna", 0.8)
    assert verdict.why == "alone in the microphone's zone counter"


def test_two_in_the_microphones_zone_are_told_apart_by_lips_alone() -> None:
    unread = [person("anna", in_zone=1.0), person("bert", in_zone=1.0)]
    assert attribute(a_turn(), unread, zone="counter").tracklet_id is None
    read = [person("anna", lips(0), in_zone=1.0), person("bert", chewing(1), in_zone=1.0)]
    assert attribute(a_turn(), read, zone="counter").tracklet_id == "anna"


def test_resting_lips_outweigh_the_zone() -> None:
    assert attribute(a_turn(), [person("anna", lips(None), in_zone=1.0)], zone="counter").tracklet_id is None


def test_the_fit_survives_sound_a_little_out_of_time_and_not_much_more() -> None:
    near, far = lip_fit(a_turn().loudness, lips(0, late_s=0.12)), lip_fit(a_turn().loudness, lips(0, late_s=0.8))
    assert near is not None
    assert far is not None
    assert near.value > 0.6
    assert far.value < 0.4


def test_a_mouth_seen_too_seldom_or_too_briefly_is_unread() -> None:
    gone = lips(0)
    motion = gone.motion.copy()
    motion[::2] = np.nan
    motion[:60] = np.nan
    assert lip_fit(a_turn().loudness, LipMotion(gone.at_ns, motion)) is None
    assert lip_fit(a_turn().loudness, LipMotion(gone.at_ns[:3], gone.motion[:3])) is None
    assert lip_fit(a_turn().loudness, None) is None
