"""What programs send and get: checked on the way in, times as ISO 8601 in UTC."""

from __future__ import annotations

import asyncio
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta
from starlette.requests import Request

from pipeline.errors import BadInputError
from pipeline.types import Filter, Probe, Query, Watch
from pipeline.types.query import FOREVER_NS
from services.api.refusals import RefusedError
from services.settings import Settings
from services.watches import DAY_NS

MOST_BODY_BYTES = 1_000_000
BODY_WITHIN_S = 10.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Words = Annotated[str, Meta(min_length=1, max_length=1_000, description="A description: 'woman in a red jacket with a white backpack'.")]
Names = Annotated[list[Annotated[str, Meta(min_length=1, max_length=200)]], Meta(max_length=1_000)]
Purpose = Annotated[str, Meta(max_length=500, description="Why; it goes into the audit log.")]
Time = Annotated[str, Meta(max_length=40, description="ISO 8601, in UTC unless it carries an offset: 2026-11-21T04:05:06Z.")]
T = TypeVar("T")


class SearchBody(msgspec.Struct, forbid_unknown_fields=True, rename={"from_": "from"}):
    """A search by words, by somebody already found (tracklet_id), or by both; cameras and zones empty: all.

    steps: how often a match may lead on to the next by face, voice and clothes; 0: only what is like the tracklet itself.
    """

    text: Words | None = None
    tracklet_id: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    steps: Annotated[int, Meta(ge=0, le=Query.MOST_STEPS)] = 3
    from_: Time | None = None
    to: Time | None = None
    cameras: Names = []
    zones: Names = []
    top_k: Annotated[int, Meta(ge=1, le=1_000)] | None = None
    deadline_s: Annotated[float, Meta(gt=0, le=600)] | None = None
    purpose: Purpose = ""

    def query(self, settings: Settings, client: str) -> Query:
        """Raises BadInputError with the field that is wrong."""
        must_say_why(settings, self.purpose)
        from_ns, to_ns = moment_ns("from", self.from_, 0), moment_ns("to", self.to, FOREVER_NS)
        if to_ns < from_ns:
            raise BadInputError(f"to must not be before from, got {self.from_} to {self.to}")
        return Query(
            query_id=uuid.uuid4().hex,
            probes=self._probes(),
            steps=self.steps,
            window=Filter(from_ns, to_ns, tuple(self.cameras), tuple(self.zones)),
            top_k=self.top_k or settings.search.top_k,
            deadline_s=self.deadline_s or settings.search.deadline_s,
            issued_by=client,
            purpose=self.purpose.strip(),
        )

    def _probes(self) -> tuple[Probe, ...]:
        if self.text is None and self.tracklet_id is None:
            raise BadInputError("a search must say whom to look for: text, tracklet_id or both")
        words = (_probe(self.text),) if self.text is not None else ()
        return (*words, *((Probe("tracklet", tracklet_id=self.tracklet_id),) if self.tracklet_id is not None else ()))


class WatchBody(msgspec.Struct, forbid_unknown_fields=True):
    """A standing search by words; cameras and zones empty: all. It expires after a day unless it says otherwise."""

    text: Words
    threshold: Annotated[float, Meta(ge=0, le=1)] | None = None
    cameras: Names = []
    zones: Names = []
    expires: Time | None = None
    purpose: Purpose = ""

    def watch(self, settings: Settings, client: str) -> Watch:
        """Raises BadInputError with the field that is wrong."""
        must_say_why(settings, self.purpose)
        now_ns = time.time_ns()
        expires_at_ns = moment_ns("expires", self.expires, now_ns + DAY_NS)
        if expires_at_ns <= now_ns:
            raise BadInputError(f"expires must lie in the future, got {self.expires}")
        return Watch(
            watch_id=uuid.uuid4().hex[:12],
            probes=(_probe(self.text),),
            threshold=settings.alert.threshold if self.threshold is None else self.threshold,
            cameras=tuple(self.cameras),
            zones=tuple(self.zones),
            created_at_ns=now_ns,
            expires_at_ns=expires_at_ns,
            issued_by=client,
            purpose=self.purpose.strip(),
        )


