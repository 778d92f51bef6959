"""Portraits as operators give them: one face in, or one line that says what to do."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.errors import BadInputError, NotFoundError, SpaceMismatchError, UnreadableMediaError
from pipeline.ports import Face
from pipeline.types import FACE
from services import portraits, wiring
from services.portraits import faces_in, portrait_probe, read_picture, stated_size
from services.settings import EmbedSettings, Settings
from tests.fakes import embedding
from tests.models.test_face import cartoon


class Faces:
    """The FaceEncoder port: always the same faces, of (left edge, whether it has a vector)."""

    space = "fake-face@1"

    def __init__(self, *places: tuple[int, bool]) -> None:
        self.places = places

    def faces(self, bgr: np.ndarray) -> list[Face]:
        return [
            Face(
                np.array([x, 20, x + 40, 60], np.float32),
                0.9,
                0.7 if is_good else 0.0,
                embedding(FACE, 1.0, x) if is_good else None,
                "" if is_good else "blurred",
            )
            for x, is_good in self.places
        ]


@pytest.fixture
def seeing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes every picture show these faces."""
    return lambda *places: monkeypatch.setattr(wiring, "face_encoder", lambda settings: Faces(*places))


def picture(folder: Path, height: int = 120, width: int = 300) -> Path:
    path = folder / "portrait.png"
    cv2.imwrite(str(path), np.full((height, width, 3), 90, np.uint8))
    return path


def refusal(path: Path, which: int | None = None, **more: object) -> str:
    with pytest.raises(BadInputError) as caught:
        portrait_probe(Settings(), path, which, **more)  # type: ignore[arg-type]
    said = str(caught.value)
    assert "\n" not in said, "one line"
    return said


def test_the_one_face_is_the_probe(tmp_path: Path, seeing: Callable[..., None]) -> None:
    seeing((50, True))
    probe = portrait_probe(Settings(), picture(tmp_path))
    assert probe.kind == "portrait"
    assert [each.space for each in probe.embeddings] == ["fake-face@1"]


def test_of_several_faces_it_is_asked_which(tmp_path: Path, seeing: Callable[..., None]) -> None:
    seeing((200, True), (10, True), (110, False), (150, True))
    said = refusal(picture(tmp_path))
    assert "shows 4 faces: 1 at left (x 10..50, y 20..60), 2 at middle (x 110..150, y 20..60, blurred)" in said
    assert said.endswith("4 at right (x 200..240, y 20..60): choose one with --face N")


def test_the_numbers_are_shown_on_the_picture_when_asked(tmp_path: Path, seeing: Callable[..., None]) -> None:
    seeing((10, True), (150, True))
    out = tmp_path / "numbers" / "page.jpg"
    assert f"({out} shows the numbers)" in refusal(picture(tmp_path), numbered=out)
    page = cv2.imread(str(out))
    assert page is not None
    assert int(np.abs(page.astype(int) - 90).max()) > 60, "something is drawn"
    assert "must end in .jpg or .png" in refusal(picture(tmp_path), numbered=tmp_path / "page.pdf")


def test_a_numbered_face_is_taken_from_the_left(tmp_path: Path, seeing: Callable[..., None]) -> None:
    seeing((200, True), (10, True))
    path = picture(tmp_path)
    first, second = (portrait_probe(Settings(), path, number).embeddings[0].vector for number in (1, 2))
    np.testing.assert_allclose(first, embedding(FACE, 1.0, 10).vector)
    np.testing.assert_allclose(second, embedding(FACE, 1.0, 200).vector)
    assert [float(face.xyxy[0]) for face in faces_in(Settings(), path)] == [10, 200]


def test_a_number_that_is_none_names_those_there_are(tmp_path: Path, seeing: Callable[..., None]) -> None:
    seeing((10, True), (200, False))
    path = picture(tmp_path)
    assert "--face must be 1 to 2" in refusal(path, 3)
    assert "face 2" in refusal(path, 2)
    assert "(blurred)" in refusal(path, 2)


def test_a_poor_face_beside_a_good_one_is_no_question(tmp_path: Path, seeing: Callable[..., None]) -> None:
    seeing((10, False), (200, True))
    np.testing.assert_allclose(portrait_probe(Settings(), picture(tmp_path)).embeddings[0].vector, embedding(FACE, 1.0, 200).vector)


def test_what_is_wrong_with_the_only_face_is_said(tmp_path: Path, seeing: Callable[..., None]) -> None:
    seeing((10, False))
    assert "must show a face clearly, got blurred" in refusal(picture(tmp_path))


def test_no_face_and_a_picture_too_small_for_one(tmp_path: Path, seeing: Callable[..., None]) -> None:
    seeing()
    assert "must show a face, found none in 300 x 120 pixels" in refusal(picture(tmp_path))
    assert "got 10 x 10" in refusal(picture(tmp_path, 10, 10))


def test_a_missing_a_corrupt_and_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nobody\.jpg must exist"):
        portrait_probe(Settings(), tmp_path / "nobody.jpg")
    path = tmp_path / "broken.jpg"
    for content in (b"", b"these are words", b"\xff\xd8\xff\xe0\x00\x10JFIF" + b"\x00" * 40):
        path.write_bytes(content)
        with pytest.raises(UnreadableMediaError, match=rf"got {len(content)} bytes that do not decode"):
            portrait_probe(Settings(), path)


def test_a_picture_that_would_fill_the_memory_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 60000, 60000, 8, 2, 0, 0, 0))
    assert "at most 120 million pixels, got 60000 x 60000" in refusal(path)
    monkeypatch.setattr(portraits, "MOST_BYTES", 10)
    with pytest.raises(BadInputError, match="must have at most"):
        read_picture(path)


def test_the_stated_size_is_the_decoded_one(tmp_path: Path) -> None:
    for ending in (".png", ".jpg"):
        _, data = cv2.imencode(ending, np.zeros((37, 53, 3), np.uint8))
        assert stated_size(data.tobytes()) == (53, 37)
    assert stated_size(b"GIF89a") == stated_size(b"") == (0, 0)


# ----------------------------------------------------------------------------------------- the real encoder


def test_a_drawn_face_is_called_so(tmp_path: Path, weights: Callable[[str], Path]) -> None:
    weights("mobilefacenet")
    path = tmp_path / "cartoon.png"
    cv2.imwrite(str(path), cartoon())
    assert "drawn, not photographed" in refusal(path)


def test_five_people_in_one_picture_are_listed(weights: Callable[[str], Path], shared_data: Path) -> None:
    weights("mobilefacenet")
    path = shared_data / "faces" / "sitcom" / "bbt3.jpg"
    assert "shows 5 faces" in refusal(path)
    assert portrait_probe(Settings(), path, 5).embeddings[0].space == "mobilefacenet@1"


def test_an_index_in_the_old_space_is_asked_in_it(weights: Callable[[str], Path], shared_data: Path) -> None:
    weights("faceres")
    path = shared_data / "faces" / "stills" / "obama_small.jpg"
    assert portrait_probe(Settings(), path, space="faceres@1").embeddings[0].space == "faceres@1"
    with pytest.raises(SpaceMismatchError):
        portrait_probe(Settings(), path, space="somebody-elses@7")


def test_the_setting_chooses_the_model(weights: Callable[[str], Path]) -> None:
    weights("faceres")
    settings = Settings(embed=EmbedSettings(face_model="faceres"))
    assert wiring.face_encoder(settings).space == "faceres@1"
    assert wiring.face_encoder_of(settings, "mobilefacenet@1").space == "mobilefacenet@1"
    assert wiring.face_encoder_of(settings, "faceres@1").space == "faceres@1"
