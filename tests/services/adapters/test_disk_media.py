"""Crops on disk: whole or not there, and clear words when the disk is full or read-only."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pipeline.errors import BadInputError, NotFoundError, ReadOnlyStorageError, StorageFullError
from services.adapters.disk_media import DiskMedia


@pytest.mark.parametrize(("code", "wanted"), [(errno.ENOSPC, StorageFullError), (errno.EROFS, ReadOnlyStorageError)])
def test_a_failed_write_leaves_no_half_crop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, wanted: type[Exception]) -> None:
    def full_disk(_: int) -> None:
        raise OSError(code, os.strerror(code))

    media = DiskMedia(tmp_path)
    monkeypatch.setattr("services.adapters.disk_media.os.fsync", full_disk)
    with pytest.raises(wanted):
        media.put("a/b.jpg", b"x" * 1000)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    with pytest.raises(NotFoundError):
        media.get("a/b.jpg")


def test_crops_are_spread_over_sub_folders(tmp_path: Path) -> None:
    media = DiskMedia(tmp_path)
    for number in range(64):
        media.put(f"camera/{number}.jpg", b"x")
    assert len(list(tmp_path.iterdir())) > 20


def test_a_key_below_another_crop_is_refused(tmp_path: Path) -> None:
    media = DiskMedia(tmp_path)
    media.put("a", b"x")
    shard = next(tmp_path.iterdir()).name
    below = next(key for key in (f"a/{n}" for n in range(5000)) if media._path(key).relative_to(tmp_path).parts[0] == shard)
    with pytest.raises(BadInputError):
        media.put(below, b"y")
