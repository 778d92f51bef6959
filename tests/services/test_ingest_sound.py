"""Sound on the ingest line: voices join the people in view, turns of nobody stand alone, and no fault of the sound stops the pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.alert import AlertStage
from pipeline.embed import EmbedStage
from pipeline.errors import SourceUnavailableError, UnreadableMediaError
from pipeline.ports import Capture
from pipeline.search.stage import SearchStage
from pipeline.track.stage import Tracker, TrackerSettings, TrackUpdates
from pipeline.types import VOICE, Alert, Camera, CameraCoverage, Detections, Filter, Frame, Probe, Query, Sound, Tracklet, Watch
from pipeline.voice.attribution import Verdict
from pipeline.voice.listening import Listening, Spoken
from pipeline.voice.turns import Loudness, Turn
from services import wire
from services.adapters.faiss_gallery import FaissGallery
from services.adapters.pyav_capture import PyAvCapture
from services.contact_sheet import contact_sheet
from services.footage import _with_zones
from services.ingest import IngestLine, TrackAndEmbed
from services.listening import MOST_TURNS, Ears
from services.settings import Settings
from services.sinks import Publication
from tests.fakes import NOON_NS, ColourLooks, InMemoryGallery, InMemoryMedia, a_tracklet, embedding
from tests.voices import ANNA_HZ, RATE_HZ, BrightMouths, ToneVoices, babbled, silence

HZ = 25
PERSON = (40, 20, 136, 140)  # box of the one person, in view from 0.2 s to the end unless said otherwise


class OneInView:
    """A detector that sees one person in every bright enough picture."""

    name = "one"

    def detect(self, frames: Sequence[Frame]) -> list[Detections]:
        somebody = Detections(np.asarray([PERSON], np.float32), np.asarray([0.9], np.float32))
        return [somebody if frame.bgr[25:60, 45:130].mean() > 30 else Detections.none() for frame in frames]


class ListSink:
    def __init__(self) -> None:
        self.tracklets: list[Tracklet] = []

    def publish(self, publication: Publication) -> None:
        self.tracklets.append(publication.tracklet)

    def cover(self, coverage: CameraCoverage) -> None: ...

    def flush(self) -> None: ...


def speech(before_s: float = 1.0, after_s: float = 1.2) -> np.ndarray:
    return np.concatenate([silence(before_s), babbled(2.5, ANNA_HZ), silence(after_s)])


def make_clip(path: Path, samples: np.ndarray | None, seconds: float, leaves_s: float = 1e9, moves: bool = True) -> Path:
    """A person whose brightness goes with the sound until it leaves; samples None: no sound track."""
    with av.open(str(path), "w") as out:
        video: Any = out.add_stream("mpeg4", rate=HZ)
        video.width, video.height, video.pix_fmt, video.bit_rate = 176, 144, "yuv420p", 2_000_000
        sound: Any = out.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono") if samples is not None else None
        texture = np.random.default_rng(0).integers(0, 30, (120, 96, 3))
        for number in range(round(seconds * HZ)):
            picture = np.zeros((144, 176, 3), np.uint8)
            if number / HZ < leaves_s:
                start = number * RATE_HZ // HZ
                loud = 0.0 if samples is None else float(np.abs(samples[start : start + RATE_HZ // HZ]).max(initial=0.0))
                picture[20:140, 40:136] = np.clip(texture + 60 + (400 * loud if moves else 0), 0, 255)
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = number, Fraction(1, HZ)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if sound is not None and samples is not None:
            whole = av.AudioFrame.from_ndarray((samples * 32767).astype(np.int16)[None], format="s16", layout="mono")
            whole.sample_rate, whole.pts = RATE_HZ, 0
            out.mux(sound.encode(whole))
            out.mux(sound.encode(None))
    return path


class Heard:
    """Makes the ears of a camera with fakes, and counts how often networks were asked for."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.loads = 0
        self._fails = fails

    def __call__(self, camera: Camera) -> Listening:
        self.loads += 1
        if self._fails is not None:
            raise self._fails
        return Listening(camera, ToneVoices(), BrightMouths())


