"""Capture against real files, pictures and an RTSP server that is killed, frozen and absent."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from pipeline.errors import BadInputError, NotFoundError, SourceUnavailableError, UnreadableMediaError
from pipeline.types import Camera, Frame, Sound
from services.adapters.pyav_capture import CaptureOptions, PyAvCapture, media_facts, read_sound
from services.adapters.sources import cameras_from_sources, open_capture

SECOND = 1_000_000_000
NOVEMBER = 1_795_233_600 * SECOND  # 2026-11-21T04:00:00Z


# ---------------------------------------------------------------------------------------------- builders


def picture_of(number: int, width: int = 128, height: int = 96) -> np.ndarray:
    """A picture that says which one it is: a grey that rises, and a bar that moves."""
    bgr = np.full((height, width, 3), 40 + number % 160, np.uint8)
    bgr[:, (number * 4) % width :][:, :8] = (0, 0, 255)
    return bgr


def make_video(
    path: Path,
    times_s: Sequence[float],
    *,
    codec: str = "libx264",
    keyframe_every: int = 25,
    options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    sound_s: float = 0.0,
    container: dict[str, str] | None = None,
) -> Path:
    """A real video with a frame at each of ``times_s``."""
    with av.open(str(path), "w", options=container or {}) as out:
        out.metadata.update(metadata or {})
        video: Any = out.add_stream(codec, rate=25)
        video.width, video.height, video.pix_fmt = 128, 96, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        video.codec_context.gop_size = keyframe_every
        video.codec_context.options = options or ({"preset": "ultrafast"} if codec == "libx264" else {})
        sound: Any = out.add_stream("aac", rate=44100, layout="stereo") if sound_s else None
        for number, moment in enumerate(times_s):
            frame = av.VideoFrame.from_ndarray(picture_of(number), format="bgr24")
            frame.pts, frame.time_base = round(moment * 1000), Fraction(1, 1000)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if sound is not None:
            tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(sound_s * 44100)) / 44100)
            samples = av.AudioFrame.from_ndarray(np.stack([tone, tone]).astype(np.float32), format="fltp", layout="stereo")
            samples.sample_rate, samples.pts = 44100, 0
            for cut in sound_chunks(samples):
                out.mux(sound.encode(cut))
            out.mux(sound.encode(None))
    return path


def sound_chunks(whole: av.AudioFrame) -> Iterator[av.AudioFrame]:
    values = whole.to_ndarray()
    for start in range(0, values.shape[1] - 1023, 1024):
        chunk = av.AudioFrame.from_ndarray(np.ascontiguousarray(values[:, start : start + 1024]), format="fltp", layout="stereo")
        chunk.sample_rate, chunk.pts = 44100, start
        yield chunk


def steady(seconds: float, rate_hz: float = 25.0) -> list[float]:
    return [n / rate_hz for n in range(round(seconds * rate_hz))]


def camera_of(path: Path | str, sampling_hz: float = 0.0, **more: Any) -> Camera:
    return Camera("gate", str(path), sampling_hz, starts_at_ns=more.pop("starts_at_ns", NOVEMBER), **more)


def offsets_ms(frames: Sequence[Frame]) -> list[int]:
    return [round((frame.captured_at_ns - NOVEMBER) / 1e6) for frame in frames]


def read_all(camera: Camera, **options: Any) -> list[Frame]:
    return list(open_capture(camera, **options).frames())


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight seconds at 25 Hz with B-frames, a keyframe about every second, and sound."""
    options = {"preset": "veryfast", "bf": "3", "x264-params": "scenecut=0:open-gop=1"}
    return make_video(tmp_path_factory.mktemp("clips") / "clip.mp4", steady(8), options=options, sound_s=8.0)


# ---------------------------------------------------------------------------------------------- files


