"""The routes: what each does, who may use it, and how an error becomes a status."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from pipeline.errors import BadInputError, NotFoundError, NotReadyError
from pipeline.ports import Broker, MediaStore, Message, TopicPartition
from pipeline.types import Filter, Query, Watch
from services import audit, wire
from services.api.access import READ, SEARCH, WATCH, Access, Client
from services.api.alerts import KEPT_ALERTS, AlertLog
from services.api.answers import Answer, Answers
from services.api.bodies import SearchBody, Waiting, WatchBody, WatchView, body_of, moment_ns
from services.api.follow import ALL, Feed, Link, OpenBroker
from services.api.known import Known
from services.api.refusals import RefusedError, busy, not_ready, refusal_of
from services.metrics import Metrics
from services.settings import Settings
from services.topics import ALERTS, CAMERAS, COVERAGE, ERASURES, QUERIES, RANKINGS, WATCHES
from services.tracing import TRACEPARENT, Headers, NoTracer, Tracer

log = logging.getLogger("sightline.api")

QUERY_GROUP = "query"
GRACE_S = 1.0  # a ranking that left at its deadline is still on its way
LAG_EVERY_S = 1.0
WRITE_WITHIN_S = 12.0  # the broker's own patience is ten seconds
WRITE_AT_LEAST_S = 3.0  # a short deadline is no reason to give up a query on its way to a slow disk
MOST_STREAMS = 64
USUAL_ALERTS = 1_000
NEWEST_ANSWERS, NEWEST_ALERTS, NEWEST_ACCOUNTS = 250, 2_500, 2_000  # of each partition, read when the gateway starts
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

T = TypeVar("T")
Handler = Callable[["Gateway", Request, Client], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Served:
    """A route. role "": for everybody who can connect."""

    method: str
    path: str
    role: str
    handler: Handler


class Gateway:
    """Between HTTP and the topics. Everything but the broker and the media store is used in the event loop alone.

    on_failure: told when the gateway cannot go on; ``failure`` is why.
    """

    def __init__(
        self,
        settings: Settings,
        open_broker: OpenBroker,
        media: MediaStore,
        on_failure: Callable[[], None],
        metrics: Metrics | None = None,
        alerts: AlertLog | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """Raises SettingsError when others than this machine could ask and no client is configured."""
        self._settings, self._media = settings, media
        self.access = Access(settings.api)
        self._answers, self._alerts, self._known = Answers(), alerts or AlertLog(), Known()
        self._link = Link(
            open_broker,
            [
                Feed("rankings", {QUERIES: NEWEST_ANSWERS, RANKINGS: NEWEST_ANSWERS}, self._answers.take),
                Feed("alerts", {ALERTS: NEWEST_ALERTS, ERASURES: ALL}, self._take_alerts),
                Feed("cameras", {CAMERAS: ALL, WATCHES: ALL, COVERAGE: NEWEST_ACCOUNTS}, self._known.take),
            ],
            on_failure,
        )
        self._writer = ThreadPoolExecutor(1, "api-writer")  # the broker takes one at a time anyway
        self._waiting = 0
        self._lag, self._lag_at_s, self._looking = 0, float("-inf"), asyncio.Lock()
        self._is_released = False
        self._tracer: Tracer = tracer or NoTracer()
        self._metrics = metrics or Metrics()
        self._metrics.shown("sightline_api_waiting_searches", "Searches that wait for their ranking.", lambda: self._waiting)
        self._metrics.shown("sightline_api_streams", "Open streams of alerts.", lambda: self._alerts.listeners)
        self._metrics.shown("sightline_api_query_lag_messages", "Queries not yet answered, when last looked up.", lambda: self._lag)
        self._metrics.shown("sightline_api_broker_up", "Whether every topic is followed.", lambda: not self._link.reasons())

    @property
    def failure(self) -> BaseException | None:
        return self._link.failure

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = []
        for served in ROUTES:
            route = Route(served.path, functools.partial(self._serve, served), methods=[served.method])
            route.methods = {served.method}  # no HEAD: a stream would be begun for nobody
            routes.append(route)
        made = Starlette(routes=routes, exception_handlers={HTTPException: self._no_such_route}, lifespan=self._lifespan)
        made.router.redirect_slashes = False
        return made

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._link.start()
        try:
            yield
        finally:
            await asyncio.to_thread(self._link.close)
            self._writer.shutdown(wait=False, cancel_futures=True)

    def release(self) -> None:
        """Nobody waits any longer: streams end, searches are told where their ranking will be."""
        self._is_released = True
        self._answers.release()
        self._alerts.release()

    def _take_alerts(self, messages: Sequence[Message]) -> None:
        self._alerts.take([message for message in messages if message.topic == ALERTS])
        for message in messages:
            if message.topic == ERASURES and message.key:
                self._alerts.erase(message.key.decode(errors="replace"))
                self._answers.erase(message.key.decode(errors="replace"))

    # one request

    async def _serve(self, served: Served, request: Request) -> Response:
        """Who asks, may they, the answer or why there is none; one line in the log, without what was asked."""
        started_s = time.monotonic()
        name = "-"
        try:
            client = self._client(request, served.role)
            name = client.name
            response = await served.handler(self, request, client)
        except ClientDisconnect:
            response = Response(status_code=499)
        except Exception as error:
            response = self._refused(error, served.path, name)
        response.headers.update(HEADERS)
        seconds = time.monotonic() - started_s
        self._metrics.requested(served.method, served.path, response.status_code, seconds)
        level = logging.DEBUG if not served.role else logging.INFO  # probes would fill the log
        facts = {"method": served.method, "route": served.path, "status": response.status_code, "ms": round(seconds * 1000), "client": name}
        log.log(level, "answered", extra=facts)
        return response

    def _client(self, request: Request, role: str) -> Client:
        headers = request.headers.get("authorization", ""), request.headers.get("host", "")
        if role:
            return self.access.allowed(*headers, role)
        return self.access.known(*headers) or Client("-", frozenset())

    def _refused(self, error: Exception, route: str, client: str) -> Response:
        refusal = refusal_of(error)
        if refusal is None:  # its text may hold what was asked: the log gets the place alone
            at = traceback.extract_tb(error.__traceback__)[-1]
            facts = {"route": route, "client": client, "error": type(error).__name__, "at": f"{at.filename}:{at.lineno}"}
            log.error("request failed", extra=facts)
            refusal = RefusedError(500, "the gateway failed; its log says where")
        return _json({"error": refusal.sentence}, refusal.status, refusal.headers)

    async def _no_such_route(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        self._metrics.requested("-", "-", error.status_code, 0.0)
        says = "this path does not take that method" if error.status_code == 405 else "no such path; deploy/openapi.json lists them"
        return _json({"error": says}, error.status_code, {**(error.headers or {}), **HEADERS})

    # searches

    async def post_search(self, request: Request, client: Client) -> Response:
        """Search by words. The ranking, or 202 when it is not there within deadline_s."""
        query = (await body_of(request, SearchBody)).query(self._settings, client.name)
        return _answer_response(query.query_id, await self._ask(query, "search", request))

    async def get_search(self, request: Request, client: Client) -> Response:
        """The ranking of a search that was answered 202, for 15 minutes."""
        query_id = request.path_params["query_id"]
        self._link.must_be_read("rankings")
        return _answer_response(query_id, self._answers.found(query_id, client.name))

    async def _ask(self, query: Query, action: str, request: Request) -> Answer:
        """Record who asks and why, put the query on its topic, wait for its ranking until the deadline and a little."""
        with self._place_to_wait(), self._tracer.query(query.query_id, _trace_of(request)) as headers:
            until_s = time.monotonic() + query.deadline_s + GRACE_S
            self._link.must_be_read("rankings")
            await self._check_load()
            if self._is_released:
                raise not_ready("the gateway is being stopped: try again")
            ranking = self._answers.expect(query.query_id, query.issued_by)
            try:
                await self._write(functools.partial(_send_query, query, action, headers), max(WRITE_AT_LEAST_S, until_s - time.monotonic()))
                await _first_of(ranking, request, until_s - time.monotonic())
                return self._answers.found(query.query_id, query.issued_by)
            finally:
                self._answers.wait_no_more(query.query_id)

    @contextmanager
    def _place_to_wait(self) -> Iterator[None]:
        if self._waiting >= self._settings.api.most_waiting:
            raise busy(f"at most {self._settings.api.most_waiting} searches may wait (api.most_waiting), and as many do: try again")
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def _check_load(self) -> None:
        """Raises RefusedError when more queries wait for the workers than may."""
        async with self._looking:
            if time.monotonic() - self._lag_at_s >= LAG_EVERY_S:
                self._lag = self._answers.lag((await self._write(_groups)).get(QUERY_GROUP, {}))
                self._lag_at_s = time.monotonic()
        if self._lag > self._settings.api.most_waiting:
            raise not_ready(f"{self._lag} queries wait for the query workers, and {self._settings.api.most_waiting} may: try again")

    async def _write(self, act: Callable[[Broker, Callable[[], bool]], T], within_s: float = WRITE_WITHIN_S) -> T:
        """Do something with the broker in its thread. ``act`` is given whether nobody waits for it any more.

        Raises NotReadyError at once while the broker is away, and when it takes too long.
        """
        broker, is_given_up = self._link.broker, threading.Event()
        doing = asyncio.wrap_future(self._writer.submit(act, broker, is_given_up.is_set))
        try:
            return await asyncio.wait_for(doing, min(within_s, WRITE_WITHIN_S))
        except TimeoutError:
            raise NotReadyError("the broker did not take the message in time: try again") from None
        finally:
            is_given_up.set()

    # alerts

    async def get_alerts(self, request: Request, client: Client) -> Response:
        """Alerts, oldest first: the first ``limit`` raised since a time, or the newest ones. The newest 10,000 are known."""
        self._link.must_be_read("alerts")
        since_ns = moment_ns("since", request.query_params.get("since"), 0)
        limit = _number("limit", request.query_params.get("limit"), USUAL_ALERTS, KEPT_ALERTS)
        return Response(b"[" + b",".join(self._alerts.since(since_ns, limit)) + b"]", media_type="application/json")

    async def stream_alerts(self, request: Request, client: Client) -> Response:
        """Alerts as they are raised, as server-sent events; Last-Event-ID goes on where a stream broke off."""
        self._link.must_be_read("alerts")
        if self._alerts.listeners >= MOST_STREAMS:
            raise busy(f"at most {MOST_STREAMS} streams may be open, and as many are")
        since_ns = moment_ns("since", request.query_params.get("since"), 0)
        place = self._alerts.place(request.headers.get("last-event-id", ""), since_ns)
        return StreamingResponse(self._alerts.events(place), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    # cameras and crops

    async def get_cameras(self, request: Request, client: Client) -> Response:
        """Cameras and what each has seen; never their addresses."""
        self._link.must_be_read("cameras")
        return _json(self._known.cameras())

    async def get_crop(self, request: Request, client: Client) -> Response:
        """A picture of a person, by the key that a match or an alert names; who looked goes into the audit log."""
        key, purpose = request.path_params["key"], _purpose(request)
        await self._write(lambda broker, _: audit.record(broker, "crop", key, client.name, purpose))
        return Response(await asyncio.to_thread(self._media.get, key), media_type="image/jpeg")

    # watches

    async def get_watches(self, request: Request, client: Client) -> Response:
        """The watches in force."""
        self._link.must_be_read("cameras")
        return _json(self._known.watches())

    async def post_watch(self, request: Request, client: Client) -> Response:
        """Watch for somebody. A query worker is asked first whether the words can be seen: a watch that never alerts is refused."""
        watch = (await body_of(request, WatchBody)).watch(self._settings, client.name)
        now_ns = watch.created_at_ns
        check = Query(watch.watch_id, watch.probes, Filter(now_ns, now_ns), 1, self._settings.search.deadline_s, client.name, watch.purpose)
        answer = await self._ask(check, "watch check", request)
        if not answer.is_there:
            raise not_ready("no query worker said in time whether these words can be seen, so the watch is not in force: try again")
        if answer.refusal:
            raise BadInputError(answer.refusal)
        await self._write(functools.partial(_send_watch, watch.watch_id, watch, client.name, watch.purpose))
        self._known.put(watch)
        return _json(WatchView.of(watch), 201)

    async def delete_watch(self, request: Request, client: Client) -> Response:
        """Take a watch out of force for good."""
        self._link.must_be_read("cameras")
        watch_id, purpose = request.path_params["watch_id"], _purpose(request)
        if not self._known.has_watch(watch_id):
            raise NotFoundError(f"watch {watch_id!r} must be in force; GET /v1/watches lists those that are")
        await self._write(functools.partial(_send_watch, watch_id, None, client.name, purpose))
        self._known.remove(watch_id)
        return Response(status_code=204)

    # the gateway itself

    async def get_live(self, request: Request, client: Client) -> Response:
        """Whether the process answers."""
        return _json({"live": True})

    async def get_ready(self, request: Request, client: Client) -> Response:
        """Whether the topics are followed; 503 when not, with the reasons for those who have a token."""
        reasons = self._link.reasons()
        body: dict[str, object] = {"ready": not reasons}
        if client.roles:
            body["reasons"] = reasons
        return _json(body, 503 if reasons else 200)

    async def get_metrics(self, request: Request, client: Client) -> Response:
        """Prometheus metrics."""
        body, kind = self._metrics.render()
        return Response(body, headers={"Content-Type": kind})


ROUTES: tuple[Served, ...] = (
    Served("POST", "/v1/searches", SEARCH, Gateway.post_search),
    Served("GET", "/v1/searches/{query_id}", SEARCH, Gateway.get_search),
    Served("GET", "/v1/alerts", READ, Gateway.get_alerts),
    Served("GET", "/v1/alerts/stream", READ, Gateway.stream_alerts),
    Served("GET", "/v1/cameras", READ, Gateway.get_cameras),
    Served("GET", "/v1/crops/{key:path}", READ, Gateway.get_crop),
    Served("GET", "/v1/watches", WATCH, Gateway.get_watches),
    Served("POST", "/v1/watches", WATCH, Gateway.post_watch),
    Served("DELETE", "/v1/watches/{watch_id}", WATCH, Gateway.delete_watch),
    Served("GET", "/live", "", Gateway.get_live),
    Served("GET", "/ready", "", Gateway.get_ready),
    Served("GET", "/metrics", READ, Gateway.get_metrics),
)


# --------------------------------------------------------------------------------- in the broker's thread


def _send_query(query: Query, action: str, headers: Headers, broker: Broker, is_given_up: Callable[[], bool]) -> None:
    details = {"probes": audit.kinds(query.probes), "cameras": list(query.window.cameras)}
    audit.record(broker, action, query.query_id, query.issued_by, query.purpose, details)
    if not is_given_up():
        broker.produce(QUERIES, wire.encode(query), query.query_id.encode(), headers)
        broker.flush()


def _send_watch(watch_id: str, watch: Watch | None, client: str, purpose: str, broker: Broker, is_given_up: Callable[[], bool]) -> None:
    """A watch onto its topic, or its removal where there is none."""
    details = {} if watch is None else {"probes": audit.kinds(watch.probes)}
    audit.record(broker, "watch remove" if watch is None else "watch add", watch_id, client, purpose, details)
    if not is_given_up():
        broker.produce(WATCHES, None if watch is None else wire.encode(watch), watch_id.encode())
        broker.flush()


def _groups(broker: Broker, _: Callable[[], bool]) -> Mapping[str, Mapping[TopicPartition, int]]:
    return broker.groups()


# ------------------------------------------------------------------------------------------------- details


async def _first_of(ranking: asyncio.Future[None], request: Request, within_s: float) -> None:
    """Until the ranking is there or the time is up; raises ClientDisconnect when whoever asked has gone."""
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((ranking, gone), timeout=max(0.0, within_s), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
    if gone.done() and not gone.cancelled() and not ranking.done():
        raise ClientDisconnect


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _trace_of(request: Request) -> Headers:
    """The trace that the program which asks is in, when it names one."""
    named = request.headers.get(TRACEPARENT, "")
    return [(TRACEPARENT, named.encode("ascii", errors="replace"))] if named else ()


def _answer_response(query_id: str, answer: Answer) -> Response:
    if answer.refusal:
        raise BadInputError(answer.refusal)
    if not answer.is_there:
        return _json(Waiting(query_id), 202, {"Location": f"/v1/searches/{query_id}", "Retry-After": "1"})
    return Response(answer.ranking, media_type="application/json")


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, "application/json")


def _number(name: str, text: str | None, usual: int, most: int) -> int:
    if not text:
        return usual
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= most):
        raise BadInputError(f"{name} must be a number from 1 to {most}")
    return int(text)


def _purpose(request: Request) -> str:
    purpose = request.query_params.get("purpose", "").strip()
    if len(purpose) > 500:
        raise BadInputError("purpose must be at most 500 characters")
    return purpose