def run(capture: Capture, heard: Heard) -> list[Tracklet]:
    """What the line publishes."""

    def stages(camera: Camera) -> TrackAndEmbed:
        tracker = Tracker(camera.camera_id, TrackerSettings(lost_after_s=0.4))
        return TrackAndEmbed(tracker, EmbedStage(camera, ColourLooks()), ears=Ears(camera, heard))

    sink = ListSink()
    IngestLine([capture], OneInView(), stages, sink).run()
    return sink.tracklets


def play(path: Path, heard: Heard | None = None, **changes: Any) -> list[Tracklet]:
    return run(PyAvCapture(Camera("gate", str(path), starts_at_ns=NOON_NS, **changes)), heard or Heard())


def seen(tracklets: Sequence[Tracklet]) -> list[Tracklet]:
    return [each for each in tracklets if len(each.at_ns)]


def only_heard(tracklets: Sequence[Tracklet]) -> list[Tracklet]:
    return [each for each in tracklets if not len(each.at_ns)]


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = speech()
    return make_clip(tmp_path_factory.mktemp("clips") / "talking.mkv", samples, len(samples) / RATE_HZ)


def test_the_voice_of_the_one_who_speaks_joins_the_tracklet(talking: Path) -> None:
    tracklets = play(talking)
    last = seen(tracklets)[-1]
    voice = last.embedding(VOICE)
    assert last.is_closed
    assert voice is not None
    assert voice.vector[0] > 0.99
    assert 0.3 < voice.quality <= 0.7
    assert "fake-voice@1" in last.model_versions
    assert next(a.value for a in last.attributes if a.name == "voice").startswith("alone in view, lips move with the sound")
    assert only_heard(tracklets) == []


def test_revisions_rise_by_one_whoever_made_them(talking: Path) -> None:
    tracklets = play(talking)
    assert len({each.tracklet_id for each in tracklets}) == 1
    assert [each.revision for each in tracklets] == list(range(1, len(tracklets) + 1))
    assert len(tracklets) >= 3  # confirmed, voice, closed


def test_a_second_run_equals_the_first_to_the_bit(talking: Path) -> None:
    assert [wire.encode(each, "<f4") for each in play(talking)] == [wire.encode(each, "<f4") for each in play(talking)]


def test_the_zone_of_the_microphone_is_enough(tmp_path: Path) -> None:
    samples = speech()
    path = make_clip(tmp_path / "still.mkv", samples, len(samples) / RATE_HZ, moves=False)
    corners = ((0.0, 0.0), (176.0, 0.0), (176.0, 144.0), (0.0, 144.0))

    class Unread(Heard):
        def __call__(self, camera: Camera) -> Listening:
            return Listening(camera, ToneVoices(), None)

    assert seen(play(path, Unread()))[-1].embedding(VOICE) is None
    inside = play(path, Unread(), zones={"desk": corners}, options={"microphone_zone": "desk"})
    assert seen(inside)[-1].embedding(VOICE) is not None


def test_the_settings_say_which_zone_a_microphone_hears() -> None:
    desk = {"camera_id": "gate", "uri": "film.mkv", "zones": {"desk": [(0, 0), (9, 0), (9, 9)]}}
    (camera,) = Settings.model_validate({"cameras": [desk | {"microphone_zone": "desk"}]}).camera_list()
    assert camera.options == {"microphone_zone": "desk"}
    assert _with_zones(Camera("gate", "other.mkv"), camera).options == camera.options
    with pytest.raises(ValueError, match=r"microphone_zone must be one of the camera's zones \(desk\)"):
        Settings.model_validate({"cameras": [desk | {"microphone_zone": "door"}]})


def test_a_voice_that_comes_after_the_close_makes_one_more_revision(tmp_path: Path) -> None:
    samples = np.concatenate([speech(after_s=0.0), silence(4.0)])
    path = make_clip(tmp_path / "leaves.mkv", samples, len(samples) / RATE_HZ, leaves_s=3.5)
    tracklets = play(path)
    with_voice = [each.embedding(VOICE) is not None for each in seen(tracklets)]
    assert with_voice[-1]
    assert [each.revision for each in seen(tracklets)] == list(range(1, len(with_voice) + 1))


def listening_ears() -> Ears:
    ears = Ears(Camera("gate", "film"), Heard())
    ears.hear(iter([Sound("gate", NOON_NS, silence(0.1), RATE_HZ)]))
    nobody = np.zeros((0, 4), np.float32)
    updates = TrackUpdates((), np.zeros(0, np.intp), nobody, nobody[:, 0], nobody[:, 0], ())
    ears.listen(Frame("gate", NOON_NS, np.zeros((8, 8, 3), np.uint8)), updates)
    return ears


