"""Frames and sound of files, RTSP, HTTP and webcams through PyAV (FFmpeg). The one home of ``av``."""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec.hwaccel import HWAccel, hwdevices_available
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from pipeline.backoff import Backoff
from pipeline.capture import (
    LONGEST_PAUSE_NS,
    SECOND_NS,
    Clock,
    CoverageAccount,
    Part,
    Sampler,
    is_late,
    start_of_file,
    without_credentials,
)
from pipeline.errors import BadInputError, NotFoundError, SightlineError, SourceUnavailableError, UnreadableMediaError
from pipeline.types import Camera, CameraCoverage, Frame, Sound
from services.adapters.frame_queue import FrameQueue, StampedPicture

log = logging.getLogger("sightline.capture")

LIVE_SCHEMES = frozenset({"rtsp", "rtsps", "rtmp", "rtmps", "srt", "udp", "rtp"})
DEVICES = ("cuda", "vaapi", "videotoolbox", "d3d11va", "qsv")  # in the order tried by hardware="auto"
SOUND_HZ = 16_000
PREROLL_NS = SECOND_NS  # a part is decoded from a keyframe this much before it: covers reordering, and gives the sampler its history
NO_PICTURE_S = 10.0  # packets come, pictures do not: the stream is taken for broken
LONGEST_NS = 100 * 365 * 86_400 * SECOND_NS  # a presentation time beyond is damage
READ_ATTEMPTS = 5  # a damaged stretch of a file is stepped over by reading on this often


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """How a source is read. ``Camera.options`` may name any of these for one camera.

    hardware: auto, off, or a device name (cuda, vaapi, ...); threads: of the decoder, 0 = one per core;
    queue_frames, late_s: live only, see PyAvCapture; give_up_after_s: a live source raises after so long without a picture, 0 = never;
    reconnect: try a lost live source again; from_s, to_s: the part of a file, seconds after its first frame, to_s 0 = the end;
    loop: begin a file again at its end;
    ffmpeg: further options for FFmpeg, such as {"video_size": "1280x720"} for a webcam.
    """

    hardware: str = "auto"
    threads: int = 1
    open_timeout_s: float = 3.0
    read_timeout_s: float = 3.0
    queue_frames: int = 8
    late_s: float = 2.0
    reconnect: bool = True
    retry_first_s: float = 0.5
    retry_most_s: float = 30.0
    give_up_after_s: float = 0.0
    gap_after_s: float = 2.0
    from_s: float = 0.0
    to_s: float = 0.0
    loop: bool = False
    ffmpeg: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class MediaFacts:
    """What the header of a file says: duration_s and frames are 0 when it does not say; starts_at_ns: UTC of the first frame."""

    duration_s: float
    frames: int
    width: int
    height: int
    rate_hz: float
    has_sound: bool
    starts_at_ns: int


class _BrokenStreamError(Exception):
    """Reading stopped before the end; the text says why."""


class _HardwareFailedError(Exception):
    """The device does not decode this stream; software will."""


@dataclass(slots=True)
class _Picture:
    """A decoded picture that has not been converted yet."""

    number: int
    offset_ns: int | None
    frame: Any


class _Source:
    """An open container: its streams, the time of its first frame, and how many frames lie before the point it was sought to."""

    def __init__(self, container: Any, hardware: str, threads: int) -> None:
        self.container = container
        self.hardware = hardware
        self.video: Any = container.streams.video[0] if container.streams.video else None
        self.audio: Any = container.streams.audio[0] if container.streams.audio else None
        self.number = 0
        self.is_sought = False
        self.early_pts: list[int] = []
        self.first_dts: int | None = None
        self.frames_out = 0
        if self.video is not None and self.video.codec_context is not None:
            self.video.codec_context.thread_count = threads
            if threads != 1:
                self.video.codec_context.thread_type = "AUTO"
        start = None if self.video is None else self.video.start_time
        self.origin_ns: int | None = None if start is None else to_ns(start, self.video.time_base)

    def offset_ns(self, pts: int | None, time_base: Fraction) -> int | None:
        """Nanoseconds after the first frame of the source; None where there is no time that can be right."""
        if pts is None:
            return None
        moment = to_ns(pts, time_base)
        if self.origin_ns is None:
            self.origin_ns = moment
        offset_ns = moment - self.origin_ns
        return offset_ns if abs(offset_ns) < LONGEST_NS else None

    @property
    def duration_ns(self) -> int:
        """How long the header says the pictures last; 0 where FFmpeg could only guess."""
        if self.video is not None and self.video.duration:
            return to_ns(self.video.duration, self.video.time_base)
        if self.container.duration and any(kind in self.container.format.name for kind in ("matroska", "flv", "avi", "asf")):
            return int(self.container.duration) * 1_000
        return 0

    def streams(self) -> list[Any]:
        audio = [self.audio] if self.audio is not None and self.audio.codec_context is not None else []
        return [self.video, *audio]

    def close(self) -> None:
        self.container.close()


