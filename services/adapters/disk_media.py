"""Crops as files in one folder."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.errors import BadInputError, NotFoundError, ReadOnlyStorageError, SightlineError, StorageFullError

_KEY = re.compile(r"[A-Za-z0-9_@=+,:~-][A-Za-z0-9._@=+,:~-]{0,199}(/[A-Za-z0-9_@=+,:~-][A-Za-z0-9._@=+,:~-]{0,199}){0,7}")


class DiskMedia:
    """The MediaStore port over a folder; files lie in 256 sub-folders by a hash of their key. Any number of processes may share it."""

    def __init__(self, folder: Path) -> None:
        """Touches nothing yet: the folder is made with the first crop."""
        self.folder = Path(folder)

    def put(self, key: str, jpeg: bytes) -> None:
        """Store or replace; durable and whole once it returns. Raises BadInputError (key), StorageFullError, ReadOnlyStorageError."""
        path = self._path(key)
        temporary = path.with_name(f".{secrets.token_hex(8)}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(jpeg)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise _translated(error, self.folder) from error

    def get(self, key: str) -> bytes:
        """Raises NotFoundError, BadInputError (key)."""
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFoundError(f"no crop {key!r} in {self.folder}: it was never stored, or its time was up") from None

    def delete(self, keys: Sequence[str]) -> None:
        """Remove; a key that is not there is no error, so that a deletion can be repeated."""
        for key in keys:
            try:
                self._path(key).unlink(missing_ok=True)
            except OSError as error:
                raise _translated(error, self.folder) from error

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise BadInputError(
                f"a media key must be up to 8 names of letters, digits and ._@=+,:~- with / between and no leading dot, got {key!r}"
            )
        shard = hashlib.sha256(key.encode()).hexdigest()[:2]
        return self.folder / shard / key


def _translated(error: OSError, folder: Path) -> SightlineError | OSError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFullError(f"no space left for crops in {folder}: free some")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return ReadOnlyStorageError(f"{folder} must be writable, got {error.strerror}: change its permissions or the data folder")
    if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return BadInputError(f"a media key must fit a file name beside the others, got {error.strerror}: {error.filename}")
    return error
