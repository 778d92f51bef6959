"""What the gateway says instead of an answer: a status and one clear sentence."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.errors import BadInputError, NotFoundError, NotReadyError

TRY_AGAIN_S = 2


class RefusedError(Exception):
    """A request that gets no answer: the HTTP status, one sentence for whoever asked, and headers that go with it."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, dict(headers or {})


def busy(sentence: str) -> RefusedError:
    """Too many searches of this gateway wait already (429)."""
    return RefusedError(429, sentence, {"Retry-After": "1"})


def not_ready(sentence: str) -> RefusedError:
    """The world behind the gateway is not ready (503)."""
    return RefusedError(503, sentence, {"Retry-After": str(TRY_AGAIN_S)})


def refusal_of(error: Exception) -> RefusedError | None:
    """The refusal that an error stands for; None for a bug or a broken setting, which only the log explains."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, NotFoundError):
        return RefusedError(404, str(error))
    if isinstance(error, BadInputError):
        return RefusedError(422, str(error))
    if isinstance(error, NotReadyError):
        return not_ready(str(error))
    return None