def to_ns(ticks: int, time_base: Fraction) -> int:
    """``ticks`` of ``time_base`` seconds in nanoseconds, rounded once."""
    return round(Fraction(ticks) * time_base * SECOND_NS)


@functools.cache
def usable_device(wished: str) -> str:
    """The hardware device that decodes on this machine: ``wished``, the first that works for "auto", or "" for none."""
    names = DEVICES if wished == "auto" else (wished,)
    present = hwdevices_available()
    for name in names:
        if name not in present:
            continue
        try:
            HWAccel(name).create(av.Codec("h264", "r"))
        except (av.FFmpegError, NotImplementedError, RuntimeError, ValueError) as error:
            log.debug("no hardware decoding with %s: %s", name, error)
            continue
        return name
    if wished != "auto":
        log.warning("hardware decoding with %s is not possible here; decoding in software", wished)
    return ""


def open_source(uri: str, options: CaptureOptions, *, hardware: bool = True) -> _Source:
    """The opened container.

    Raises NotFoundError, UnreadableMediaError (no media, nothing to decode) or SourceUnavailableError (network, device).
    """
    shown, is_local = without_credentials(uri), is_local_file(uri)
    if is_local:
        check_file(Path(uri))
    device = usable_device(options.hardware) if hardware and options.hardware != "off" else ""
    more: dict[str, Any] = {"options": {**_scheme_options(uri), **(options.ffmpeg or {})}}
    if uri.startswith("/dev/"):
        more["format"] = "v4l2"
    if not is_local:
        # RTSP waits twice: the first wait that fails only brings out the picture that the parser still held
        waits = 2 if scheme_of(uri) in ("rtsp", "rtsps") else 1
        more["timeout"] = (options.open_timeout_s, options.read_timeout_s / waits)
    if device:
        more["hwaccel"] = HWAccel(device, allow_software_fallback=True)
    address = f"file:{Path(uri).absolute()}" if is_local else uri
    try:  # the text of PyAV's own error carries the address with its password: only the reason is taken over
        container = av.open(address, metadata_errors="replace", **more)
    except (av.FFmpegError, ValueError) as error:
        reason = reason_of(error, options.open_timeout_s)
        if is_local:
            size = Path(uri).stat().st_size
            raise UnreadableMediaError(
                f"{shown} must be a video that FFmpeg reads, got {size} bytes it does not ({reason}): "
                "check that the copy is whole and that it is a video"
            ) from None
        raise SourceUnavailableError(f"{shown} must answer with a video, got: {reason}; check address, power and password") from None
    return _Source(container, device, options.threads)


def _scheme_options(uri: str) -> dict[str, str]:
    """FFmpeg's options for an address. A live source is not probed for its frame rate: that alone takes a second of pictures."""
    options = {"rtsp_transport": "tcp"} if scheme_of(uri) in ("rtsp", "rtsps") else {}
    return {**options, "fpsprobesize": "0"} if scheme_of(uri) in LIVE_SCHEMES else options


def scheme_of(uri: str) -> str:
    return uri.partition("://")[0].lower() if "://" in uri else ""


def is_local_file(uri: str) -> bool:
    return not scheme_of(uri) and not uri.startswith("/dev/")


def check_file(path: Path) -> None:
    """Raises NotFoundError or UnreadableMediaError before FFmpeg is asked."""
    if not path.exists():
        raise NotFoundError(f"source {path} must exist, got nothing there: check the path")
    if path.is_file() and path.stat().st_size == 0:
        raise UnreadableMediaError(f"{path} must be a video, got an empty file (0 bytes): copy or record it again")


def reason_of(error: Exception, timeout_s: float) -> str:
    """Why PyAV failed, without the address."""
    if isinstance(error, av.error.ExitError):
        return f"nothing came for {timeout_s:g} s"
    if isinstance(error, av.FFmpegError):
        return str(error.strerror).lower()
    return type(error).__name__


