"""The demo's clip is had from somewhere on every machine, or the reason is said."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.errors import NotFoundError, ReadOnlyStorageError, SourceUnavailableError, UnreadableMediaError
from services import demo_clip
from services.demo_clip import DEBIAN_MEMBER, FRAME_SIZE, PAN_HZ, PAN_SECONDS, debian_sample, find_clip, pan


def no_photograph() -> Path:
    raise AssertionError("nobody asked for the photograph")


def nothing(text: str) -> None:
    pass


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that is the whole PATH, on a machine where the sample is not installed."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(demo_clip, "DEBIAN_MEMBER", "nowhere/vtest.avi")
    return programs


def add_program(folder: Path, name: str, script: str) -> None:
    program = folder / name
    program.write_text(f"#!{sys.executable}\n{script}")
    program.chmod(0o755)


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "people.png"
    ramp = np.tile(np.linspace(0, 255, 900).astype(np.uint8), (500, 1))  # dark on the left, bright on the right
    assert cv2.imwrite(str(path), np.dstack([ramp] * 3))
    return path


def brightness(clip: Path) -> list[float]:
    reader, values = cv2.VideoCapture(str(clip)), []
    while True:
        is_read, picture = reader.read()
        if not is_read:
            return values
        assert picture.shape[1::-1] == FRAME_SIZE
        values.append(float(picture.mean()))


def test_ones_own_clip_is_taken_as_it_is(tmp_path: Path) -> None:
    own = tmp_path / "mine.mp4"
    own.touch()
    assert find_clip(own, tmp_path, no_photograph, nothing) == (own, "your own")
    with pytest.raises(NotFoundError, match=r"gone\.mp4 must exist"):
        find_clip(tmp_path / "gone.mp4", tmp_path, no_photograph, nothing)


def test_the_kept_sample_is_used_again(tmp_path: Path, bare_machine: Path) -> None:
    (tmp_path / "vtest.avi").touch()
    assert find_clip(None, tmp_path, no_photograph, nothing)[0] == tmp_path / "vtest.avi"


def test_without_any_sample_the_photograph_is_panned_over_once(tmp_path: Path, bare_machine: Path, photograph: Path) -> None:
    said: list[str] = []
    cache = tmp_path / "not" / "yet" / "there"
    clip, source = find_clip(None, cache, lambda: photograph, said.append)
    assert "photograph" in source
    assert "no public sample" in said[0]
    values = brightness(clip)
    assert len(values) == PAN_SECONDS * PAN_HZ
    middle = len(values) // 2
    assert values[middle] > values[0] + 20  # to the right ...
    assert abs(values[-1] - values[0]) < 5  # ... and back
    assert find_clip(None, cache, no_photograph, nothing)[0] == clip
    assert [path.name for path in cache.iterdir()] == [clip.name]


@pytest.mark.parametrize("shape", [(40, 30, 3), (2000, 300, 3), (300, 3000, 3)])
def test_a_picture_of_any_shape_can_be_panned_over(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pan(np.zeros(shape, np.uint8), tmp_path / "pan.avi")
    assert len(brightness(tmp_path / "pan.avi")) == PAN_SECONDS * PAN_HZ


def test_a_photograph_that_does_not_decode_is_named_and_leaves_no_clip(tmp_path: Path, bare_machine: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(UnreadableMediaError, match=r"broken\.jpg"):
        find_clip(None, tmp_path, lambda: tmp_path / "broken.jpg", nothing)
    assert not (tmp_path / "moving-camera.avi").exists()


def test_a_clip_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReadOnlyStorageError, match="must be writable"):
        pan(np.zeros((40, 30, 3), np.uint8), tmp_path / "absent" / "pan.avi")


def test_the_sample_is_unpacked_from_the_fetched_package(tmp_path: Path, bare_machine: Path) -> None:
    add_program(bare_machine, "apt-get", "open('opencv-doc_1.deb', 'w').close()")
    add_program(bare_machine, "dpkg-deb", "import os\nos.makedirs('x/nowhere')\nopen('x/nowhere/vtest.avi', 'w').write('clip')")
    said: list[str] = []
    assert debian_sample(tmp_path / "clips", said.append).read_text() == "clip"
    assert "once" in said[0]
    assert [path.name for path in (tmp_path / "clips").iterdir()] == ["vtest.avi"]


@pytest.mark.parametrize(
    ("apt", "dpkg", "reason"),
    [
        ("import sys\nsys.exit('E: no network')", "", "E: no network"),
        ("", "", "no package came"),
        ("open('opencv-doc_1.deb', 'w').close()", "import sys\nsys.exit(2)", "came damaged"),
        ("open('opencv-doc_1.deb', 'w').close()", "", "no longer carries"),
    ],
)
def test_a_package_client_that_fails_is_quoted(tmp_path: Path, bare_machine: Path, apt: str, dpkg: str, reason: str) -> None:
    add_program(bare_machine, "apt-get", apt)
    add_program(bare_machine, "dpkg-deb", dpkg)
    with pytest.raises(SourceUnavailableError, match=reason):
        debian_sample(tmp_path / "clips", nothing)
    assert list((tmp_path / "clips").iterdir()) == []


def test_another_system_has_no_debian_client(tmp_path: Path, bare_machine: Path) -> None:
    with pytest.raises(SourceUnavailableError, match="no Debian package client"):
        debian_sample(tmp_path, nothing)


def test_the_member_is_a_relative_path() -> None:
    assert not DEBIAN_MEMBER.startswith("/")