def test_every_frame_of_a_file_comes_once_in_order_with_its_time_and_number(clip: Path) -> None:
    capture = open_capture(camera_of(clip))
    frames = list(capture.frames())
    assert offsets_ms(frames) == [40 * n for n in range(200)]
    assert [frame.number for frame in frames] == list(range(200))
    assert frames[7].bgr.shape == (96, 128, 3)
    assert abs(int(frames[60].bgr[5, 127].mean()) - 100) < 6  # picture_of(60), blue-green-red
    coverage = capture.coverage()
    assert (coverage.seen, coverage.sampled, coverage.dropped, coverage.corrupt, coverage.gaps) == (200, 200, 0, 0, ())
    assert (coverage.from_ns, coverage.to_ns) == (NOVEMBER, NOVEMBER + 7960 * 1_000_000)


def test_sampling_leaves_frames_out_but_counts_them(clip: Path) -> None:
    capture = open_capture(camera_of(clip, sampling_hz=5.0))
    frames = list(capture.frames())
    assert [frame.number for frame in frames] == list(range(0, 200, 5))
    assert (capture.coverage().seen, capture.coverage().sampled) == (200, 40)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize(("cut_s", "sampling_hz"), [(2.0, 0.0), (3.37, 7.0), (5.5, 10.0)])
def test_two_parts_give_exactly_the_frames_of_the_whole(clip: Path, tmp_path: Path, suffix: str, cut_s: float, sampling_hz: float) -> None:
    path = remux(clip, tmp_path / f"clip.{suffix}")
    whole = read_all(camera_of(path, sampling_hz))
    parts = read_all(camera_of(path, sampling_hz), to_s=cut_s) + read_all(camera_of(path, sampling_hz), from_s=cut_s)
    assert [(f.number, f.captured_at_ns) for f in parts] == [(f.number, f.captured_at_ns) for f in whole]
    assert all(np.array_equal(mine.bgr, theirs.bgr) for mine, theirs in zip(parts, whole, strict=True))


def test_the_accounts_of_two_parts_add_up(clip: Path) -> None:
    captures = [open_capture(camera_of(clip), from_s=0, to_s=3.5), open_capture(camera_of(clip), from_s=3.5)]
    for capture in captures:
        list(capture.frames())
    assert sum(capture.coverage().seen for capture in captures) == 200
    assert captures[0].coverage().to_ns < captures[1].coverage().from_ns


def remux(source: Path, target: Path) -> Path:
    """The same packets in another container."""
    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        video = read.streams.video[0]
        copy = write.add_stream_from_template(video)
        for packet in read.demux(video):
            if packet.dts is not None:
                packet.stream = copy
                write.mux(packet)
    return target


def test_variable_frame_rate_keeps_its_own_times(tmp_path: Path) -> None:
    moments = [*steady(1, 10), *(1 + n / 50 for n in range(50)), 2.5, 3.0]
    path = make_video(tmp_path / "vfr.mkv", moments)
    assert offsets_ms(read_all(camera_of(path))) == [round(1000 * moment) for moment in moments]
    sampled = offsets_ms(read_all(camera_of(path, sampling_hz=5.0)))
    assert sampled == [0, 200, 400, 600, 800, 1000, 1200, 1400, 1600, 1800, 2500, 3000]


def test_a_pause_in_a_recording_is_a_gap(tmp_path: Path) -> None:
    path = make_video(tmp_path / "motion.mkv", [*steady(1), *(61 + moment for moment in steady(1))])
    capture = open_capture(camera_of(path))
    list(capture.frames())
    (gap,) = capture.coverage().gaps
    assert (gap.to_ns - gap.from_ns) / SECOND == pytest.approx(60.04, abs=0.01)
    assert gap.reason == "no frames in the source"


