"""Traces as a collector gets them: a real OTLP/HTTP receiver, real batches, the embedded broker between the workers."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.alert import AlertStage
from pipeline.backoff import Backoff
from pipeline.errors import BadInputError, MissingDependencyError, NotReadyError, SettingsError
from pipeline.ports import Message, TopicSpec
from pipeline.search.stage import SearchStage
from pipeline.types import TEXT, Probe, Query, Tracklet, Watch
from services import tracing, wire
from services.adapters.sqlite_broker import SqliteBroker
from services.alert import AlertHandler, alert_worker
from services.index import IndexHandler, index_worker
from services.query import QueryHandler, query_worker
from services.sinks import TopicSink
from services.topics import ALERTS, QUERIES, RANKINGS, TRACKLETS, WATCHES, create_all
from services.tracing import NoTracer, OpenTelemetryTracer, ids_of, make_tracer, traces_address
from services.worker import Output, Received, Worker
from tests.fakes import InMemoryGallery, InMemoryMedia, S, WordTextEncoder, a_tracklet, embedding

trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="the extra tracing is not installed")

TRACKLET = "510d2fbf0dbaef24"
RED = embedding(TEXT, 1, 0, 0, 0, 0)
SECRET = "friendly"  # a word that no picture can show: it stands in the error of a query


class Collector:
    """An OTLP/HTTP receiver: what it was sent, as spans."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.bodies = b""
        self.status, self.takes_s = 200, 0.0
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(collector.takes_s)
                if collector.status == 200 and self.path == "/v1/traces":
                    collector.bodies += body
                    collector.requests.append(trace_service.ExportTraceServiceRequest.FromString(body))
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def spans(self, name: str = "") -> list[Any]:
        """Those received so far (called ``name``), by start."""
        found = [span for request in self.requests for each in request.resource_spans for scope in each.scope_spans for span in scope.spans]
        return sorted((span for span in found if name in ("", span.name)), key=lambda span: span.start_time_unix_nano)

    def services(self) -> set[str]:
        resources = [each.resource for request in self.requests for each in request.resource_spans]
        return {a.value.string_value for resource in resources for a in resource.attributes if a.key == "service.name"}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2)


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[SqliteBroker]:
    with SqliteBroker(tmp_path / "log.db") as made:
        create_all(made)
        made.create_topics([TopicSpec("words"), TopicSpec("words.dlt"), TopicSpec("shouts")])
        yield made


def facts(span: Any) -> dict[str, str | int]:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def a_person(revision: int = 1, tracklet_id: str = TRACKLET, ago_s: float = 1.0) -> Tracklet:
    """Somebody in red whose last frame was taken ``ago_s`` ago, and the first two seconds before."""
    return a_tracklet(tracklet_id, RED, revision=revision, started_at_ns=time.time_ns() - int((ago_s + 2) * S))


def publish(broker: SqliteBroker, address: str, *tracklets: Tracklet, ratio: float = 1.0) -> None:
    tracer = make_tracer(address, "ingest", ratio)
    sink = TopicSink(broker, InMemoryMedia(), lambda picture: b"", tracer=tracer)
    for tracklet in tracklets:
        sink.send(tracklet)
    sink.flush()
    tracer.close()


def on_topic(broker: SqliteBroker, topic: str) -> list[Message]:
    reader = broker.reader([topic])
    found: list[Message] = []
    while messages := reader.poll(0.05):
        found += messages
    reader.close()
    return found


class Shouter:
    """Answers in capitals; refuses what is bad."""

    def __init__(self, with_cause: bool = True) -> None:
        self._with_cause = with_cause

    def handle(self, batch: Sequence[Received]) -> list[Output]:
        if any(b"bad" in received.value for received in batch):
            raise BadInputError(f"nothing in {SECRET!r} can be seen")
        return [Output("shouts", None, r.value.upper(), r.message if self._with_cause else None) for r in batch]


def shout(broker: SqliteBroker, address: str, handler: Shouter | None = None, batch: int = 100, ratio: float = 1.0) -> None:
    tracer = make_tracer(address, "shouter", ratio)
    Worker("shouter", broker, ["words"], handler or Shouter(), batch=batch, poll_s=0.05, tracer=tracer).run(until_drained=True)
    tracer.close()


def parent(number: int, sampled: bool = True) -> tuple[str, bytes]:
    return "traceparent", b"00-%032x-%016x-%02x" % (number, number, sampled)


# ------------------------------------------------------------------------------------------------- one trace


