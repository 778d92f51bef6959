"""OpenTelemetry traces from frame to tracklet to alert, and from query to ranking, when an endpoint is set. The one home of
``opentelemetry``, an extra.

A trace is named by what it follows: that of tracklet 510d2fbf0dbaef24 is 510d2fbf0dbaef24510d2fbf0dbaef24, so that every revision, its
way into the index and its alerts stand in one trace, whichever process made them, and it can be found without looking it up.
Attributes are ids, counts, milliseconds and places on topics, named in ATTRIBUTES; never words, pictures, addresses or texts of errors.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from pipeline.capture import without_credentials
from pipeline.errors import MissingDependencyError, SettingsError
from pipeline.ports import Message
from pipeline.types import Tracklet

log = logging.getLogger("sightline.tracing")

TRACEPARENT = "traceparent"  # W3C trace context, as a message header
TRACES_PATH = "/v1/traces"
EXPORT_TIMEOUT_S = 3
SEND_EVERY_MS = 1_000
QUEUE_SPANS = 4_096  # beyond this, spans are lost rather than memory
CLOSE_WITHIN_S = 2.0  # of a worker that must end: SIGTERM to exit within 10 s
LIVE_NS = 600 * 1_000_000_000  # what was seen longer ago is footage: its trace begins now, not in another year
MOST_LINKS = 512
LONGEST_ATTRIBUTE = 64

IDS = ("camera_id", "tracklet_id", "revision", "watch_id", "query_id", "job_id", "shard")  # of what a message holds
ATTRIBUTES = frozenset({"topic", "partition", "offset", "messages", "milliseconds", *IDS})

Headers = Sequence[tuple[str, bytes]]
OnSpans = Callable[[str, int], None]


class Trace(Protocol):
    """The open spans of one batch of messages."""

    def headers(self, message: Message | None) -> Headers:
        """What an output caused by ``message`` carries on; None: by the batch as a whole."""
        ...

    def about(self, message: Message, value: Any) -> None:
        """``message`` holds ``value``: its ids go into the span."""
        ...

    def failed(self, message: Message, error: BaseException) -> None:
        """``message`` can never work."""
        ...


class Tracer(Protocol):
    """What the workers ask of tracing. is_on: whether anything is recorded."""

    is_on: bool

    def messages(self, stage: str, messages: Sequence[Message], begins: bool = False) -> AbstractContextManager[Trace]:
        """A span ``stage`` for every message that carries a trace, open while the block runs; of many, one more for the batch, with links.

        begins: a message that carries none begins one.
        """
        ...

    def tracklet(self, tracklet: Tracklet) -> AbstractContextManager[Headers]:
        """The span of a tracklet revision, from its capture to the end of the block; gives the headers of its message."""
        ...

    def query(self, query_id: str, headers: Headers = ()) -> AbstractContextManager[Headers]:
        """The span of a query at whoever asks, in the trace of ``headers`` where they name one; gives the headers of its message."""
        ...

    def close(self) -> None:
        """Send what is waiting, for a bounded time."""
        ...


class _NoTrace:
    def headers(self, message: Message | None) -> Headers:
        if message is None or not message.headers:
            return ()
        return [header for header in message.headers if header[0] == TRACEPARENT]

    def about(self, message: Message, value: Any) -> None:
        pass

    def failed(self, message: Message, error: BaseException) -> None:
        pass


class NoTracer:
    """No traces of our own; one that comes with a message is handed on."""

    is_on = False

    def messages(self, stage: str, messages: Sequence[Message], begins: bool = False) -> AbstractContextManager[Trace]:
        return _NOTHING

    def tracklet(self, tracklet: Tracklet) -> AbstractContextManager[Headers]:
        return _NO_HEADERS

    def query(self, query_id: str, headers: Headers = ()) -> AbstractContextManager[Headers]:
        return nullcontext([header for header in headers if header[0] == TRACEPARENT])

    def close(self) -> None:
        pass


_NOTHING: AbstractContextManager[Trace] = nullcontext(_NoTrace())
_NO_HEADERS: AbstractContextManager[Headers] = nullcontext(())


def make_tracer(endpoint: str, service: str, sample_ratio: float = 1.0, on_spans: OnSpans | None = None) -> Tracer:
    """Traces to an OTLP/HTTP ``endpoint``, none where it is empty.

    on_spans: told "sent" or "lost" and how many; for metrics. Raises MissingDependencyError without the extra, SettingsError for an
    endpoint that is no address.
    """
    return OpenTelemetryTracer(endpoint, service, sample_ratio, on_spans) if endpoint else NoTracer()


def traces_address(endpoint: str) -> str:
    """Where the traces go, with its path; raises SettingsError for what is no http:// or https:// address."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        shown = without_credentials(endpoint)
        raise SettingsError(f"tracing.endpoint must be an address such as http://collector:4318, got {shown!r}: mend it or leave it empty")
    path = parts.path.rstrip("/")
    return urlunsplit(parts._replace(path=path if path.endswith(TRACES_PATH) else path + TRACES_PATH))