def turn_of(owner: str, confidence: float = 0.9, *vector: float) -> Spoken:
    heard = Loudness(NOON_NS, 10_000_000, np.zeros(0, np.float32))
    turn = Turn("gate", NOON_NS, NOON_NS + 1_000_000_000, 1.0, embedding(VOICE, *(vector or (1, 0))), heard)
    return Spoken(turn, Verdict(owner, confidence, "lips move with the sound"))


def test_a_late_turn_of_a_closed_tracklet_is_a_revision_more() -> None:
    ears = listening_ears()
    ((closed,), _) = ears.join([a_tracklet("t1", revision=4, is_closed=True)], [])
    (_, (late,)) = ears.join([], [turn_of("t1")])
    assert closed.embedding(VOICE) is None
    assert (late.revision, late.is_closed) == (5, True)
    assert late.embedding(VOICE) is not None


def test_of_very_many_turns_of_one_person_those_that_tell_most_are_kept() -> None:
    ears = listening_ears()
    ears.join([a_tracklet("t1")], [])
    ears.join([], [turn_of("t1", 0.9)] + [turn_of("t1", 0.1, 0, 1) for _ in range(3 * MOST_TURNS)])
    kept = ears._voices["t1"]
    assert len(kept) == MOST_TURNS
    assert max(each.verdict.confidence for each in kept) == 0.9


def test_two_turns_of_one_person_are_pooled_and_the_surer_weighs_more() -> None:
    ears = listening_ears()
    ears.join([a_tracklet("t1")], [])
    (_, (first,)) = ears.join([], [turn_of("t1", 0.9, 1, 0)])
    (_, again) = ears.join([], [turn_of("t1", 0.3, 0, 1)])
    assert again == []  # an open tracklet says so with its next revision
    ((closing,), _) = ears.join([a_tracklet("t1", revision=2, is_closed=True)], [])
    assert (first.revision, closing.revision) == (2, 3)
    voice = closing.embedding(VOICE)
    assert voice is not None
    assert voice.vector[0] > voice.vector[1] > 0


def test_a_turn_in_the_frame_of_a_revision_makes_no_second_one() -> None:
    ears = listening_ears()
    ears.join([a_tracklet("t1")], [])
    ((closing,), made) = ears.join([a_tracklet("t1", revision=2, is_closed=True)], [turn_of("t1")])
    assert made == []
    assert closing.revision == 2
    assert closing.embedding(VOICE) is not None


def test_ears_forget_closed_tracklets_that_no_turn_can_reach() -> None:
    ears = listening_ears()
    for number in range(20):
        ears.join([a_tracklet(f"t{number}", is_closed=True)], [turn_of(f"t{number}")])
    assert len(ears._published) == len(ears._voices) == 1


def test_a_turn_of_nobody_in_view_is_a_tracklet_of_its_own(tmp_path: Path) -> None:
    samples = speech()
    path = make_clip(tmp_path / "silent.mkv", samples, len(samples) / RATE_HZ, moves=False)
    tracklets = play(path)
    assert all(each.embedding(VOICE) is None for each in seen(tracklets))
    (heard,) = only_heard(tracklets)
    assert heard.tracklet_id == f"gate/voice-{heard.started_at_ns}"
    assert heard.started_at_ns == pytest.approx(NOON_NS + 10**9, abs=10**8)
    assert heard.duration_s == pytest.approx(2.5, abs=0.3)
    assert heard.is_closed
    assert heard.revision == 1
    assert [each.modality for each in heard.embeddings] == [VOICE]
    assert heard.crops == ()


def test_what_was_only_heard_travels_is_stored_found_and_erased(tmp_path: Path) -> None:
    samples = speech()
    path = make_clip(tmp_path / "silent.mkv", samples, len(samples) / RATE_HZ, moves=False)
    (heard,) = only_heard(play(path))
    gallery = FaissGallery(tmp_path / "index")
    gallery.upsert([wire.decode(Tracklet, wire.encode(heard))])
    (hit,) = gallery.search(heard.embeddings[0], Filter(cameras=("gate",)), 5)
    assert hit.tracklet_id == heard.tracklet_id
    assert gallery.tracklets([heard.tracklet_id])[0].at_ns.shape == (0,)
    assert gallery.delete([heard.tracklet_id]) == []
    assert gallery.statistics().tracklets == 0
    gallery.close()