def test_a_tracklet_is_one_trace_from_capture_to_index_and_alert(broker: SqliteBroker, collector: Collector) -> None:
    watch = Watch("w1", (Probe("text", "red"),), 0.6, expires_at_ns=time.time_ns() + 3600 * S)
    broker.produce(WATCHES, wire.encode(watch), b"w1")
    publish(broker, collector.address, a_person(1, ago_s=2.0), a_person(2, ago_s=1.0))

    tracer = make_tracer(collector.address, "index")
    index_worker(broker, IndexHandler(InMemoryGallery()), "index-0", tracer=tracer).run(until_drained=True)
    tracer.close()
    tracer = make_tracer(collector.address, "alert")
    handler = AlertHandler(broker, AlertStage(WordTextEncoder()))
    alert_worker(broker, handler, tracer=tracer).run(until_drained=True)
    handler.close()
    tracer.close()

    trace_id = bytes.fromhex(TRACKLET * 2)  # found without looking it up
    spans = [span for span in collector.spans() if span.trace_id == trace_id]
    assert sorted(span.name for span in spans) == sorted(
        ["ingest tracklet", "ingest tracklet", "capture to publish", "capture to publish", "index", "index", "alert", "alert"]
    )
    first, second = (span for span in spans if span.name == "ingest tracklet")
    assert (first.span_id, first.parent_span_id) == (bytes.fromhex(TRACKLET), b"")  # the root
    assert second.parent_span_id == first.span_id
    assert 3.5 < (first.end_time_unix_nano - first.start_time_unix_nano) / S < 60  # from the first frame on
    assert 0.9 < (second.end_time_unix_nano - second.start_time_unix_nano) / S < 60  # from the frame that made the revision
    for name in ("index", "alert"):
        assert [span.parent_span_id for span in spans if span.name == name] == [first.span_id, second.span_id]
    captured = [span for span in spans if span.name == "capture to publish"]
    assert [span.parent_span_id for span in captured] == [first.span_id, second.span_id]
    assert 2000 <= int(facts(captured[0])["milliseconds"]) < 60_000

    indexed = next(span for span in spans if span.name == "index")
    assert facts(indexed) | {"partition": 0} == {
        "topic": TRACKLETS,
        "partition": 0,
        "offset": 0,
        "camera_id": "north",
        "tracklet_id": TRACKLET,
        "revision": 1,
    }
    (alert,) = on_topic(broker, ALERTS)
    raised_in = next(span for span in spans if span.name == "alert")
    assert alert.headers == (("traceparent", f"00-{TRACKLET * 2}-{raised_in.span_id.hex()}-01".encode()),)
    assert collector.services() == {"sightline-ingest", "sightline-index", "sightline-alert"}


def test_a_query_is_one_trace_from_whoever_asks_to_the_ranking(broker: SqliteBroker, collector: Collector) -> None:
    asked = make_tracer(collector.address, "api")
    with asked.query("q1", [parent(77), ("x", b"y")]) as headers:
        broker.produce(QUERIES, wire.encode(Query("q1", (Probe("text", "red"),))), b"q1", headers)
    with asked.query("q2") as headers:
        broker.produce(QUERIES, wire.encode(Query("q2", (Probe("text", "red"),))), b"q2", headers)
    broker.produce(QUERIES, wire.encode(Query("q3", (Probe("text", "red"),))), b"q3")
    broker.flush()
    asked.close()
    tracer = make_tracer(collector.address, "query")
    gallery = InMemoryGallery(a_tracklet("t1", RED))
    query_worker(broker, QueryHandler(SearchStage(gallery, WordTextEncoder())), tracer=tracer).run(until_drained=True)
    tracer.close()

    asking = {facts(span)["query_id"]: span for span in collector.spans("query")}
    searched = {facts(span)["query_id"]: span for span in collector.spans("search")}
    assert set(asking) == {"q1", "q2"}
    assert set(searched) == {"q1", "q2", "q3"}
    assert asking["q1"].trace_id == searched["q1"].trace_id == (77).to_bytes(16, "big")
    assert asking["q1"].parent_span_id == (77).to_bytes(8, "big")
    assert asking["q2"].trace_id == searched["q2"].trace_id == ids_of("q2")[0].to_bytes(16, "big")
    assert searched["q2"].parent_span_id == asking["q2"].span_id
    assert searched["q3"].parent_span_id == b""  # nobody began its trace: the worker does
    carried = {(m.key or b"").decode(): dict(m.headers)["traceparent"].decode().split("-")[1:3] for m in on_topic(broker, RANKINGS)}
    assert carried == {query_id: [span.trace_id.hex(), span.span_id.hex()] for query_id, span in searched.items()}


