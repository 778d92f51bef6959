"""The real command line in processes of its own, and short real clips for it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.errors import SightlineError
from services.adapters.faiss_gallery import FaissGallery
from services.settings import load_settings
from services.wiring import fetch_base_weights

ROOT = Path(__file__).parents[2]


class Line:
    """`sightline` over one data folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        self.environment = {"PYTHONPATH": str(ROOT), "SIGHTLINE_PURPOSE": "test"}
        self._running: list[subprocess.Popen[str]] = []

    def command(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "services", "--data", str(self.data), "--log-level", "warning", *map(str, arguments)]

    def run(self, *arguments: str | Path, timeout_s: float = 120.0, **environment: str) -> subprocess.CompletedProcess[str]:
        """The command to its end, whatever it says."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env={**os.environ, **self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def json(self, *arguments: str | Path) -> Any:
        """What the command prints with --json; it must succeed."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def refused(self, code: int, *arguments: str | Path, **environment: str) -> str:
        """The one line with which the command fails; never a traceback."""
        done = self.run(*arguments, **environment)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        lines = [line for line in done.stderr.splitlines() if line.startswith("sightline: ")]
        assert len(lines) == 1, done.stderr
        return lines[0]

    def start(self, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
        """The command in a process group of its own; ended with the test at the latest."""
        process = subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env={**os.environ, **self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._running.append(process)
        return process

    def close(self) -> None:
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    made = Line(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="session")
def base_weights() -> None:
    """The base weights in the cache; skips where they are not there and cannot be fetched."""
    try:
        fetch_base_weights(load_settings(environment=os.environ), lambda text: None)
    except SightlineError as error:
        pytest.skip(f"model weights cannot be fetched here: {error}")


def write_clip(path: Path, pictures: list[Any], rate_hz: int = 8, times_s: list[float] | None = None, **container: str) -> Path:
    """A real H.264 video of BGR pictures, one each 1/rate_hz seconds or at ``times_s``."""
    times_s = times_s or [number / rate_hz for number in range(len(pictures))]
    with av.open(str(path), "w", options=container) as out:
        video: Any = out.add_stream("libx264", rate=rate_hz, options={"preset": "veryfast", "crf": "20"})
        video.height, video.width = pictures[0].shape[:2]
        video.pix_fmt = "yuv420p" if video.height % 2 == 0 and video.width % 2 == 0 else "yuv444p"
        video.codec_context.time_base = Fraction(1, 1000)
        video.codec_context.gop_size = rate_hz
        for picture, moment in zip(pictures, times_s, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = round(moment * 1000), Fraction(1, 1000)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
    os.utime(path, (1_700_000_000, 1_700_000_000))  # the time of a clip without metadata: the same in every run
    return path


def pictures_of(path: Path, seconds: float, every: int = 3) -> list[Any]:
    """Every ``every``-th picture of the first seconds of a video."""
    with av.open(str(path)) as container:
        frames = container.decode(video=0)
        return [
            f.to_ndarray(format="bgr24")
            for n, f in enumerate(iter(lambda: next(frames, None), None))
            if n % every == 0 and f.time < seconds
        ]


@pytest.fixture(scope="session")
def people(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two and a half seconds of real people at 8 frames a second."""
    pictures = pictures_of(shared_data / "video" / "crossing.mp4", 2.5)
    return write_clip(tmp_path_factory.mktemp("clips") / "people.mp4", pictures)


@pytest.fixture(scope="session")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds in which nobody is: needs no research data."""
    pictures = [np.full((96, 128, 3), 40 + 5 * number, np.uint8) for number in range(16)]
    return write_clip(tmp_path_factory.mktemp("clips") / "grey.mp4", pictures)


@pytest.fixture(scope="session")
def grey_data(grey: Path, base_weights: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that has seen ``grey``; to be copied."""
    line = Line(tmp_path_factory.mktemp("grey"))
    line.json("ingest", grey)
    return line.data


@pytest.fixture(scope="session")
def people_data(people: Path, base_weights: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that has seen ``people``; to be copied."""
    line = Line(tmp_path_factory.mktemp("people"))
    assert line.json("ingest", people)["tracklets"] >= 3
    return line.data


@pytest.fixture(scope="session")
def people_told(people_data: Path) -> int:
    """How many tracklets an undisturbed run over ``people`` gives."""
    with closing(FaissGallery(people_data / "index", read_only=True)) as gallery:
        return gallery.statistics().tracklets


@pytest.fixture(scope="session")
def clip_writer() -> Callable[..., Path]:
    return write_clip


@pytest.fixture(scope="session")
def clip_reader() -> Callable[..., list[Any]]:
    return pictures_of


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """Wait for a condition, at most so long; says what was waited for."""

    def wait(what: str, condition: Callable[[], object], longest_s: float = 30.0) -> None:
        ends_at = time.monotonic() + longest_s
        while not condition():
            assert time.monotonic() < ends_at, f"not within {longest_s:g} s: {what}"
            time.sleep(0.05)

    return wait