def media_facts(uri: str, starts_at_ns: int = 0) -> MediaFacts:
    """What the header of a video file says, without decoding. Raises NotFoundError or UnreadableMediaError."""
    source = open_source(uri, CaptureOptions(hardware="off"))
    try:
        video = require_video(source, uri)
        return MediaFacts(
            duration_s=source.duration_ns / SECOND_NS or (source.container.duration or 0) / 1e6,
            frames=int(video.frames),
            width=int(video.codec_context.width),
            height=int(video.codec_context.height),
            rate_hz=float(video.average_rate or 0),
            has_sound=source.audio is not None,
            starts_at_ns=start_of_source(source, uri, starts_at_ns),
        )
    finally:
        source.close()


def require_video(source: _Source, uri: str) -> Any:
    """The video stream. Raises UnreadableMediaError when there is none that can be decoded."""
    shown = without_credentials(uri)
    if source.video is None:
        kinds = ", ".join(sorted({stream.type for stream in source.container.streams})) or "no stream at all"
        raise UnreadableMediaError(f"{shown} must hold a video stream, got {kinds}: give a video")
    if source.video.codec_context is None or not source.video.codec_context.width:  # decoding without a context kills the process
        raise UnreadableMediaError(f"{shown} must hold a video that can be decoded, got one whose header is cut off: copy it again")
    return source.video


def start_of_source(source: _Source, uri: str, starts_at_ns: int) -> int:
    """UTC of the first frame of a file."""
    metadata = {**source.container.metadata, **(source.video.metadata if source.video is not None else {})}
    created = next((metadata[key] for key in ("creation_time", "com.apple.quicktime.creationdate", "date") if key in metadata), "")
    duration_s = source.duration_ns / SECOND_NS or (source.container.duration or 0) / 1e6
    modified_ns = Path(uri).stat().st_mtime_ns if is_local_file(uri) else time.time_ns()
    return start_of_file(starts_at_ns, created, Path(uri.partition("?")[0]).name, modified_ns, duration_s)


class _SoundPieces:
    """Decoded sound to mono float32 pieces of a second at 16 kHz."""

    def __init__(self, camera_id: str, piece_s: float = 1.0) -> None:
        self._camera_id, self._length = camera_id, int(piece_s * SOUND_HZ)
        self._resampler = self._new_resampler()
        self._parts: list[NDArray[np.float32]] = []
        self._count = 0
        self._started_ns = 0

    def add(self, frame: Any, at_ns: int) -> Iterator[Sound]:
        """``frame`` of sound that starts at ``at_ns``; a jump of more than 0.2 s begins a new piece."""
        expected_ns = self._started_ns + self._count * SECOND_NS // SOUND_HZ
        if self._count and abs(at_ns - expected_ns) > SECOND_NS // 5:
            yield from self.rest()
        if not self._count:
            self._started_ns = at_ns
        frame.pts = None
        if not self._resample(frame):  # the source changed its format, and a resampler serves one: a new one may take it
            self._resampler = self._new_resampler()
            if not self._resample(frame):
                self._resampler = self._new_resampler()
        while self._count >= self._length:
            yield self._cut(self._length)

    def finish(self) -> Iterator[Sound]:
        """What the resampler and the last piece still hold."""
        self._resample(None)
        yield from self.rest()

    def rest(self) -> Iterator[Sound]:
        if self._count:
            yield self._cut(self._count)

    @staticmethod
    def _new_resampler() -> Any:
        return av.AudioResampler(format="flt", layout="mono", rate=SOUND_HZ)

    def _resample(self, frame: Any) -> bool:
        """Take in ``frame`` (None: what the resampler holds back); False when it cannot be."""
        try:
            resampled = self._resampler.resample(frame)
        except (ValueError, av.FFmpegError):
            return False
        for each in resampled:
            samples = np.nan_to_num(each.to_ndarray().reshape(-1).astype(np.float32))
            self._parts.append(np.clip(samples, -1.0, 1.0))
            self._count += len(samples)
        return True

    def _cut(self, length: int) -> Sound:
        samples = np.concatenate(self._parts)
        piece, left = samples[:length].copy(), samples[length:]
        sound = Sound(self._camera_id, self._started_ns, piece, SOUND_HZ)
        self._parts, self._count = [left], len(left)
        self._started_ns += length * SECOND_NS // SOUND_HZ
        return sound