class OpenTelemetryTracer:
    """Spans through OpenTelemetry's batches; what the collector does not take is lost and counted, never waited for."""

    is_on = True

    def __init__(self, endpoint: str, service: str, sample_ratio: float = 1.0, on_spans: OnSpans | None = None) -> None:
        address = traces_address(endpoint)
        try:
            from opentelemetry import trace
            from opentelemetry.context import Context
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import SpanLimits, TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
            from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise MissingDependencyError("OpenTelemetry", "tracing") from None
        for name in ("opentelemetry.sdk", "opentelemetry.exporter"):  # every lost batch several times over; we say it once, in our words
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        self._api, self._context, self._propagator = trace, Context, TraceContextTextMapPropagator()
        self._ids = _Ids(RandomIdGenerator())
        self._ratio = TraceIdRatioBased(sample_ratio)
        self._export = _Export(OTLPSpanExporter(endpoint=address, timeout=EXPORT_TIMEOUT_S), on_spans or (lambda outcome, spans: None))
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": f"sightline-{service}"}),
            sampler=ParentBased(_LinkedOrRatio(ALWAYS_ON, self._ratio)),
            id_generator=self._ids,
            span_limits=SpanLimits(max_links=MOST_LINKS, max_span_attribute_length=LONGEST_ATTRIBUTE),
            shutdown_on_exit=False,  # it would wait half a minute for a collector that is away; see close
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(self._export, max_queue_size=QUEUE_SPANS, schedule_delay_millis=SEND_EVERY_MS, max_export_batch_size=512)
        )
        self._tracer = self._provider.get_tracer("sightline")

    # what is followed

    @contextmanager
    def messages(self, stage: str, messages: Sequence[Message], begins: bool = False) -> Iterator[Trace]:
        parents = {id(message): self._parent(message.headers) for message in messages}
        sampled = [parent for parent in parents.values() if parent is not None and parent.trace_flags.sampled]
        batch = self._start(f"{stage} batch", links=sampled, messages=len(messages)) if len(messages) > 1 and sampled else None
        links = [batch.get_span_context()] if batch is not None else []
        spans = {
            id(message): self._start(
                stage, parents[id(message)], links=links, topic=message.topic, partition=message.partition, offset=message.offset
            )
            for message in messages
            if begins or parents[id(message)] is not None
        }
        with self._ended(*spans.values(), *([] if batch is None else [batch])):
            yield _OpenSpans(self, spans, batch)

    @contextmanager
    def tracklet(self, tracklet: Tracklet) -> Iterator[Headers]:
        now_ns = time.time_ns()
        seen_ns = min(tracklet.ended_at_ns, now_ns)  # a camera's clock may run ahead a little
        is_live = now_ns - seen_ns < LIVE_NS
        is_first = tracklet.revision == 1
        root = self._root(tracklet.tracklet_id)
        facts = {name: getattr(tracklet, name) for name in ("camera_id", "tracklet_id", "revision")}
        began_ns = min(max(tracklet.started_at_ns, now_ns - LIVE_NS), seen_ns) if is_first else seen_ns
        with self._ids.named(root) if is_first else nullcontext():
            span = self._start("ingest tracklet", None if is_first else root, began_ns if is_live else None, **facts)
        with self._ended(span):
            if is_live:  # from the frame that made this revision, through detect, track and embed
                facts["milliseconds"] = (now_ns - seen_ns) // 1_000_000
                self._end(self._start("capture to publish", span.get_span_context(), seen_ns, **facts))
            yield self.headers_of(span)

    @contextmanager
    def query(self, query_id: str, headers: Headers = ()) -> Iterator[Headers]:
        parent = self._parent(headers)
        with self._ids.named(self._root(query_id)) if parent is None else nullcontext():
            span = self._start("query", parent, query_id=query_id)
        with self._ended(span):
            yield self.headers_of(span)

    def close(self) -> None:
        """Send what is waiting, for two seconds at most; what is left then is lost."""
        closing = threading.Thread(target=self._provider.shutdown, name="tracing-close", daemon=True)
        closing.start()
        closing.join(CLOSE_WITHIN_S)
        self._export.give_up()

    # spans

    def _start(self, name: str, parent: Any = None, at_ns: int | None = None, links: Sequence[Any] = (), **facts: Any) -> Any:
        """An open span below ``parent``, a span context, or the root of a new trace."""
        context = self._context()
        if parent is not None:
            context = self._api.set_span_in_context(self._api.NonRecordingSpan(parent), context)
        return self._tracer.start_span(
            name, context, attributes=_allowed(facts), links=[self._api.Link(link) for link in links], start_time=at_ns
        )

    def _end(self, span: Any) -> None:
        if not span.is_recording() or self._export.has_room():
            span.end()

    @contextmanager
    def _ended(self, *spans: Any) -> Iterator[None]:
        """Ends ``spans`` when the block does; an error of the block marks them all."""
        try:
            yield
        except BaseException as error:
            for span in spans:
                self.mark_failed(span, error)
            raise
        finally:
            for span in spans:
                self._end(span)

    def mark_failed(self, span: Any, error: BaseException) -> None:
        """Only the kind of the error: its text may hold what somebody looked for."""
        span.set_status(self._api.Status(self._api.StatusCode.ERROR, type(error).__name__))

    # contexts

    def _parent(self, headers: Headers) -> Any:
        """The span context that ``headers`` carry; None when they carry none, or nonsense."""
        carrier = {name: value.decode("ascii", errors="replace") for name, value in headers if name == TRACEPARENT}
        if not carrier:
            return None
        found = self._api.get_current_span(self._propagator.extract(carrier, self._context())).get_span_context()
        return found if found.is_valid else None

    def headers_of(self, span: Any) -> Headers:
        """What a message carries that was made within ``span``."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self._api.set_span_in_context(span, self._context()))
        return [(TRACEPARENT, carrier[TRACEPARENT].encode())] if TRACEPARENT in carrier else ()

    def _root(self, identity: str) -> Any:
        """The first span of the trace of ``identity``, as every process works it out for itself."""
        trace_id, span_id = ids_of(identity)
        is_kept = self._ratio.should_sample(None, trace_id, "").decision.is_sampled()
        flags = self._api.TraceFlags(self._api.TraceFlags.SAMPLED if is_kept else self._api.TraceFlags.DEFAULT)
        return self._api.SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags)


class _OpenSpans:
    def __init__(self, tracer: OpenTelemetryTracer, spans: Mapping[int, Any], batch: Any) -> None:
        self._tracer, self._spans, self._batch = tracer, spans, batch

    def headers(self, message: Message | None) -> Headers:
        span = self._spans.get(id(message), self._batch)
        return self._tracer.headers_of(span) if span is not None else ()

    def about(self, message: Message, value: Any) -> None:
        span = self._spans.get(id(message))
        if span is not None and span.is_recording():
            span.set_attributes(_allowed({name: getattr(value, name, None) for name in IDS}))

    def failed(self, message: Message, error: BaseException) -> None:
        span = self._spans.get(id(message))
        if span is not None:
            self._tracer.mark_failed(span, error)


def ids_of(identity: str) -> tuple[int, int]:
    """Trace id and first span id of the trace that follows ``identity``; of 16 hex digits, as tracklets have: twice, and once."""
    if re.fullmatch(r"[0-9a-f]{16}", identity) and int(identity, 16):
        return int(identity * 2, 16), int(identity, 16)
    digest = hashlib.blake2b(identity.encode(), digest_size=24).digest()
    return int.from_bytes(digest[:16], "big") or 1, int.from_bytes(digest[16:], "big") or 1


def _allowed(facts: Mapping[str, Any]) -> dict[str, str | int]:
    """Of ``facts``, those that may leave this machine."""
    return {name: value for name, value in facts.items() if name in ATTRIBUTES and isinstance(value, str | int)}


# -------------------------------------- what OpenTelemetry calls, in the shapes that it wants: its own classes come with the extra alone


class _Ids:
    """Random ids, but for the spans of a thread that are given theirs."""

    def __init__(self, random_ids: Any) -> None:
        self._random, self._given = random_ids, threading.local()

    @contextmanager
    def named(self, root: Any) -> Iterator[None]:
        """The span that is started in the block is ``root``."""
        self._given.root = root
        try:
            yield
        finally:
            self._given.root = None

    def generate_trace_id(self) -> int:
        root = getattr(self._given, "root", None)
        return int(root.trace_id if root is not None else self._random.generate_trace_id())

    def generate_span_id(self) -> int:
        root = getattr(self._given, "root", None)
        return int(root.span_id if root is not None else self._random.generate_span_id())

    def is_trace_id_random(self) -> bool:
        return False


class _LinkedOrRatio:
    """A batch is kept when any of the traces that it works on is; other new traces by their id."""

    def __init__(self, always: Any, ratio: Any) -> None:
        self._always, self._ratio = always, ratio

    def should_sample(
        self,
        parent_context: Any,
        trace_id: int,
        name: str,
        kind: Any = None,
        attributes: Any = None,
        links: Iterable[Any] | None = None,
        trace_state: Any = None,
    ) -> Any:
        sampler = self._always if any(link.context.trace_flags.sampled for link in links or ()) else self._ratio
        return sampler.should_sample(parent_context, trace_id, name, kind, attributes, links)

    def get_description(self) -> str:
        return f"LinkedOr({self._ratio.get_description()})"


class _Export:
    """The exporter, counted: that spans are lost is said once when it begins and once when it is over."""

    def __init__(self, exporter: Any, on_spans: OnSpans) -> None:
        self._exporter, self._on_spans = exporter, on_spans
        self._lock = threading.Lock()
        self._waiting = self._lost = 0

    def has_room(self) -> bool:
        """Whether one more span may wait to be sent; it is lost when not."""
        with self._lock:
            if self._waiting < QUEUE_SPANS:
                self._waiting += 1
                return True
        self._lose(1)
        return False

    def export(self, spans: Sequence[Any]) -> Any:
        is_sent = False
        try:
            result = self._exporter.export(spans)
            is_sent = result.name == "SUCCESS"
            return result
        finally:
            with self._lock:
                self._waiting = max(0, self._waiting - len(spans))
            if is_sent:
                self._sent(len(spans))
            else:
                self._lose(len(spans))

    def give_up(self) -> None:
        """Whatever still waits is lost."""
        with self._lock:
            left, self._waiting = self._waiting, 0
        if left > 0:
            self._lose(left)

    def _sent(self, spans: int) -> None:
        self._on_spans("sent", spans)
        with self._lock:
            lost, self._lost = self._lost, 0
        if lost:
            log.info("the collector takes traces again", extra={"lost_spans": lost})

    def _lose(self, spans: int) -> None:
        self._on_spans("lost", spans)
        with self._lock:
            is_news = self._lost == 0
            self._lost += spans
        if is_news:
            log.warning("traces are lost: the collector of tracing.endpoint does not take them; work goes on")

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 0) -> bool:
        return True
