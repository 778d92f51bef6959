"""Pictures to JPEG and back."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import UnreadableMediaError
from services.crops import from_jpeg, load, store, to_jpeg
from tests.fakes import InMemoryMedia


def test_a_picture_comes_back_nearly_as_it_was() -> None:
    picture = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[:, None, None], (1, 32, 3))
    back = from_jpeg(to_jpeg(picture))
    assert back.shape == picture.shape
    assert np.abs(back.astype(int) - picture).mean() < 3


def test_a_view_into_a_frame_can_be_encoded() -> None:
    frame = np.zeros((100, 100, 3), np.uint8)
    assert from_jpeg(to_jpeg(frame[10:50, 20:40])).shape == (40, 20, 3)


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 4), (4, 4, 4)])
def test_what_is_no_picture_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be uint8"):
        to_jpeg(np.zeros(shape, np.uint8))


def test_damaged_bytes_name_the_picture() -> None:
    for data in (b"", b"not a picture"):
        with pytest.raises(UnreadableMediaError, match=r"gate/0\.jpg"):
            from_jpeg(data, "gate/0.jpg")


def test_pictures_are_stored_under_their_keys_and_missing_ones_are_none() -> None:
    media = InMemoryMedia()
    assert store(media, [("a/0.jpg", np.zeros((8, 8, 3), np.uint8))]) == 1
    assert load(media, "a/0.jpg") is not None
    assert load(media, "a/1.jpg") is None