def test_the_start_comes_from_metadata_name_or_modification_time(tmp_path: Path) -> None:
    metadata = make_video(tmp_path / "a.mp4", steady(1), metadata={"creation_time": "2026-11-21T04:00:00Z"})
    named = make_video(tmp_path / "gate_20261121_040001.mp4", steady(1))
    plain = make_video(tmp_path / "b.mp4", steady(1))
    os.utime(plain, ns=(NOVEMBER + SECOND, NOVEMBER + SECOND))
    starts = [read_all(camera)[0].captured_at_ns - NOVEMBER for camera in cameras_from_sources([str(metadata), str(named), str(plain)])]
    assert starts[:2] == [0, SECOND]
    assert starts[2] == pytest.approx(0, abs=SECOND // 10)
    assert media_facts(str(named)).starts_at_ns == NOVEMBER + SECOND


def test_a_loop_goes_on_in_time(tmp_path: Path) -> None:
    capture = open_capture(camera_of(make_video(tmp_path / "short.mp4", steady(1))), loop=True)
    frames = [frame for frame, _ in zip(capture.frames(), range(100), strict=False)]
    assert offsets_ms(frames) == [40 * n for n in range(100)]
    assert capture.coverage().gaps == ()
    capture.close()


def test_facts_of_a_file_are_read_without_decoding(clip: Path) -> None:
    facts = media_facts(str(clip))
    assert (facts.frames, facts.width, facts.height, facts.has_sound) == (200, 128, 96, True)
    assert (facts.duration_s, facts.rate_hz) == (pytest.approx(8.0, abs=0.05), pytest.approx(25, abs=0.2))


# ---------------------------------------------------------------------------------------------- sound


def test_sound_comes_as_seconds_of_mono_16_khz_in_step_with_the_pictures(clip: Path) -> None:
    sounds = list(open_capture(camera_of(clip)).sounds())
    assert {sound.rate_hz for sound in sounds} == {16_000}
    assert [len(sound.samples) for sound in sounds[:-1]] == [16_000] * (len(sounds) - 1)
    assert sum(len(sound.samples) for sound in sounds) / 16_000 == pytest.approx(8.0, abs=0.1)
    assert sounds[3].started_at_ns - NOVEMBER == pytest.approx(3 * SECOND, abs=SECOND // 10)
    spectrum = np.abs(np.fft.rfft(sounds[3].samples))
    assert int(spectrum.argmax()) == 440  # 16,000 samples: one bin per Hz
    assert 0.4 < float(np.abs(sounds[3].samples).max()) <= 1.0


def test_a_silent_video_has_no_sound(tmp_path: Path) -> None:
    assert list(open_capture(camera_of(make_video(tmp_path / "silent.mp4", steady(1)))).sounds()) == []


def test_a_sound_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "query.wav"
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes((8000 * np.sin(np.arange(12000) / 5)).astype("<i2").tobytes())
    samples, rate_hz = read_sound(path)
    assert (rate_hz, samples.dtype) == (16_000, np.float32)
    assert len(samples) / rate_hz == pytest.approx(1.5, abs=0.02)


# ---------------------------------------------------------------------------------------------- bad input


def text_named_mp4(folder: Path) -> Path:
    path = folder / "notes.mp4"
    path.write_text("this is no video, only its name says so\n" * 50)
    return path


def empty_file(folder: Path) -> Path:
    path = folder / "empty.mp4"
    path.touch()
    return path


def half_a_header(folder: Path) -> Path:
    path = make_video(folder / "whole.mp4", steady(2))
    return cut(path, folder / "cut.mp4", 0.5)  # the index lies at the end of the file


def only_sound(folder: Path) -> Path:
    path = folder / "voice.mp4"
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(bytes(8000))
    return path


def clip_without_frames(folder: Path) -> Path:
    path = make_video(folder / "base.mp4", steady(1))
    target = folder / "none.mp4"
    with av.open(str(path)) as read, av.open(str(target), "w") as write:
        write.add_stream_from_template(read.streams.video[0])
        write.start_encoding()
    return target


def cut(path: Path, target: Path, share: float) -> Path:
    target.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return target


@pytest.mark.parametrize("build", [text_named_mp4, empty_file, half_a_header, only_sound, clip_without_frames])
def test_what_is_no_video_is_refused_with_what_came(build: Callable[[Path], Path], tmp_path: Path) -> None:
    path = build(tmp_path)
    with pytest.raises(UnreadableMediaError, match=rf"{path.name} must .*, got .*: (copy|check|give)"):
        read_all(camera_of(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for open_it in (lambda p: open_capture(camera_of(p)), lambda p: cameras_from_sources([str(p)]), lambda p: media_facts(str(p))):
        with pytest.raises(NotFoundError, match=r"nowhere\.mp4 must exist.*check the path"):
            open_it(tmp_path / "nowhere.mp4")


def test_an_unknown_option_is_refused(clip: Path) -> None:
    with pytest.raises(BadInputError, match="got colour"):
        open_capture(camera_of(clip), colour="blue")


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_truncated_video_keeps_what_decodes_and_says_what_is_missing(tmp_path: Path, suffix: str) -> None:
    container = {"movflags": "faststart"} if suffix == "mp4" else {}
    whole = make_video(tmp_path / f"whole.{suffix}", steady(8), container=container)
    capture = open_capture(camera_of(cut(whole, tmp_path / f"cut.{suffix}", 0.6)))
    frames = list(capture.frames())
    coverage = capture.coverage()
    assert 60 < len(frames) < 180
    (gap,) = coverage.gaps
    assert gap.reason.startswith("truncated")
    assert gap.from_ns == pytest.approx(frames[-1].captured_at_ns, abs=SECOND // 10)
    assert gap.to_ns == pytest.approx(NOVEMBER + 8 * SECOND, abs=SECOND // 10)


def test_a_damaged_middle_is_counted_and_stepped_over(tmp_path: Path) -> None:
    options = {"preset": "veryfast", "bf": "0"}
    content = bytearray(make_video(tmp_path / "whole.mp4", steady(8), options=options, container={"movflags": "faststart"}).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 600] = np.random.default_rng(1).integers(0, 256, 600, np.uint8).tobytes()
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(bytes(content))
    capture = open_capture(camera_of(damaged))
    frames = list(capture.frames())
    coverage = capture.coverage()
    assert offsets_ms(frames)[-1] == 7960  # it went on to the end
    assert [frame.number for frame in frames] == [round(offset / 40) for offset in offsets_ms(frames)]  # a lost frame keeps its number
    assert coverage.corrupt > 0
    assert (coverage.seen, coverage.sampled) == (200, 200 - coverage.corrupt)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 1)])
def test_tiny_pictures_do_not_crash(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "tiny.png"
    cv2.imwrite(str(path), np.full((*size, 3), 77, np.uint8))
    (frame,) = read_all(camera_of(path))
    assert frame.bgr.shape == (*size, 3)
    assert int(frame.bgr[0, 0, 0]) == 77


# ---------------------------------------------------------------------------------------------- pictures


def picture_folder(folder: Path, names: Sequence[str]) -> Path:
    folder.mkdir()
    for number, name in enumerate(names):
        cv2.imwrite(str(folder / name), picture_of(number))
    return folder


def test_numbered_pictures_are_one_camera_at_the_sampling_rate(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "walk", [f"{n:04d}.jpg" for n in range(6)])
    (camera,) = cameras_from_sources([str(folder)], sampling_hz=5.0)
    assert camera.camera_id == "walk"
    frames = read_all(camera_of(folder, sampling_hz=5.0))
    assert offsets_ms(frames) == [0, 200, 400, 600, 800, 1000]
    assert [frame.number for frame in read_all(camera_of(folder, sampling_hz=5.0), from_s=0.4, to_s=0.8)] == [2, 3]


def test_pictures_named_after_their_time_have_it_and_are_sampled(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "snaps", [f"20261121_0400{n:02d}.jpg" for n in (0, 1, 2, 3, 30, 31)])
    capture = open_capture(camera_of(folder, sampling_hz=0.5, starts_at_ns=0))
    assert offsets_ms(list(capture.frames())) == [0, 2000, 30000]
    assert [gap.to_ns - gap.from_ns for gap in capture.coverage().gaps] == [27 * SECOND]


def test_a_picture_that_does_not_decode_is_counted(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "walk", ["a.jpg", "b.jpg", "c.jpg"])
    (folder / "b.jpg").write_bytes(b"no picture")
    capture = open_capture(camera_of(folder))
    assert [frame.number for frame in capture.frames()] == [0, 2]
    assert (capture.coverage().seen, capture.coverage().corrupt) == (3, 1)


def test_a_folder_without_pictures_or_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableMediaError, match="must hold videos"):
        cameras_from_sources([str(tmp_path)])


# ---------------------------------------------------------------------------------------------- cameras


def test_a_folder_of_videos_is_a_camera_each_with_ids_of_their_own(tmp_path: Path, clip: Path) -> None:
    for name in ("north/Gate 1.mp4", "north/yard.mp4", "south/yard.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(clip, tmp_path / name)
    (tmp_path / "notes").mkdir()
    cameras = cameras_from_sources([str(tmp_path)], sampling_hz=2.0)
    assert [camera.camera_id for camera in cameras] == ["Gate-1", "yard", "yard-2"]
    assert {camera.sampling_hz for camera in cameras} == {2.0}
    assert not any(camera.is_live for camera in cameras)


def test_an_address_gives_an_id_without_its_password() -> None:
    cameras = cameras_from_sources(["rtsp://anna:geheim@10.0.0.4:554/live/1", "http://gate/v.mjpg?user=anna&pwd=geheim", "/dev/video0"])
    assert [camera.camera_id for camera in cameras] == ["10.0.0.4-554-live-1", "gate-v.mjpg", "video0"]
    assert [camera.is_live for camera in cameras] == [True, False, True]


# ---------------------------------------------------------------------------------------------- live


def test_a_file_played_live_keeps_its_pace_and_drops_what_a_slow_reader_cannot_take(tmp_path: Path) -> None:
    path = make_video(tmp_path / "short.mp4", steady(1.6), sound_s=1.6)
    capture = open_capture(camera_of(path, is_live=True), queue_frames=2)
    sounds: list[Sound] = []
    listening = threading.Thread(target=lambda: sounds.extend(capture.sounds()))
    listening.start()
    started, frames = time.time_ns(), []
    for frame in capture.frames():
        frames.append(frame)
        time.sleep(0.2)  # SlowReader: a fifth of the pace
    listening.join(5)
    assert [len(sound.samples) for sound in sounds] == [16_000]
    assert abs(sounds[0].started_at_ns - frames[0].captured_at_ns) < SECOND // 5
    coverage = capture.coverage()
    assert 1.4 < (time.time_ns() - started) / SECOND < 4
    assert coverage.seen == 40
    assert coverage.dropped == 40 - len(frames) > 20
    assert all(abs(frame.captured_at_ns - started) < 4 * SECOND for frame in frames)
    assert all(later.captured_at_ns > earlier.captured_at_ns for earlier, later in pairwise(frames))


def test_close_from_another_thread_stops_at_once(clip: Path) -> None:
    for camera in (camera_of(clip, is_live=True), camera_of(clip, is_live=False)):
        capture = open_capture(camera, loop=True)
        reading = threading.Thread(target=lambda capture=capture: [None for _ in capture.frames()])
        reading.start()
        time.sleep(0.2)
        started = time.monotonic()
        capture.close()
        reading.join(5)
        assert not reading.is_alive()
        assert time.monotonic() - started < 1.0


def test_a_video_is_read_over_http(clip: Path, tmp_path: Path) -> None:
    remux(clip, tmp_path / "clip.mkv")
    handler = functools.partial(QuietFiles, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        base = f"http://anna:geheim@127.0.0.1:{server.server_address[1]}"
        assert offsets_ms(read_all(camera_of(f"{base}/clip.mkv"))) == [40 * n for n in range(200)]
        with pytest.raises(SourceUnavailableError, match=r"http://\*\*\*@127.* must answer .*not found"):
            read_all(camera_of(f"{base}/nothing.mkv"))
        server.shutdown()


class QuietFiles(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RtspServer:
    """aio-rtsp-toolkit's server over a folder, in a process of its own that can be killed and frozen."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.port = folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = Path(sys.executable).with_name("rtsp-server")
        command = [str(program), "-d", str(self._folder), "-H", "127.0.0.1", "-p", str(self.port), "-cp", str(free_port())]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 8
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise TimeoutError("the RTSP server did not come up")

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait()

    def stop(self) -> None:
        if self._process is not None:
            self.send(signal.SIGKILL)

    def uri(self, name: str) -> str:
        return f"rtsp://anna:geheim@127.0.0.1:{self.port}/{name}"


@pytest.fixture
def rtsp(tmp_path: Path) -> Iterator[RtspServer]:
    if importlib.util.find_spec("aio_rtsp_toolkit") is None:
        pytest.skip("the RTSP server aio-rtsp-toolkit is not installed")
    options = {"preset": "ultrafast", "tune": "zerolatency"}
    make_video(tmp_path / "cam.mp4", steady(30), options=options, keyframe_every=12)
    server = RtspServer(tmp_path)
    server.start()
    yield server
    server.stop()


class Reader:
    """Collects the frames of a capture in a thread."""

    def __init__(self, capture: Any) -> None:
        self.capture, self.frames, self.error = capture, list[Frame](), None
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            for frame in self.capture.frames():
                self.frames.append(frame)  # one by one: others look on
        except Exception as error:
            self.error = error

    def wait_for(self, condition: Callable[[], bool], timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < until, (
                f"waited {timeout_s} s in vain; {len(self.frames)} frames, {self.capture.coverage()}, {self.error}"
            )
            time.sleep(0.02)

    def stop(self) -> None:
        self.capture.close()
        self._thread.join(5)
        assert not self._thread.is_alive()


def test_a_killed_camera_is_reconnected_and_its_absence_is_a_gap(rtsp: RtspServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    reader = Reader(PyAvCapture(Camera("gate", rtsp.uri("cam.mp4")), CaptureOptions(retry_first_s=0.2, retry_most_s=0.5)))
    reader.wait_for(lambda: len(reader.frames) > 10, 10)
    assert abs(reader.frames[-1].captured_at_ns - time.time_ns()) < 3 * SECOND
    rtsp.send(signal.SIGKILL)
    reader.wait_for(lambda: bool(reader.capture.coverage().gaps), 5)
    before = len(reader.frames)
    rtsp.start()
    reader.wait_for(lambda: len(reader.frames) > before + 10, 10)
    reader.stop()
    (gap,) = reader.capture.coverage().gaps
    assert 0.2 < (gap.to_ns - gap.from_ns) / SECOND < 10
    times = [frame.captured_at_ns for frame in reader.frames]
    assert times == sorted(set(times))
    assert "geheim" not in caplog.text
    assert "geheim" not in gap.reason


def test_a_frozen_camera_is_noticed(rtsp: RtspServer) -> None:
    options = CaptureOptions(read_timeout_s=1.0, open_timeout_s=1.0, retry_first_s=0.1, retry_most_s=0.2)
    reader = Reader(PyAvCapture(Camera("gate", rtsp.uri("cam.mp4")), options))
    reader.wait_for(lambda: len(reader.frames) > 5, 10)
    rtsp.send(signal.SIGSTOP)
    reader.wait_for(lambda: bool(reader.capture.coverage().gaps), 6)
    assert "nothing came for 1 s" in reader.capture.coverage().gaps[0].reason
    rtsp.send(signal.SIGCONT)
    before = len(reader.frames)
    reader.wait_for(lambda: len(reader.frames) > before + 5, 10)
    reader.stop()


def test_a_refusing_camera_is_given_up_after_the_time_set_and_hides_its_password(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    uri = f"rtsp://anna:geheim@127.0.0.1:{free_port()}/live"
    capture = PyAvCapture(Camera("gate", uri), CaptureOptions(give_up_after_s=0.8, retry_first_s=0.1))
    started = time.monotonic()
    with pytest.raises(SourceUnavailableError, match=r"camera gate .*refused.*check address") as raised:
        list(capture.frames())
    assert 0.7 < time.monotonic() - started < 4
    assert "geheim" not in str(raised.value) + caplog.text + repr(raised.value.__cause__) + repr(capture.coverage())
    (gap,) = capture.coverage().gaps
    assert "refused" in gap.reason
    assert gap.to_ns > gap.from_ns