def test_a_batch_is_a_span_with_links_and_its_outputs_carry_on_the_trace_of_their_cause(broker: SqliteBroker, collector: Collector) -> None:
    for number in (1, 2, 3):
        broker.produce("words", b"%d" % number, None, [parent(number)])
    broker.produce("words", b"4")  # of no trace
    broker.flush()
    shout(broker, collector.address)
    (batch,) = collector.spans("shouter batch")
    assert {link.trace_id for link in batch.links} == {number.to_bytes(16, "big") for number in (1, 2, 3)}
    assert facts(batch) == {"messages": 4}
    own = {int.from_bytes(span.trace_id, "big"): span for span in collector.spans("shouter")}
    assert set(own) == {1, 2, 3}
    assert all([link.span_id for link in span.links] == [batch.span_id] for span in own.values())
    carried = {message.value: [value.split(b"-")[2].decode() for _, value in message.headers] for message in on_topic(broker, "shouts")}
    assert carried == {b"%d" % number: [span.span_id.hex()] for number, span in own.items()} | {b"4": [batch.span_id.hex()]}


def test_an_output_without_a_cause_belongs_to_its_batch(broker: SqliteBroker, collector: Collector) -> None:
    for number in (1, 2):
        broker.produce("words", b"%d" % number, None, [parent(number)])
    broker.flush()
    shout(broker, collector.address, Shouter(with_cause=False))
    (batch,) = collector.spans("shouter batch")
    assert {value.split(b"-")[1].decode() for message in on_topic(broker, "shouts") for _, value in message.headers} == {
        batch.trace_id.hex()
    }


