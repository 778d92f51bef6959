"""The error tree. The branch tells a worker what to do.

SightlineError
├── BadInputError          this input can never work: dead-letter it and go on
│   ├── UnreadableMediaError   a file or stream that is no video, sound or picture
│   ├── SpaceMismatchError     vectors of two embedding spaces met
│   ├── SchemaError            a message or record that does not decode
│   └── NotFoundError          the named camera, tracklet, watch or file is not there
├── NotReadyError          the world is not ready: pause and retry with back-off
│   ├── SourceUnavailableError a camera refuses, vanished or is frozen
│   └── StorageFullError       no space left: nothing is acknowledged until there is
├── DeadlineExceededError  time is up: answer in part and say so
└── SettingsError          refuse to start: key, value and what is allowed
    ├── NewerSchemaError       a database written by a newer Sightline
    ├── ReadOnlyStorageError   a data folder that cannot be written
    └── MissingDependencyError an extra is not installed: names the install command

Anything else is a bug: the process stops loudly and commits nothing.
"""

from __future__ import annotations


class SightlineError(Exception):
    """Root of every error that Sightline raises on purpose."""


class BadInputError(SightlineError):
    """The input can never work; dead-letter it and go on."""


class UnreadableMediaError(BadInputError):
    """A file or stream is no video, sound or picture that can be decoded."""


class SpaceMismatchError(BadInputError):
    """Two vectors of different embedding spaces were about to be compared or mixed."""

    def __init__(self, expected: str, received: str) -> None:
        super().__init__(f"embedding space must be {expected!r}, got {received!r}: re-index with one model version or search that space")
        self.expected = expected
        self.received = received


class SchemaError(BadInputError):
    """A message or record does not decode."""


class NotFoundError(BadInputError):
    """The named thing is not there."""


class NotReadyError(SightlineError):
    """The world is not ready; pause and retry with back-off."""


class SourceUnavailableError(NotReadyError):
    """A camera refuses, vanished or is frozen."""


class StorageFullError(NotReadyError):
    """No space is left on the device; nothing is acknowledged until there is."""


class DeadlineExceededError(SightlineError):
    """Time is up; the answer so far is partial."""


class SettingsError(SightlineError):
    """The process refuses to start; the text names key, value and what is allowed."""


class NewerSchemaError(SettingsError):
    """A database was written by a newer Sightline."""


class ReadOnlyStorageError(SettingsError):
    """A data folder cannot be written."""


class MissingDependencyError(SettingsError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} is not installed: run  pip install 'sightline[{extra}]'")
