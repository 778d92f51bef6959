"""Sound to speaker turns, with speakers that are tones."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import BadInputError
from pipeline.types import Sound
from pipeline.voice.turns import SpeakerTurns, Turn, TurnRules, loudness
from tests.fakes import NOON_NS, S
from tests.voices import ANNA_HZ, BERT_HZ, RATE_HZ, ToneVoices, pieces, silence, tone


def turns_of(samples: np.ndarray, piece_s: float = 1.0, voice: ToneVoices | None = None, rules: TurnRules | None = None) -> list[Turn]:
    stage = SpeakerTurns(voice or ToneVoices(), rules)
    found = [turn for sound in pieces(samples, NOON_NS, piece_s=piece_s) for turn in stage.hear(sound)]
    return found + stage.finish()


def spans(turns: list[Turn]) -> list[tuple[float, float]]:
    """Starts and ends in seconds after noon."""
    return [(round((turn.started_at_ns - NOON_NS) / S, 1), round((turn.ended_at_ns - NOON_NS) / S, 1)) for turn in turns]


def test_a_silence_ends_a_turn_and_a_breath_does_not() -> None:
    samples = np.concatenate([silence(0.5), tone(1.0, ANNA_HZ), silence(0.2), tone(1.0, ANNA_HZ), silence(0.8), tone(1.5, ANNA_HZ)])
    assert spans(turns_of(samples)) == [(0.5, 2.7), (3.5, 5.0)]


def test_less_than_the_least_of_speech_is_no_turn() -> None:
    assert turns_of(np.concatenate([tone(0.6, ANNA_HZ), silence(1.0), tone(0.3, ANNA_HZ)])) == []


def test_pauses_do_not_count_as_speech() -> None:
    turns = turns_of(np.concatenate([tone(0.6, ANNA_HZ), silence(0.3), tone(0.6, ANNA_HZ), silence(1.0)]))
    assert len(turns) == 1
    assert turns[0].speech_s == pytest.approx(1.2, abs=0.1)


def test_a_long_speech_is_cut_and_nothing_of_it_is_lost() -> None:
    turns = turns_of(tone(20.0, ANNA_HZ))
    assert len(turns) == 3
    assert all((turn.ended_at_ns - turn.started_at_ns) / S <= 8.0 for turn in turns)
    assert sum(turn.speech_s for turn in turns) == pytest.approx(20.0, abs=0.2)


def test_another_voice_begins_another_turn_without_any_pause() -> None:
    turns = turns_of(np.concatenate([tone(2.5, ANNA_HZ), tone(3.0, BERT_HZ), silence(1.0)]))
    assert len(turns) == 2
    assert turns[0].ended_at_ns == pytest.approx(NOON_NS + 2.5 * S, abs=0.5 * S)
    assert turns[0].embedding.vector[0] > 0.9
    assert turns[1].embedding.vector[1] > 0.9


def test_moments_at_which_two_speak_belong_to_nobody() -> None:
    samples = np.concatenate([tone(1.5, ANNA_HZ), tone(1.0, ANNA_HZ, loud=0.9), tone(1.5, ANNA_HZ), silence(1.0)])
    assert spans(turns_of(samples)) == [(0.0, 1.5), (2.5, 4.0)]


def test_a_gap_in_the_sound_closes_the_turn_and_time_goes_on_after_it() -> None:
    stage = SpeakerTurns(ToneVoices())
    assert stage.hear(Sound("north", NOON_NS, tone(1.5, ANNA_HZ), RATE_HZ)) == []
    closed = stage.hear(Sound("north", NOON_NS + 60 * S, tone(1.5, ANNA_HZ), RATE_HZ))
    assert spans(closed) == [(0.0, 1.5)]
    assert spans(stage.finish()) == [(60.0, 61.5)]


def test_sound_that_starts_again_earlier_is_a_new_run() -> None:
    stage = SpeakerTurns(ToneVoices())
    stage.hear(Sound("north", NOON_NS, tone(1.5, ANNA_HZ), RATE_HZ))
    assert spans(stage.hear(Sound("north", NOON_NS - 10 * S, silence(1.0), RATE_HZ))) == [(0.0, 1.5)]


@pytest.mark.parametrize("piece_s", [0.01, 0.37, 1.0, 5.0])
def test_the_length_of_the_pieces_changes_nothing(piece_s: float) -> None:
    samples = np.concatenate([silence(0.3), tone(1.0, ANNA_HZ), silence(0.7), tone(2.0, BERT_HZ), silence(1.0)])
    whole = turns_of(samples)
    cut = turns_of(samples, piece_s)
    assert [(t.started_at_ns, t.ended_at_ns, t.speech_s) for t in cut] == [(t.started_at_ns, t.ended_at_ns, t.speech_s) for t in whole]
    np.testing.assert_array_equal([t.embedding.vector for t in cut], [t.embedding.vector for t in whole])


def test_memory_is_bounded_by_the_longest_turn() -> None:
    voice = ToneVoices()
    turns_of(np.concatenate([tone(60.0, ANNA_HZ), silence(60.0), tone(5.0, ANNA_HZ)]), voice=voice)
    assert voice.longest <= 10 * RATE_HZ
    assert max(voice.encoded_s) <= 8.0


def test_an_endless_sound_keeps_little(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = SpeakerTurns(ToneVoices())
    for sound in pieces(silence(120.0), NOON_NS):
        stage.hear(sound)
    assert len(stage._samples) < 3 * RATE_HZ


def test_speech_is_known_where_it_was_heard() -> None:
    stage = SpeakerTurns(ToneVoices())
    for sound in pieces(np.concatenate([silence(1.0), tone(1.0, ANNA_HZ), silence(1.0)]), NOON_NS):
        stage.hear(sound)
    assert stage.heard_until_ns == pytest.approx(NOON_NS + 3 * S, abs=0.04 * S)
    assert stage.spoke_within(NOON_NS + S, NOON_NS + S + S // 2)
    assert not stage.spoke_within(NOON_NS, NOON_NS + S // 2)
    assert not stage.spoke_within(NOON_NS + 5 * S // 2, NOON_NS + 3 * S)


def test_another_rate_is_refused() -> None:
    with pytest.raises(BadInputError, match="must be 16000, got 8000"):
        SpeakerTurns(ToneVoices()).hear(Sound("north", NOON_NS, tone(1.0, ANNA_HZ), 8000))


def test_noise_that_is_no_number_is_silence() -> None:
    broken = tone(1.0, ANNA_HZ)
    broken[::2] = np.nan
    assert len(turns_of(np.concatenate([broken, silence(1.0)]))) == 1


def test_a_damaged_stream_gives_no_number_beyond_full_scale() -> None:
    class Noting(ToneVoices):
        loudest = 0.0

        def activity(self, samples: np.ndarray) -> np.ndarray:
            self.loudest = max(self.loudest, float(np.abs(samples).max()))
            return super().activity(samples)

    voice, broken = Noting(), tone(1.0, ANNA_HZ)
    broken[::999], broken[5::999], broken[7::999] = np.inf, -np.inf, 1e30
    assert len(turns_of(np.concatenate([broken, silence(1.0)]), voice=voice)) == 1
    assert voice.loudest <= 1.0


def test_loudness_is_in_decibels_of_ten_milliseconds() -> None:
    loud = loudness(np.concatenate([silence(0.1), tone(0.1, 1000.0, loud=1.0)]))
    assert loud.shape == (20,)
    assert loud[0] == -60
    assert loud[-1] == pytest.approx(-3.0, abs=0.1)