def test_a_batch_that_brings_no_trace_makes_none(broker: SqliteBroker, collector: Collector) -> None:
    broker.produce("words", b"one")
    broker.produce("words", b"two", None, [("traceparent", b"nonsense"), ("other", b"\xff")])
    broker.produce("words", b"three", None, [("traceparent", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01")])
    broker.flush()
    shout(broker, collector.address)
    assert collector.spans() == []
    assert [message.headers for message in on_topic(broker, "shouts")] == [(), (), ()]


# --------------------------------------------------------------------------------------------------- sampling


def test_all_processes_keep_the_same_tracklets(broker: SqliteBroker, collector: Collector) -> None:
    ids = [hashlib.blake2b(b"%d" % number, digest_size=8).hexdigest() for number in range(40)]
    people = [a_person(revision, tracklet_id) for tracklet_id in ids for revision in (1, 2)]
    publish(broker, collector.address, *people, ratio=0.5)
    tracer = make_tracer(collector.address, "index", 0.0)  # what it begins itself is kept never; it follows those that are kept
    index_worker(broker, IndexHandler(InMemoryGallery()), tracer=tracer).run(until_drained=True)
    tracer.close()
    kept = {span.trace_id for span in collector.spans("ingest tracklet")}
    assert 10 <= len(kept) <= 30
    assert len(collector.spans("ingest tracklet")) == 2 * len(kept)  # both revisions or none
    assert {span.trace_id for span in collector.spans("index")} == kept
    assert len(collector.spans("index batch")) == 1  # kept, as some of its messages are


def test_what_is_not_kept_is_still_handed_on_as_such(broker: SqliteBroker, collector: Collector) -> None:
    broker.produce("words", b"one", None, [parent(9, sampled=False)])
    broker.flush()
    shout(broker, collector.address, batch=1)
    (message,) = on_topic(broker, "shouts")
    assert message.headers[0][1].startswith(b"00-%032x-" % 9)
    assert message.headers[0][1].endswith(b"-00")
    assert collector.spans() == []


def test_footage_of_another_day_begins_its_trace_now(broker: SqliteBroker, collector: Collector) -> None:
    publish(broker, collector.address, a_person(1, ago_s=86_400 * 400), a_person(2, ago_s=86_400 * 400))
    assert len(collector.spans()) == 2
    assert all((span.end_time_unix_nano - span.start_time_unix_nano) / S < 60 for span in collector.spans())


def test_a_clock_that_runs_ahead_makes_no_trace_that_ends_before_it_begins(broker: SqliteBroker, collector: Collector) -> None:
    publish(broker, collector.address, a_person(1, ago_s=-1.5), a_person(2, ago_s=-3600))
    assert len(collector.spans()) == 4
    assert all(span.start_time_unix_nano <= span.end_time_unix_nano for span in collector.spans())


# ---------------------------------------------------------------------------------------------------- secrets


def test_no_word_picture_or_text_of_an_error_leaves_the_machine(broker: SqliteBroker, collector: Collector) -> None:
    watch = Watch("w1", (Probe("text", "red"),), 0.6, expires_at_ns=time.time_ns() + 3600 * S, issued_by="Olga", purpose="theft")
    broker.produce(WATCHES, wire.encode(watch), b"w1")
    query = Query("q1", (Probe("text", f"red {SECRET}"), Probe("text", SECRET)), issued_by="Olga", purpose="theft")
    refused = replace(query, query_id="q2", probes=(Probe("text", SECRET),))
    for each in (query, refused):
        broker.produce(QUERIES, wire.encode(each), each.query_id.encode(), [parent(5)])
    publish(broker, collector.address, a_person())
    tracer = make_tracer(collector.address, "all")
    handler = AlertHandler(broker, AlertStage(WordTextEncoder()))
    alert_worker(broker, handler, tracer=tracer).run(until_drained=True)
    handler.close()
    gallery = InMemoryGallery(a_tracklet("t1", RED))
    query_worker(broker, QueryHandler(SearchStage(gallery, WordTextEncoder())), tracer=tracer).run(until_drained=True)
    tracer.close()
    for secret in (SECRET, "Olga", "theft", "jpg", "red"):
        assert secret.encode() not in collector.bodies
    assert {facts(span)["query_id"] for span in collector.spans("search")} == {"q1", "q2"}
    assert [event for span in collector.spans() for event in span.events] == []
    assert {name for span in collector.spans() for name in facts(span)} <= tracing.ATTRIBUTES


def test_what_is_put_aside_is_marked_and_keeps_its_trace(broker: SqliteBroker, collector: Collector) -> None:
    for number, word in enumerate((b"one", b"bad", b"three"), start=1):
        broker.produce("words", word, None, [parent(number)])
    broker.flush()
    shout(broker, collector.address)
    assert {int.from_bytes(s.trace_id, "big"): s.status.message for s in collector.spans("shouter")} == {1: "", 2: "BadInputError", 3: ""}
    assert SECRET.encode() not in collector.bodies
    (letter,) = on_topic(broker, "words.dlt")
    assert parent(2) in letter.headers  # put back, it goes on in its trace


def test_a_bug_is_seen_in_the_trace_of_its_message(broker: SqliteBroker, collector: Collector) -> None:
    class Broken(Shouter):
        def handle(self, batch: Sequence[Received]) -> list[Output]:
            raise ZeroDivisionError(SECRET)

    broker.produce("words", b"one", None, [parent(1)])
    broker.flush()
    tracer = make_tracer(collector.address, "shouter")
    with pytest.raises(ZeroDivisionError):
        Worker("shouter", broker, ["words"], Broken(), poll_s=0.05, tracer=tracer).run(until_drained=True)
    tracer.close()
    assert [span.status.message for span in collector.spans("shouter")] == ["ZeroDivisionError"]
    assert SECRET.encode() not in collector.bodies


def test_ids_that_are_texts_are_cut(broker: SqliteBroker, collector: Collector) -> None:
    asked = make_tracer(collector.address, "api")
    with asked.query("q" * 5000):
        pass
    asked.close()
    assert len(str(facts(collector.spans("query")[0])["query_id"])) == tracing.LONGEST_ATTRIBUTE


# -------------------------------------------------------------------------------------- a collector that is away


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    """What tracing logs, whatever other tests have done to the loggers."""
    names = ("sightline.tracing", "opentelemetry")
    for log in map(logging.getLogger, names):
        monkeypatch.setattr(log, "propagate", False)
        log.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, "sightline.tracing"):
        yield caplog
    for log in map(logging.getLogger, names):
        log.removeHandler(caplog.handler)


def fill(broker: SqliteBroker, count: int) -> None:
    for number in range(1, count + 1):
        broker.produce("words", b"%d" % number, None, [parent(number)])
    broker.flush()


def test_a_collector_that_refuses_connections_stops_nothing(broker: SqliteBroker, told: pytest.LogCaptureFixture) -> None:
    spans: dict[str, int] = {}
    fill(broker, 300)
    tracer = make_tracer("http://127.0.0.1:9", "shouter", on_spans=lambda outcome, n: spans.update({outcome: spans.get(outcome, 0) + n}))
    started = time.monotonic()
    Worker("shouter", broker, ["words"], Shouter(), poll_s=0.05, tracer=tracer).run(until_drained=True)
    assert time.monotonic() - started < 15
    assert len(on_topic(broker, "shouts")) == 300
    started = time.monotonic()
    tracer.close()
    assert time.monotonic() - started < tracing.CLOSE_WITHIN_S + 3
    assert spans == {"lost": 303}  # every message, and three batches
    assert [record.getMessage() for record in told.records] == [
        "traces are lost: the collector of tracing.endpoint does not take them; work goes on"
    ]


def test_a_collector_that_hangs_holds_nobody_up(broker: SqliteBroker, collector: Collector) -> None:
    collector.takes_s = 60.0
    fill(broker, 300)
    tracer = make_tracer(collector.address, "shouter")
    started = time.monotonic()
    Worker("shouter", broker, ["words"], Shouter(), batch=1, poll_s=0.05, tracer=tracer).run(until_drained=True)
    tracer.close()
    assert time.monotonic() - started < 30
    assert len(on_topic(broker, "shouts")) == 300


def test_spans_that_wait_are_bounded_and_the_rest_is_lost(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "QUEUE_SPANS", 600)
    collector.takes_s = 1.0
    spans: dict[str, int] = {}
    tracer = make_tracer(collector.address, "api", on_spans=lambda outcome, n: spans.update({outcome: spans.get(outcome, 0) + n}))
    for number in range(5_000):
        with tracer.query(f"q{number}"):
            pass
    assert spans["lost"] >= 3_000
    collector.takes_s = 0.0
    tracer.close()
    assert spans["lost"] + spans["sent"] == 5_000
    assert len(collector.spans()) == spans["sent"]


def test_a_collector_that_comes_back_gets_what_follows(collector: Collector, told: pytest.LogCaptureFixture) -> None:
    collector.status = 400
    tracer = make_tracer(collector.address, "api")

    def ask(query_id: str, until: str) -> None:
        with tracer.query(query_id):
            pass
        ends_at = time.monotonic() + 5
        while until not in told.text and time.monotonic() < ends_at:
            time.sleep(0.02)

    ask("q1", "traces are lost")
    collector.status = 200
    ask("q2", "takes traces again")
    tracer.close()
    assert [facts(span)["query_id"] for span in collector.spans("query")] == ["q2"]
    back = [record for record in told.records if "takes traces again" in record.getMessage()]
    assert [vars(record)["lost_spans"] for record in back] == [1]


def test_waiting_for_the_world_does_not_lose_the_trace(broker: SqliteBroker, collector: Collector) -> None:
    class Late(Shouter):
        refusals = 3

        def handle(self, batch: Sequence[Received]) -> list[Output]:
            if self.refusals:
                self.refusals -= 1
                raise NotReadyError("the index is being opened")
            return super().handle(batch)

    fill(broker, 1)
    tracer = make_tracer(collector.address, "shouter")
    Worker("shouter", broker, ["words"], Late(), poll_s=0.05, tracer=tracer, backoff=Backoff(0.01, 0.02)).run(until_drained=True)
    tracer.close()
    (span,) = collector.spans()
    (message,) = on_topic(broker, "shouts")
    assert message.headers[0][1].split(b"-")[2].decode() == span.span_id.hex()


# -------------------------------------------------------------------------------------------------- settings


def test_without_an_endpoint_nothing_is_traced_and_nothing_imported() -> None:
    assert isinstance(make_tracer("", "index"), NoTracer)
    code = (
        "import sys; import services.worker, services.tracing; services.tracing.make_tracer('', 'index').close();"
        " assert not [m for m in sys.modules if m.startswith('opentelemetry')]"
    )
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_a_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(MissingDependencyError, match=r"OpenTelemetry is not installed: run  pip install 'sightline\[tracing\]'"):
        make_tracer("http://collector:4318", "index")


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        ("https://otlp.example/tenant", "https://otlp.example/tenant/v1/traces"),
        ("http://collector:4318/v1/traces", "http://collector:4318/v1/traces"),
        ("http://collector:4318/v1/traces/", "http://collector:4318/v1/traces"),
    ],
)
def test_the_path_of_traces_is_added_where_it_is_missing(endpoint: str, address: str) -> None:
    assert traces_address(endpoint) == address


@pytest.mark.parametrize("endpoint", ["collector:4318", "grpc://collector:4317", "http://", "ftp://olga:geheim@collector"])
def test_an_endpoint_that_is_no_address_is_refused(endpoint: str) -> None:
    with pytest.raises(SettingsError, match=r"tracing\.endpoint must be an address such as http://collector:4318") as raised:
        OpenTelemetryTracer(endpoint, "index")
    assert "geheim" not in str(raised.value)


def test_ids_follow_from_what_is_followed() -> None:
    assert ids_of(TRACKLET) == (int(TRACKLET * 2, 16), int(TRACKLET, 16))
    assert ids_of("0" * 16) != (0, 0)
    assert ids_of("a query") == ids_of("a query") != ids_of("another")