def test_what_was_only_heard_raises_alerts_and_stands_on_the_contact_sheet() -> None:
    voice = embedding(VOICE, 1, 0, space="campplus@1")
    nothing = {"at_ns": np.zeros(0, np.int64), "xyxy": np.zeros((0, 4)), "confidence": np.zeros(0), "crops": ()}
    heard = a_tracklet(f"gate/voice-{NOON_NS}", voice, is_closed=True, **nothing)
    stage = AlertStage(None)
    stage.put(Watch("w1", (Probe("voice", embeddings=(voice,)),), 0.6, expires_at_ns=NOON_NS + 3600 * 10**9))
    (alert,) = stage.compare(heard, NOON_NS)
    assert wire.decode(Alert, wire.encode(alert)).crops == ()
    query = Query("q1", (Probe("voice", embeddings=(voice,)),), issued_by="tests", purpose="tests")
    ranking = SearchStage(InMemoryGallery(heard), None).search(query)
    assert "heard for 2.0 s, not seen" in ranking.matches[0].why
    assert contact_sheet(ranking, InMemoryMedia(), "a voice").shape[0] > 400


def test_a_camera_without_sound_loads_no_network(tmp_path: Path) -> None:
    heard = Heard()
    tracklets = play(make_clip(tmp_path / "mute.mkv", None, 3.0), heard)
    assert heard.loads == 0
    assert len(seen(tracklets)) >= 1


class BrokenSound:
    """Pictures of a file whose sound breaks off."""

    def __init__(self, capture: PyAvCapture, pieces: Sequence[Sound], error: Exception) -> None:
        self.camera, self._capture, self._pieces, self._error = capture.camera, capture, pieces, error
        self.frames, self.coverage, self.close = capture.frames, capture.coverage, capture.close

    def sounds(self) -> Iterator[Sound]:
        yield from self._pieces
        raise self._error


def test_sound_of_another_rate_does_not_stop_the_pictures(talking: Path, caplog: pytest.LogCaptureFixture) -> None:
    capture = PyAvCapture(Camera("gate", str(talking), starts_at_ns=NOON_NS))
    tracklets = run(BrokenSound(capture, [Sound("gate", NOON_NS, silence(1.0), 8000)], OSError(5, "gone")), Heard())
    assert seen(tracklets)[-1].is_closed
    assert "voices are not heard" in caplog.text


@pytest.mark.parametrize("error", [UnreadableMediaError("the sound track must decode, got noise"), OSError(5, "input/output error")])
def test_sound_that_breaks_off_does_not_stop_the_pictures(talking: Path, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    capture = PyAvCapture(Camera("gate", str(talking), starts_at_ns=NOON_NS))
    tracklets = run(BrokenSound(capture, [Sound("gate", NOON_NS, silence(1.0), RATE_HZ)], error), Heard())
    assert seen(tracklets)[-1].is_closed
    assert "sound ended early, the pictures go on" in caplog.text


def test_networks_that_cannot_be_had_do_not_stop_the_pictures(talking: Path, caplog: pytest.LogCaptureFixture) -> None:
    heard = Heard(fails=SourceUnavailableError("the package cannot be fetched: check the network"))
    tracklets = play(talking, heard)
    assert heard.loads == 1
    assert seen(tracklets)[-1].is_closed
    assert "voices are not heard" in caplog.text


def test_a_damaged_sound_track_does_not_stop_the_pictures(talking: Path, tmp_path: Path) -> None:
    content = bytearray(talking.read_bytes())
    with av.open(str(talking)) as source:
        spots = [(packet.pos, packet.size) for packet in source.demux(audio=0) if packet.size and packet.pos]
    for position, size in spots:
        content[position + 8 : position + size] = np.random.default_rng(0).bytes(size - 8)
    path = tmp_path / "damaged.mkv"
    path.write_bytes(content)
    assert seen(play(path))[-1].is_closed


def test_a_live_camera_is_heard_too(talking: Path) -> None:
    tracklets = run(PyAvCapture(Camera("gate", str(talking), is_live=True)), Heard())
    assert any(each.embedding(VOICE) is not None for each in tracklets)