class PyAvCapture:
    """The Capture of a video file or a live source; see ports.Capture.

    A file drops nothing: frames are decoded as they are asked for. A live source is read by a thread of its own that holds the newest
    ``queue_frames``; a consumer that cannot follow loses the oldest, counted. Only frames handed on are converted to BGR.
    A file with ``is_live`` is played at its own pace, as a camera would give it. One capture is read once.
    """

    def __init__(self, camera: Camera, options: CaptureOptions | None = None, rng: random.Random | None = None) -> None:
        self.camera = camera
        self._options = options or CaptureOptions()
        self._shown = without_credentials(camera.uri)
        self._is_local = is_local_file(camera.uri)
        self._is_live = camera.is_live or scheme_of(camera.uri) in LIVE_SCHEMES or camera.uri.startswith("/dev/")
        self._part = Part(self._options.from_s, self._options.to_s)
        self._account = CoverageAccount(camera.camera_id, self._options.gap_after_s)
        self._clock = Clock()
        self._sampler = Sampler(camera.sampling_hz)
        self._reformatter = VideoReformatter()
        self._backoff = Backoff(self._options.retry_first_s, self._options.retry_most_s, rng)
        self._closed = threading.Event()
        self._is_hardware_wished = True
        self._start_ns = 0  # UTC of a file's first frame
        self._ended_ns = 0  # UTC at which a live source was closed or given up
        self._queue: FrameQueue | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._failure: BaseException | None = None
        self._last_picture_s = 0.0
        self._sounds: deque[Sound] = deque(maxlen=64)
        self._sound_came = threading.Condition()
        self._is_sound_wished = False
        if self._is_local:
            check_file(Path(camera.uri))

    # ------------------------------------------------------------------------------------------ the port

    def frames(self) -> Iterator[Frame]:
        """See ports.Capture. Numbers count every decoded frame of the file, also for a part of it."""
        if self._is_live:
            yield from self._live_frames()
            return
        for stamped in self._file_frames():
            yield self._hand_on(stamped)

    def sounds(self) -> Iterator[Sound]:
        """See ports.Capture: mono float32 at 16 kHz. Live sound shares the connection of ``frames``; read each in a thread of its own."""
        if not self._is_live:
            yield from self._file_sounds()
            return
        self._is_sound_wished = True
        self._start_thread()
        while True:
            with self._sound_came:
                while not self._sounds and not self._is_over():
                    self._sound_came.wait(0.5)
                if not self._sounds:
                    return
                sound = self._sounds.popleft()
            yield sound

    def coverage(self) -> CameraCoverage:
        return self._account.snapshot((self._ended_ns or time.time_ns()) if self._is_live else 0)

    def close(self) -> None:
        """Stop; frames() and sounds() end, in whichever thread they run. A blocked read ends by itself within its timeout."""
        self._ended_ns = self._ended_ns or time.time_ns()
        self._closed.set()
        if self._queue is not None:
            self._queue.finish(empty=True)
        with self._sound_came:
            self._sound_came.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(0.2)

    # ------------------------------------------------------------------------------------------ files

    def _file_frames(self) -> Iterator[StampedPicture]:
        """The sampled frames of a file, in the caller's thread."""
        source = self._open()
        try:
            self._start_ns = start_of_source(source, self.camera.uri, self.camera.starts_at_ns)
            self._clock = Clock(self._start_ns)
            self._account.began(self._start_ns + self._part.from_ns)
            source = self._seek(source)
            while True:
                reason = ""
                try:
                    yield from self._frames_of_pass(source)
                except _HardwareFailedError as failure:
                    log.warning("%s; decoding in software", failure, extra={"camera": self.camera.camera_id})
                    self._is_hardware_wished = False
                    source.close()
                    source = self._seek(self._open())
                    continue
                except _BrokenStreamError as broken:
                    self._account.corrupt()
                    reason = str(broken)
                if self._closed.is_set():
                    return
                self._check_end(source, reason)
                if not self._options.loop or reason or not source.frames_out:
                    return
                source.container.seek(0)
                source.frames_out = 0
                self._clock.reconnected()
        finally:
            source.close()

    def _frames_of_pass(self, source: _Source) -> Iterator[StampedPicture]:
        for picture in self._pictures(source):
            captured_at_ns = self._clock.utc_ns(picture.offset_ns)
            offset_ns = captured_at_ns - self._start_ns
            is_kept = self._sampler.keep(offset_ns)
            if self._part.is_after(offset_ns):
                continue
            if offset_ns >= self._part.to_ns:
                return
            self._account.saw(captured_at_ns)
            if is_kept:
                yield StampedPicture(captured_at_ns, picture.number, picture.frame)

    def _seek(self, source: _Source) -> _Source:
        """``source`` placed at a keyframe before the part, so that decoding from there gives every frame of it."""
        target_ns = self._part.from_ns - PREROLL_NS
        if target_ns <= 0 or source.video is None or source.origin_ns is None:
            return source
        ticks = int(Fraction(target_ns + source.origin_ns, SECOND_NS) / source.video.time_base)
        try:
            source.container.seek(ticks, stream=source.video, backward=True)
            first = next((p for p in source.container.demux(source.video) if p.size and not p.is_discard), None)
            first_ns = None if first is None else source.offset_ns(first.pts, source.video.time_base)
            if first is not None and first.dts is not None and first.is_keyframe and first_ns is not None and first_ns < self._part.from_ns:
                source.container.seek(ticks, stream=source.video, backward=True)
                source.first_dts, source.is_sought = first.dts, True
                return source
        except av.FFmpegError as error:
            log.info("cannot seek (%s); decoding from the start", reason_of(error, 0), extra={"camera": self.camera.camera_id})
        source.close()
        return self._open()

    def _check_end(self, source: _Source, reason: str) -> None:
        """Account for a file that ended before its header says, and refuse one that gave nothing."""
        coverage = self._account.snapshot()
        if coverage.seen - coverage.corrupt == 0 and (self._part.is_whole or reason):
            raise UnreadableMediaError(
                f"{self._shown} must hold a picture that can be decoded, got none"
                f" ({reason or f'{coverage.corrupt} corrupt frames'}): copy or record it again"
            )
        end_ns = min(source.duration_ns, self._part.to_ns)
        missing_ns = self._start_ns + end_ns - coverage.to_ns
        interval_ns = round(SECOND_NS / (source.video.average_rate or 1))
        if not self._options.loop and max(SECOND_NS // 2, 4 * interval_ns) < missing_ns < LONGEST_PAUSE_NS:
            reason = reason or "the file ends before its header says"
            self._account.ended(self._start_ns + end_ns, f"truncated: {reason}")
        if reason:
            log.warning("%s: %s", self._shown, reason, extra={"camera": self.camera.camera_id})

    def _file_sounds(self) -> Iterator[Sound]:
        source = open_source(self.camera.uri, replace(self._options, hardware="off"))
        try:
            if source.audio is None or source.audio.codec_context is None:
                return
            start_ns = start_of_source(source, self.camera.uri, self.camera.starts_at_ns)
            if self._part.from_ns > PREROLL_NS:
                with contextlib.suppress(av.FFmpegError):  # a file that cannot be sought is decoded from its start
                    source.container.seek((self._part.from_ns - PREROLL_NS + (source.origin_ns or 0)) // 1_000)
            pieces = _SoundPieces(self.camera.camera_id)
            for frame in self._sound_frames(source):
                offset_ns = source.offset_ns(frame.pts, frame.time_base)
                if offset_ns is None or self._part.is_after(offset_ns):
                    continue
                if offset_ns >= self._part.to_ns:
                    break
                yield from pieces.add(frame, start_ns + offset_ns)
            if not self._closed.is_set():
                yield from pieces.finish()
        finally:
            source.close()

    def _sound_frames(self, source: _Source) -> Iterator[Any]:
        packets = source.container.demux(source.audio)
        while not self._closed.is_set():
            try:
                packet = next(packets)
            except (StopIteration, av.FFmpegError):
                return
            yield from self._decode_packet(packet)

    # ------------------------------------------------------------------------------------------ decoding

    def _open(self) -> _Source:
        source = open_source(self.camera.uri, self._options, hardware=self._is_hardware_wished)
        try:
            require_video(source, self.camera.uri)
        except BadInputError:
            source.close()
            raise
        return source

    def _pictures(self, source: _Source) -> Iterator[_Picture]:
        """Decoded pictures until the end; what does not decode is counted. Raises _BrokenStreamError when reading fails."""
        is_sound_there = self._is_live and len(source.streams()) > 1
        pieces = _SoundPieces(self.camera.camera_id) if is_sound_there else None
        for packet in self._packets(source, source.streams() if is_sound_there else [source.video]):
            if packet.stream.type == "audio":
                self._take_sound(source, packet, pieces)
                continue
            if source.is_sought and not source.frames_out and packet.pts is not None and not packet.is_discard:
                source.early_pts.append(packet.pts)
            for frame in self._decode_packet(packet, source):
                if not source.frames_out and source.is_sought:
                    source.number = self._number_at(source, frame.pts)
                number, source.number = source.number, source.number + 1
                source.frames_out += 1
                offset_ns = source.offset_ns(frame.pts, frame.time_base or source.video.time_base)
                if frame.is_corrupt:
                    if offset_ns is None or self._part.holds(offset_ns):
                        self._account.corrupt()
                    continue
                self._last_picture_s = time.monotonic()
                yield _Picture(number, offset_ns, frame)

    def _packets(self, source: _Source, streams: list[Any]) -> Iterator[Any]:
        failures = 0
        packets = source.container.demux(*streams)
        while not self._closed.is_set():
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError as error:
                failures += 1
                reason = reason_of(error, self._options.read_timeout_s)
                if not self._is_local or failures > READ_ATTEMPTS or not isinstance(error, av.error.InvalidDataError):
                    raise _BrokenStreamError(reason) from None
                packets = source.container.demux(*streams)
                continue
            if packet.size:
                failures = 0
            yield packet
            if self._is_live and not self._is_local and time.monotonic() - self._last_picture_s > NO_PICTURE_S:
                raise _BrokenStreamError(f"data came, but no picture in it for {NO_PICTURE_S:g} s")

    def _decode_packet(self, packet: Any, source: _Source | None = None) -> list[Any]:
        """The frames of a packet. ``source`` given: those of its video; what does not decode is counted there."""
        try:
            return list(packet.decode())
        except av.error.EOFError:
            return []
        except (av.FFmpegError, ValueError) as error:
            if source is None:
                return []
            if source.hardware and not source.frames_out:
                raise _HardwareFailedError(f"{source.hardware} does not decode {self._shown} ({reason_of(error, 0)})") from None
            offset_ns = source.offset_ns(packet.pts, packet.time_base)
            is_counted = packet.size and (source.frames_out or not source.is_sought)  # frames cut off by the seek are not corrupt
            if is_counted and (offset_ns is None or self._part.holds(offset_ns)):
                self._account.corrupt()
            if is_counted:
                source.number += 1  # the frame that should have been here keeps its number
            return []

    def _number_at(self, source: _Source, pts: int | None) -> int:
        """Ordinal of the first frame after a seek: frames before its keyframe, plus those after it that are shown earlier."""
        before = sum(1 for early in source.early_pts if pts is not None and early < pts)
        entries = source.video.index_entries
        if source.video.frames and len(entries) == source.video.frames:
            position = entries.search_timestamp(source.first_dts, backward=True, any_frame=True)
            return before + sum(not entry.is_discard for entry in entries[: max(position, 0)])
        counting = open_source(self.camera.uri, replace(self._options, hardware="off"))
        try:
            for packet in counting.container.demux(counting.video):
                if packet.dts is not None and packet.dts >= source.first_dts:
                    break
                before += bool(packet.size) and not packet.is_discard
        finally:
            counting.close()
        return before

    def _hand_on(self, stamped: StampedPicture) -> Frame:
        """The frame as BGR, turned upright; counted as sampled."""
        picture = self._reformatter.reformat(stamped.frame, format="bgr24")
        bgr = picture.to_ndarray()
        if stamped.frame.rotation % 360:
            bgr = np.rot90(bgr, round(stamped.frame.rotation / 90))
        self._account.sampled()
        return Frame(self.camera.camera_id, stamped.captured_at_ns, np.ascontiguousarray(bgr), stamped.number)

    # ------------------------------------------------------------------------------------------ the reader thread

    def _live_frames(self) -> Iterator[Frame]:
        queue = self._start_thread()
        try:
            while (stamped := queue.get()) is not None and not self._closed.is_set():
                if is_late(stamped.captured_at_ns, queue.newest_ns, self._options.late_s):
                    self._account.dropped()
                    continue
                yield self._hand_on(stamped)
            if self._failure is not None and not self._closed.is_set():
                raise self._failure
        finally:
            self.close()

    def _start_thread(self) -> FrameQueue:
        with self._starting:
            if self._queue is None:
                self._queue = FrameQueue(self._options.queue_frames)
                self._thread = threading.Thread(target=self._read, args=(self._queue,), name=f"read-{self.camera.camera_id}", daemon=True)
                self._thread.start()
            return self._queue

    def _read(self, queue: FrameQueue) -> None:
        """The thread: read until closed; what is raised is raised again where the frames are used."""
        try:
            self._run_live(queue)
        except BaseException as error:  # a thread must not swallow a bug
            self._failure = error
        finally:
            self._ended_ns = self._ended_ns or time.time_ns()
            queue.finish()
            with self._sound_came:
                self._sound_came.notify_all()

    def _is_over(self) -> bool:
        return self._closed.is_set() or (self._thread is not None and not self._thread.is_alive())

    def _run_live(self, queue: FrameQueue) -> None:
        self._account.began(time.time_ns())
        self._last_picture_s = absent_since_s = time.monotonic()
        while not self._closed.is_set():
            seen = self._account.snapshot().seen
            reason = self._one_connection(queue)
            if self._closed.is_set() or (self._is_local and not reason and not self._options.loop):
                return
            self._clock.reconnected()
            if self._account.snapshot().seen > seen:
                self._backoff.reset()
                absent_since_s = time.monotonic()
            if self._is_local and not reason:
                continue
            self._account.away(0, reason)
            log.warning("%s: %s; trying again", self._shown, reason, extra={"camera": self.camera.camera_id})
            self._wait_or_give_up(reason, absent_since_s)

    def _wait_or_give_up(self, reason: str, absent_since_s: float) -> None:
        absent_s, most_s = time.monotonic() - absent_since_s, self._options.give_up_after_s
        if not self._options.reconnect or (most_s and absent_s >= most_s):
            raise SourceUnavailableError(
                f"camera {self.camera.camera_id} at {self._shown} must give pictures, got none for {absent_s:.1f} s ({reason});"
                " check address, power and password"
            )
        wait_s = self._backoff.next_s()
        self._closed.wait(min(wait_s, most_s - absent_s) if most_s else wait_s)

    def _one_connection(self, queue: FrameQueue) -> str:
        """Read until the source is lost; gives the reason, "" at the end of a file."""
        source = None
        try:
            self._last_picture_s = time.monotonic()
            source = self._open()
            for picture in self._pictures(source):
                self._take_live(queue, picture)
        except _HardwareFailedError as failure:
            self._is_hardware_wished = False
            return f"{failure}; decoding in software"
        except _BrokenStreamError as broken:
            return str(broken)
        except SightlineError as error:
            if self._is_local:
                raise
            return str(error)
        finally:
            if source is not None:
                source.close()
        return "" if self._is_local else "the stream ended"

    def _take_live(self, queue: FrameQueue, picture: _Picture) -> None:
        if picture.offset_ns is None and self._clock.anchor_ns is None:  # RTSP: the first picture may come before its first time
            self._account.saw(time.time_ns())
            return
        captured_at_ns = self._clock.utc_ns(picture.offset_ns, time.time_ns())
        if self._is_local:  # a file played as a camera: at its own pace
            self._closed.wait(max(0, captured_at_ns - time.time_ns()) / SECOND_NS)
        self._account.saw(captured_at_ns)
        if self._sampler.keep(captured_at_ns):
            self._account.dropped(queue.put(StampedPicture(captured_at_ns, picture.number, picture.frame)))

    def _take_sound(self, source: _Source, packet: Any, pieces: _SoundPieces | None) -> None:
        anchor_ns = self._clock.anchor_ns
        if not self._is_sound_wished or pieces is None or anchor_ns is None:
            return
        for frame in self._decode_packet(packet):
            offset_ns = source.offset_ns(frame.pts, frame.time_base)
            for sound in pieces.add(frame, anchor_ns + (offset_ns or 0)):
                with self._sound_came:
                    self._sounds.append(sound)
                    self._sound_came.notify_all()


def read_sound(path: Path) -> tuple[NDArray[np.float32], int]:
    """The sound of a file as mono float32 (N,) and its rate, 16000 Hz. Raises NotFoundError, or UnreadableMediaError when it has none."""
    capture = PyAvCapture(Camera("sound", str(path), starts_at_ns=1))
    pieces = [sound.samples for sound in capture.sounds()]
    if not pieces:
        raise UnreadableMediaError(f"{path} must hold sound, got none that can be decoded: record it again, for example as WAV")
    return np.concatenate(pieces), SOUND_HZ