class WatchView(msgspec.Struct):
    """A watch in force. what: its words, or what kind of picture it has."""

    watch_id: str
    what: list[str]
    threshold: float
    cameras: list[str]
    zones: list[str]
    created: str
    expires: str
    issued_by: str
    purpose: str

    @classmethod
    def of(cls, watch: Watch) -> WatchView:
        what = [("not " if probe.is_negative else "") + (probe.text or probe.kind) for probe in watch.probes]
        created, expires = moment(watch.created_at_ns), moment(watch.expires_at_ns)
        places = list(watch.cameras), list(watch.zones)
        return cls(watch.watch_id, what, watch.threshold, *places, created, expires, watch.issued_by, watch.purpose)


class GapView(msgspec.Struct, rename={"from_": "from"}):
    """When a camera was not seen, and why."""

    from_: str
    to: str
    reason: str


class CameraView(msgspec.Struct):
    """A camera and its newest account.

    is_added: it is one that ingest workers share, not only footage; is_seen: a frame came within the last 30 s; since: the account began
    then; frames, dropped, corrupt, gap_s: in the whole account; gaps: the newest 20.
    """

    camera_id: str
    site: str = ""
    zones: list[str] = []
    is_added: bool = False
    is_live: bool = False
    is_seen: bool = False
    last_frame: str | None = None
    since: str | None = None
    frames: int = 0
    dropped: int = 0
    corrupt: int = 0
    gap_s: float = 0.0
    gaps: list[GapView] = []


class Waiting(msgspec.Struct):
    """A search whose ranking has not come yet: ask again at /v1/searches/{query_id}."""

    query_id: str
    state: str = "waiting"


class ErrorView(msgspec.Struct):
    """What was wrong, in one sentence."""

    error: str


async def body_of(request: Request, kind: type[T]) -> T:
    """The body of a request, checked; raises RefusedError, or BadInputError that names the field and what it must be."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RefusedError(415, "the body must be JSON, with the header Content-Type: application/json")
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            async for chunk in request.stream():
                data += chunk
                if len(data) > MOST_BODY_BYTES:
                    raise RefusedError(413, f"the body must be at most {MOST_BODY_BYTES} bytes", {"Connection": "close"})
    except TimeoutError:
        raise RefusedError(408, f"the body must arrive within {BODY_WITHIN_S:g} s", {"Connection": "close"}) from None
    try:
        return msgspec.json.decode(bytes(data), type=kind)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at `$.")
        what = what[0].lower() + what[1:]
        raise BadInputError(f"{place.rstrip('`')}: {what}" if place else f"the body is wrong: {what}") from None
    except (ValueError, RecursionError):
        raise BadInputError("the body must be JSON in UTF-8") from None


def must_say_why(settings: Settings, purpose: str) -> None:
    """Raises BadInputError when a purpose is required and none was given."""
    if settings.access.require_purpose and not purpose.strip():
        raise BadInputError("purpose must say why you look (it goes into the audit log), got none")


def _probe(text: str) -> Probe:
    if not text.strip():
        raise BadInputError("text must describe somebody, got only blanks")
    return Probe("text", text=text)


def moment_ns(name: str, text: str | None, default_ns: int) -> int:
    """ISO 8601 as UTC nanoseconds; raises BadInputError that names the field."""
    if not text:
        return default_ns
    try:
        when = datetime.fromisoformat(text)
        since = (when if when.tzinfo else when.replace(tzinfo=UTC)) - _EPOCH
    except (ValueError, OverflowError):
        raise BadInputError(f"{name} must be a time such as 2026-11-21T04:05:06Z, got {text!r}") from None
    at_ns = since // timedelta(microseconds=1) * 1_000
    if not 0 <= at_ns <= FOREVER_NS:
        raise BadInputError(f"{name} must lie between 1970 and 2116, got {text!r}")
    return at_ns


def moment(at_ns: int) -> str:
    """UTC nanoseconds as ``2026-11-21T04:05:06.789Z``."""
    when = _EPOCH + timedelta(microseconds=min(max(at_ns, 0), FOREVER_NS) // 1_000)
    return when.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
