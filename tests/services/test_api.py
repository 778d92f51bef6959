"""The HTTP gateway over real sockets: uvicorn in a thread, the embedded log or a real Kafka behind it, a real query worker."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import re
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.errors import NotFoundError, NotReadyError, SettingsError
from pipeline.ports import Broker, Message, TopicPartition
from pipeline.search.stage import SearchStage
from pipeline.types import (
    BODY,
    TEXT,
    Alert,
    Camera,
    CameraCoverage,
    Coverage,
    Erasure,
    Gap,
    Match,
    Probe,
    Query,
    Ranking,
    Watch,
)
from services import topics, wire, wiring
from services.adapters.kafka_broker import KafkaBroker
from services.adapters.kafka_client import KafkaConnection
from services.adapters.sqlite_broker import SqliteBroker
from services.api import document, gateway
from services.api.access import sha256_of
from services.api.alerts import AlertLog
from services.api.answers import Answers
from services.api.bodies import moment, moment_ns
from services.api.server import ApiServer
from services.cli.app import app
from services.logs import JsonFormatter
from services.query import QueryHandler, query_worker
from services.reading import until_end
from services.settings import ApiClientSettings, ApiSettings, BrokerSettings, Settings, StorageSettings, load_settings
from tests.fakes import InMemoryGallery, InMemoryMedia, WordTextEncoder, a_tracklet, embedding
from tests.kafka_server import forget_topics

TOKENS = {"control-room": "token-of-the-control-room", "gate-desk": "token-of-the-gate-desk"}
ROLES: dict[str, tuple[Any, ...]] = {"control-room": ("search", "watch", "read"), "gate-desk": ("search",)}
WHY = "lost child, incident 12"
S = 1_000_000_000


def clients() -> list[ApiClientSettings]:
    return [ApiClientSettings(name=name, token_sha256=sha256_of(token), roles=ROLES[name]) for name, token in TOKENS.items()]


def settings_in(folder: Path, is_open: bool = False, **api: Any) -> Settings:
    return Settings(
        storage=StorageSettings(data_folder=folder),
        api=ApiSettings(port=0, clients=[] if is_open else clients(), **api),
    )


@contextmanager
def serving(
    settings: Settings,
    open_broker: Callable[[], AbstractContextManager[Broker]] | None = None,
    media: InMemoryMedia | None = None,
    alerts: AlertLog | None = None,
    until_ready: bool = True,
) -> Iterator[int]:
    """A gateway; gives its port."""
    stop = threading.Event()
    server = ApiServer(settings, open_broker or (lambda: wiring.open_broker(settings)), media or InMemoryMedia(), stop, alerts)
    thread = threading.Thread(target=server.run, name="api")
    thread.start()
    try:
        until(lambda: ask(server.port, "GET", "/live").status == 200)
        if until_ready:
            until(lambda: ask(server.port, "GET", "/ready").status == 200, 20)
        yield server.port
    finally:
        stop.set()
        thread.join(15)
        assert not thread.is_alive()


def ask(
    port: int,
    method: str,
    path: str,
    body: object = None,
    client: str = "control-room",
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 20,
) -> SimpleNamespace:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    sent = {"Authorization": f"Bearer {TOKENS[client]}"} if client else {}
    if body is not None:
        sent["Content-Type"] = "application/json"
    data = body if isinstance(body, bytes) or body is None else json.dumps(body)
    try:
        connection.request(method, path, data, {**sent, **(headers or {})})
        response = connection.getresponse()
        data = response.read()
    finally:
        connection.close()
    is_json = bool(data) and response.headers.get("Content-Type") == "application/json"
    return SimpleNamespace(status=response.status, body=json.loads(data) if is_json else data, headers=response.headers)


def until(holds: Callable[[], Any], within_s: float = 10.0) -> Any:
    """What ``holds`` gives as soon as it is something."""
    ends_at = time.monotonic() + within_s
    while True:
        try:
            found = holds()
        except ConnectionError:
            found = None
        if found:
            return found
        assert time.monotonic() < ends_at, "it never happened"
        time.sleep(0.02)


def red_search(**changes: Any) -> dict[str, Any]:
    return {"text": "red jacket", "purpose": WHY, **changes}


@contextmanager
def working(broker: Broker) -> Iterator[None]:
    """A query worker over two people, one in red."""
    gallery = InMemoryGallery(
        a_tracklet("t-red", embedding(TEXT, 1, 0, 0, 0, 0)), a_tracklet("t-blue", embedding(TEXT, 0, 0, 1, 0, 0), camera_id="south")
    )
    stop = threading.Event()
    worker = query_worker(broker, QueryHandler(SearchStage(gallery, WordTextEncoder())))
    worker._poll_s = 0.1
    thread = threading.Thread(target=worker.run, args=(stop,), name="query")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[SqliteBroker]:
    with SqliteBroker(tmp_path / "log.sqlite") as made:
        topics.create_all(made)
        yield made


@pytest.fixture
def api(tmp_path: Path, broker: SqliteBroker) -> Iterator[int]:
    with serving(settings_in(tmp_path)) as port:
        yield port


@pytest.fixture
def worker(broker: SqliteBroker) -> Iterator[None]:
    with working(broker):
        yield


def audit_records(broker: Broker) -> list[dict[str, Any]]:
    with closing(broker.reader([topics.AUDIT])) as reader:
        return [json.loads(message.value or b"") for message in until_end(broker, reader, topics.AUDIT)]


def say(broker: Broker, topic: str, *values: Any) -> None:
    for value in values:
        key = next(getattr(value, name) for name in ("camera_id", "tracklet_id", "watch_id", "query_id") if hasattr(value, name))
        broker.produce(topic, wire.encode(value), key.encode())
    broker.flush()


# -------------------------------------------------------------------------------------------- searches


@pytest.mark.usefixtures("worker")
def test_a_search_travels_to_a_worker_and_its_ranking_comes_back(api: int, broker: SqliteBroker) -> None:
    answer = ask(api, "POST", "/v1/searches", red_search(top_k=1, zones=[], cameras=["north"]))
    assert answer.status == 200
    ranking = wire.decode(Ranking, json.dumps(answer.body).encode())
    assert [match.tracklet_id for match in ranking.matches] == ["t-red"]
    assert answer.headers["Cache-Control"] == "no-store"
    (record,) = audit_records(broker)
    assert (record["action"], record["issued_by"], record["purpose"]) == ("search", "control-room", WHY)
    assert record["subject"] == ranking.query_id
    assert record["probes"] == ["text"]
    assert "jacket" not in json.dumps(record)


@pytest.mark.usefixtures("worker")
def test_a_search_is_of_its_window(api: int) -> None:
    later = ask(api, "POST", "/v1/searches", red_search(**{"from": "2023-11-15T00:00:00Z"}))
    assert (later.status, later.body["matches"]) == (200, [])
    around = ask(api, "POST", "/v1/searches", red_search(**{"from": "2023-11-14T22:13:20+00:00", "to": "2023-11-14T22:13:21"}))
    assert [match["tracklet_id"] for match in around.body["matches"]] == ["t-red", "t-blue"]
    south = ask(api, "POST", "/v1/searches", red_search(cameras=["south"]))
    assert [match["tracklet_id"] for match in south.body["matches"]] == ["t-blue"]


@pytest.mark.usefixtures("worker")
def test_somebody_found_leads_to_others_like_them(api: int) -> None:
    answer = ask(api, "POST", "/v1/searches", {"tracklet_id": "t-red", "purpose": WHY})
    assert answer.status == 200
    assert "t-red" not in [match["tracklet_id"] for match in answer.body["matches"]]
    gone = ask(api, "POST", "/v1/searches", {"tracklet_id": "t-404", "purpose": WHY})
    assert (gone.status, gone.body["error"].split(":")[0]) == (422, "tracklet 't-404' is not in the index")


def test_a_ranking_that_is_not_there_in_time_is_fetched_later(api: int, broker: SqliteBroker) -> None:
    started_s = time.monotonic()
    answer = ask(api, "POST", "/v1/searches", red_search(deadline_s=0.2))
    assert 0.2 < time.monotonic() - started_s < 15
    assert (answer.status, answer.body["state"]) == (202, "waiting")
    place = f"/v1/searches/{answer.body['query_id']}"
    assert answer.headers["Location"] == place
    assert ask(api, "GET", place).status == 202
    with working(broker):
        found = until(lambda: (found := ask(api, "GET", place)).status == 200 and found)
    assert found.body["query_id"] == answer.body["query_id"]
    assert found.body["is_partial"], "its deadline had passed"


def test_a_ranking_is_for_whoever_asked(api: int, tmp_path: Path) -> None:
    place = f"/v1/searches/{ask(api, 'POST', '/v1/searches', red_search(deadline_s=0.1)).body['query_id']}"
    assert ask(api, "GET", place, client="gate-desk").status == 404
    assert ask(api, "GET", "/v1/searches/nothing").status == 404
    with serving(settings_in(tmp_path)) as second:  # another gateway, or the same one started again
        assert ask(second, "GET", place).status == 202
        assert ask(second, "GET", place, client="gate-desk").status == 404


@pytest.mark.usefixtures("worker")
def test_words_that_cannot_be_seen_are_bad_input(api: int) -> None:
    answer = ask(api, "POST", "/v1/searches", red_search(text="friendly"))
    assert (answer.status, answer.body) == (422, {"error": "nothing in 'friendly' can be seen in a picture"})


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"text": "red"}, "purpose must say why"),
        ({"purpose": WHY}, "a search must say whom to look for: text, tracklet_id or both"),
        (red_search(tracklet_id=""), "tracklet_id: expected `str` of length >= 1"),
        (red_search(steps=11), "steps: expected `int` <= 10"),
        (red_search(text="   "), "text must describe somebody"),
        (red_search(text="x" * 1_001), "text: expected `str` of length <= 1000"),
        (red_search(top_k=1_001), "top_k: expected `int` <= 1000"),
        (red_search(top_k=0), "top_k: expected `int` >= 1"),
        (red_search(deadline_s=0), "deadline_s: expected `float` > 0"),
        (red_search(cameras="north"), "cameras: expected `array`"),
        (red_search(cameras=[""]), "cameras[0]: expected `str` of length >= 1"),
        (red_search(issued_by="somebody else"), "unknown field `issued_by`"),
        (red_search(**{"from": "teatime"}), "from must be a time such as 2026-11-21T04:05:06Z, got 'teatime'"),
        (red_search(**{"from": "2026-11-21T05:00Z", "to": "2026-11-21T04:00Z"}), "to must not be before from"),
        (red_search(to="9999-01-01T00:00:00Z"), "to must lie between 1970 and 2116"),
        (red_search(to="0001-01-01T00:00:00+23:59"), "to must lie between 1970 and 2116"),
        ([], "expected `object`, got `array`"),
        (b"{", "the body must be JSON in UTF-8"),
        (b'{"text": "\xff"}', "the body must be JSON in UTF-8"),
        (b'{"text": "red \\ud800"}', "the body must be JSON in UTF-8"),
        (b"[" * 100_000, "the body is wrong"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(api: int, broker: SqliteBroker, body: Any, says: str) -> None:
    answer = ask(api, "POST", "/v1/searches", body)
    assert answer.status == 422
    assert says in answer.body["error"]
    assert sum(broker.end_offsets(topics.QUERIES).values()) == 0
    assert audit_records(broker) == []


@pytest.mark.usefixtures("worker")
def test_a_purpose_may_be_left_out_where_none_is_required(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    relaxed = settings.model_copy(update={"access": settings.access.model_copy(update={"require_purpose": False})})
    with serving(relaxed) as port:
        assert ask(port, "POST", "/v1/searches", {"text": "red"}).status == 200


def test_a_body_has_limits(api: int) -> None:
    assert ask(api, "POST", "/v1/searches", b" " * 1_000_001).status == 413
    form = {"Content-Type": "text/plain"}  # what a web page may send elsewhere without asking
    assert ask(api, "POST", "/v1/searches", json.dumps(red_search()).encode(), headers=form).status == 415


def test_paths_and_methods_that_are_not_there(api: int) -> None:
    assert ask(api, "GET", "/v2/searches").status == 404
    assert ask(api, "GET", "/v1/searches/").status == 404
    wrong = ask(api, "PUT", "/v1/searches", {})
    assert (wrong.status, wrong.body) == (405, {"error": "this path does not take that method"})
    assert ask(api, "HEAD", "/v1/alerts/stream").status == 405


# ---------------------------------------------------------------------------------------- back-pressure


def test_no_more_searches_wait_than_may(tmp_path: Path, broker: SqliteBroker) -> None:
    with serving(settings_in(tmp_path, most_waiting=1)) as port:
        first: list[Any] = []
        waiting = threading.Thread(target=lambda: first.append(ask(port, "POST", "/v1/searches", red_search(deadline_s=20))))
        waiting.start()
        until(lambda: b"sightline_api_waiting_searches 1" in ask(port, "GET", "/metrics").body)
        second = ask(port, "POST", "/v1/searches", red_search())
        assert (second.status, second.headers["Retry-After"]) == (429, "1")
        assert "api.most_waiting" in second.body["error"]
        with working(broker):
            waiting.join(20)
            assert first[0].status == 200
            assert ask(port, "POST", "/v1/searches", red_search()).status == 200


def test_who_hangs_up_frees_the_place(tmp_path: Path, broker: SqliteBroker) -> None:
    with serving(settings_in(tmp_path, most_waiting=1)) as port:
        with pytest.raises(TimeoutError):
            ask(port, "POST", "/v1/searches", red_search(deadline_s=60), timeout_s=0.5)
        until(lambda: b"sightline_api_waiting_searches 0" in ask(port, "GET", "/metrics").body)
        assert ask(port, "POST", "/v1/searches", red_search(deadline_s=0.1)).status == 202


def test_searches_are_refused_while_the_workers_are_behind(tmp_path: Path, broker: SqliteBroker) -> None:
    say(broker, topics.QUERIES, *(Query(f"q{i}", (Probe("text", "red"),)) for i in range(4)))
    with serving(settings_in(tmp_path, most_waiting=3)) as port:
        refused = ask(port, "POST", "/v1/searches", red_search())
        assert (refused.status, refused.headers["Retry-After"]) == (503, "2")
        assert refused.body["error"].startswith("4 queries wait for the query workers, and 3 may")
        with working(broker):
            until(lambda: ask(port, "POST", "/v1/searches", red_search()).status == 200)


def test_old_queries_and_those_that_retention_took_are_no_lag() -> None:
    answers = Answers(wall_s=lambda: 10_000.0)
    p0, p1 = TopicPartition(topics.QUERIES, 0), TopicPartition(topics.QUERIES, 1)

    def queries(partition: TopicPartition, offsets: Sequence[int], at_s: float) -> list[Message]:
        value = wire.encode(Query("q", (Probe("text", "red"),)))
        return [Message(topics.QUERIES, partition.partition, offset, b"q", value, timestamp_ms=int(at_s * 1000)) for offset in offsets]

    answers.take(queries(p0, range(100), 9_000.0) + queries(p0, range(100, 105), 9_990.0) + queries(p1, range(900, 902), 9_990.0))
    assert answers.lag({}) == 7
    assert answers.lag({p0: 50, p1: 3}) == 7
    assert answers.lag({p0: 103, p1: 902}) == 2


def test_rankings_are_kept_within_bounds() -> None:
    now_s = 0.0
    answers = Answers(most=3, most_bytes=100_000, keep_s=60, clock=lambda: now_s)

    def ranking(query_id: str, matches: int = 0) -> Message:
        found = tuple(Match(i + 1, f"t{i}", "north", 0, 1, 0.5) for i in range(matches))
        return Message(topics.RANKINGS, 0, 0, query_id.encode(), wire.encode(Ranking(query_id, found, Coverage(), 0.1)))

    async def keep() -> None:
        nonlocal now_s
        answers.expect("waited", "me")
        for i in range(5):
            answers.expect(f"q{i}", "me")
            answers.wait_no_more(f"q{i}")
        assert answers.found("waited", "me")
        with pytest.raises(NotFoundError):
            answers.found("q0", "me")
        answers.take([ranking("q3", 300)])
        assert answers.found("q3", "me").is_there
        answers.take([ranking("q4", 600)])
        with pytest.raises(NotFoundError):
            answers.found("q3", "me")
        now_s = 61.0
        with pytest.raises(NotFoundError):
            answers.found("q4", "me")
        answers.wait_no_more("waited")
        assert answers._bytes == 0
        assert not answers._kept

    asyncio.run(keep())


# ------------------------------------------------------------------------------------------------ access


def test_without_a_token_nothing_is_told(api: int) -> None:
    for served in gateway.ROUTES:
        answer = ask(api, served.method, served.path, client="")
        assert answer.status == (401 if served.role else 200), served.path
    assert ask(api, "GET", "/v1/cameras", client="").headers["WWW-Authenticate"] == "Bearer"
    assert ask(api, "GET", "/ready", client="").body == {"ready": True}
    assert ask(api, "GET", "/ready").body == {"ready": True, "reasons": {}}


@pytest.mark.parametrize("header", ["Bearer wrong", "Bearer", "", "Basic token-of-the-control-room", "token-of-the-control-room"])
def test_a_wrong_token_is_none(api: int, header: str) -> None:
    assert ask(api, "GET", "/v1/cameras", client="", headers={"Authorization": header}).status == 401


def test_a_client_may_what_its_roles_say(api: int) -> None:
    for served in gateway.ROUTES:
        if served.role in ("read", "watch"):
            refused = ask(api, served.method, served.path, client="gate-desk")
            assert (refused.status, refused.body["error"]) == (403, f"client gate-desk must have the role {served.role}, it has search")


@pytest.mark.usefixtures("worker")
def test_without_clients_this_machine_alone_is_answered(tmp_path: Path) -> None:
    said = Heard()
    with said, serving(settings_in(tmp_path, is_open=True)) as port:
        assert ask(port, "POST", "/v1/searches", red_search(), client="").status == 200
        for host in (f"127.0.0.1:{port}", "localhost", f"[::1]:{port}"):
            assert ask(port, "GET", "/v1/cameras", client="", headers={"Host": host}).status == 200
        for host in ("sightline.example", f"127.0.0.1.evil.example:{port}", ""):
            assert ask(port, "GET", "/v1/cameras", client="", headers={"Host": host}).status == 403
    assert "no client is configured: this machine alone is answered" in said.text


def test_without_clients_no_other_machine_is_listened_to(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"api\.host must be a loopback address .* got '0\.0\.0\.0': add \[\[api\.clients\]\]"):
        ApiServer(
            settings_in(tmp_path, is_open=True, host="0.0.0.0"), lambda: wiring.open_broker(Settings()), InMemoryMedia(), threading.Event()
        )


def test_a_token_made_by_the_command_opens_the_gateway(tmp_path: Path, broker: SqliteBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.cli.app.set_up_logs", lambda *_: None)  # the runner's streams are closed after it
    made = json.loads(CliRunner().invoke(app, ["api", "token", "--json"]).output)
    shown = CliRunner().invoke(app, ["api", "token"]).output
    token = re.search(r"program: (\S+)", shown)
    assert token is not None
    assert token[1] != made["token"]
    file = tmp_path / "sightline.toml"
    file.write_text("[api]\nport = 0\n" + shown[shown.index("[[") :])
    settings = load_settings(file, {"SIGHTLINE_STORAGE__DATA_FOLDER": str(tmp_path)})
    with serving(settings) as port:
        assert ask(port, "GET", "/v1/cameras", client="", headers={"Authorization": f"Bearer {token[1]}"}).status == 200
        assert ask(port, "GET", "/v1/cameras", client="", headers={"Authorization": f"Bearer {made['token']}"}).status == 401


@pytest.mark.parametrize(
    ("clients_text", "says"),
    [
        ('name = "a"\ntoken_sha256 = "SECRET"\nroles = ["read"]', r"api\.clients\.0\.token_sha256"),
        (
            'name = "a"\ntoken = "SECRET"\nroles = ["read"]',
            r"unknown setting api\.clients\.0\.token; allowed here: name, roles, token_sha256",
        ),
        ('token_sha256 = "SECRET"\nroles = ["read"]', r"api\.clients\.0\.name"),
        (f'name = "a"\ntoken_sha256 = "{"0" * 64}"\nroles = ["admin"]', r"api\.clients\.0\.roles\.0 = .*'search', 'watch' or 'read'"),
    ],
)
def test_a_wrong_client_is_named_and_its_secret_is_not(tmp_path: Path, clients_text: str, says: str) -> None:
    file = tmp_path / "sightline.toml"
    file.write_text(f"[[api.clients]]\n{clients_text}\n")
    with pytest.raises(SettingsError, match=says) as caught:
        load_settings(file, {})
    assert "SECRET" not in str(caught.value)
    assert "0" * 64 not in str(caught.value)


def test_two_clients_cannot_share_a_token(tmp_path: Path) -> None:
    file = tmp_path / "sightline.toml"
    file.write_text("".join(f'[[api.clients]]\nname = "{name}"\ntoken_sha256 = "{"0" * 64}"\nroles = ["read"]\n' for name in "ab"))
    with pytest.raises(SettingsError, match="a name and a token of its own") as caught:
        load_settings(file, {})
    assert "0" * 64 not in str(caught.value)


# ------------------------------------------------------------------------------------------------ alerts


def alert(number: int, tracklet_id: str = "", camera_id: str = "north") -> Alert:
    return Alert(f"a{number}", "w1", tracklet_id or f"t{number}", 1, camera_id, number * S, (1_700_000_000 + number) * S, 0.8, 0.5)


class Stream:
    """An open stream of server-sent events."""

    def __init__(self, port: int, path: str = "/v1/alerts/stream", last_id: str = "") -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        headers = {"Authorization": f"Bearer {TOKENS['control-room']}"} | ({"Last-Event-ID": last_id} if last_id else {})
        self._connection.request("GET", path, headers=headers)
        self._response = self._connection.getresponse()
        assert (self._response.status, self._response.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
        self.last_id = ""

    def __enter__(self) -> Stream:
        self.begun = self.next()
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()
        self._connection.close()

    def next(self) -> dict[str, str]:
        """The fields of the next block; {} at the end."""
        fields = {}
        while line := self._response.readline().decode().rstrip("\r\n"):
            name, _, value = line.partition(": ")
            fields[name] = value
        self.last_id = fields.get("id", self.last_id)
        return fields

    def alerts(self, count: int) -> list[str]:
        found = []
        while len(found) < count:
            block = self.next()
            if block.get("event") == "alert":
                found.append(str(json.loads(block["data"])["alert_id"]))
        return found


def test_alerts_are_listed_since_a_time(api: int, broker: SqliteBroker) -> None:
    assert ask(api, "GET", "/v1/alerts").body == []
    say(broker, topics.ALERTS, *(alert(i, camera_id=f"cam{i % 3}") for i in range(6)))
    until(lambda: len(ask(api, "GET", "/v1/alerts").body) == 6)

    def ids(query: str) -> list[str]:
        return [each["alert_id"] for each in ask(api, "GET", f"/v1/alerts?{query}").body]

    assert ids("") == ["a0", "a1", "a2", "a3", "a4", "a5"]
    assert ids(f"since={moment((1_700_000_000 + 4) * S)}") == ["a4", "a5"]
    assert ids(f"since={moment((1_700_000_000 + 2) * S)}&limit=2") == ["a2", "a3"], "the next page begins with the last of this one"
    assert ids("limit=2") == ["a4", "a5"]
    assert wire.decode(Alert, json.dumps(ask(api, "GET", "/v1/alerts?limit=1").body[0]).encode()) == alert(5, camera_id="cam2")
    for wrong in ("since=teatime", "limit=0", "limit=10001", "limit=x", "limit=-1"):
        assert ask(api, "GET", f"/v1/alerts?{wrong}").status == 422, wrong


def test_a_stream_brings_alerts_as_they_are_raised_and_goes_on_where_it_broke_off(tmp_path: Path, broker: SqliteBroker) -> None:
    say(broker, topics.ALERTS, alert(0))
    with serving(settings_in(tmp_path)) as port:
        with Stream(port) as stream:
            assert stream.begun["retry"] == "2000"
            assert stream.begun["id"].startswith("alerts/")
            say(broker, topics.ALERTS, alert(1), alert(2, camera_id="yard"), alert(3))
            assert sorted(stream.alerts(3)) == ["a1", "a2", "a3"], "not a0, which was raised before"
            last = stream.last_id
        say(broker, topics.ALERTS, alert(4, camera_id="yard"), alert(5, camera_id="a camera of another partition"))
        with Stream(port, last_id=last) as stream:
            assert sorted(stream.alerts(2)) == ["a4", "a5"]
            say(broker, topics.ALERTS, alert(6))
            assert stream.alerts(1) == ["a6"]
            last = stream.last_id
    say(broker, topics.ALERTS, alert(7))
    with serving(settings_in(tmp_path)) as port:  # started again
        with Stream(port, last_id=last) as stream:
            assert stream.alerts(1) == ["a7"]
        with Stream(port, f"/v1/alerts/stream?since={moment((1_700_000_000 + 6) * S)}") as stream:
            assert sorted(stream.alerts(2)) == ["a6", "a7"]
        assert ask(port, "GET", "/v1/alerts/stream", headers={"Last-Event-ID": "12"}).status == 422


def test_many_streams_share_one_reader(api: int, broker: SqliteBroker) -> None:
    def readers() -> set[str]:
        return {thread.name for thread in threading.enumerate() if thread.name.startswith("api-")} - {"api-broker", "api-writer_0"}

    before = readers()
    with ExitStack() as stack:
        streams = [stack.enter_context(Stream(api)) for _ in range(8)]
        assert readers() == before == {"api-rankings", "api-alerts", "api-cameras"}
        say(broker, topics.ALERTS, alert(1))
        assert [stream.alerts(1) for stream in streams] == [["a1"]] * 8
        assert b"sightline_api_streams 8" in ask(api, "GET", "/metrics").body
    until(lambda: b"sightline_api_streams 0" in (say(broker, topics.ALERTS, alert(2)), ask(api, "GET", "/metrics").body)[1])


def test_a_stream_says_when_alerts_are_no_longer_known_and_that_it_lives(tmp_path: Path, broker: SqliteBroker) -> None:
    with serving(settings_in(tmp_path), alerts=AlertLog(most=3, heartbeat_s=0.05)) as port:
        with Stream(port) as stream:
            say(broker, topics.ALERTS, alert(0))
            assert stream.alerts(1) == ["a0"]
            until(lambda: stream.next() == {"": "nothing new"})
            last = stream.last_id
        say(broker, topics.ALERTS, *(alert(i) for i in range(1, 8)))
        until(lambda: [each["alert_id"] for each in ask(port, "GET", "/v1/alerts").body] == ["a5", "a6", "a7"])
        with Stream(port, last_id=last) as stream:
            missed = stream.next()
            assert (missed["event"], json.loads(missed["data"])) == ("missed", {"messages": 4})
            assert stream.alerts(3) == ["a5", "a6", "a7"]


def test_what_does_not_decode_is_left_out(api: int, broker: SqliteBroker) -> None:
    for topic in (topics.ALERTS, topics.QUERIES, topics.RANKINGS, topics.WATCHES, topics.COVERAGE, topics.CAMERAS):
        broker.produce(topic, b"junk", b"k")
    say(broker, topics.ALERTS, alert(1))
    until(lambda: [each["alert_id"] for each in ask(api, "GET", "/v1/alerts").body] == ["a1"])


def test_the_erased_are_forgotten(api: int, broker: SqliteBroker) -> None:
    query_id = ask(api, "POST", "/v1/searches", red_search(deadline_s=0.1)).body["query_id"]
    matches = tuple(Match(rank, name, "north", 0, 1, 0.5) for rank, name in ((1, "t-erased"), (2, "t-kept"), (3, "t-later")))
    say(broker, topics.RANKINGS, Ranking(query_id, matches, Coverage(), 0.1))
    say(broker, topics.ALERTS, alert(1, "t-erased"), alert(2, "t-kept"))
    until(lambda: len(ask(api, "GET", "/v1/alerts").body) == 2)
    say(broker, topics.ERASURES, Erasure("t-erased", time.time_ns()), Erasure("t-later", time.time_ns()))
    say(broker, topics.ALERTS, alert(3, "t-later"), alert(4, "t-kept"))
    until(lambda: [each["alert_id"] for each in ask(api, "GET", "/v1/alerts").body] == ["a2", "a4"])
    found = ask(api, "GET", f"/v1/searches/{query_id}")
    assert [(match["rank"], match["tracklet_id"]) for match in found.body["matches"]] == [(2, "t-kept")]


# ------------------------------------------------------------------------------ cameras, crops, watches


def test_cameras_say_what_they_saw_and_never_where_they_are(api: int, broker: SqliteBroker) -> None:
    now_ns = time.time_ns()
    gate = Camera(
        "gate", "rtsp://bob:tuna@192.0.2.10/1", site="main gate", zones={"door": ((0.0, 0.0), (9.0, 0.0), (0.0, 9.0))}, is_live=True
    )
    say(broker, topics.CAMERAS, gate, Camera("yard", "rtsp://192.0.2.11/1", is_live=True), Camera("gone", "rtsp://192.0.2.12/1"))
    broker.produce(topics.CAMERAS, None, b"gone")
    gap = Gap(now_ns - 60 * S, now_ns, "no answer")
    say(
        broker,
        topics.COVERAGE,
        CameraCoverage("gate", now_ns - 100 * S, now_ns - 5 * S, seen=90, sampled=80, dropped=10),
        CameraCoverage("gate", now_ns - 100 * S, now_ns - 1 * S, seen=100, sampled=80, dropped=12),
        CameraCoverage("gate", 1 * S, 9 * S, seen=5, sampled=5),  # footage of old days
        CameraCoverage("yard", now_ns - 100 * S, now_ns, seen=40, sampled=40, gaps=(gap,)),
        CameraCoverage("film", 1 * S, 9 * S, seen=5, sampled=5),
    )
    until(lambda: [each["camera_id"] for each in ask(api, "GET", "/v1/cameras").body] == ["film", "gate", "yard"])
    answer = ask(api, "GET", "/v1/cameras")
    film, gate_view, yard = answer.body
    assert (film["camera_id"], film["is_added"], film["is_seen"], film["last_frame"]) == ("film", False, False, "1970-01-01T00:00:09.000Z")
    assert (gate_view["site"], gate_view["zones"], gate_view["is_live"], gate_view["is_seen"]) == ("main gate", ["door"], True, True)
    assert (gate_view["frames"], gate_view["dropped"], gate_view["last_frame"]) == (100, 12, moment(now_ns - 1 * S))
    assert (yard["is_seen"], yard["last_frame"], yard["gap_s"]) == (False, moment(now_ns - 60 * S), 60.0)
    assert yard["gaps"] == [{"from": moment(now_ns - 60 * S), "to": moment(now_ns), "reason": "no answer"}]
    assert not any(word in json.dumps(answer.body) for word in ("tuna", "192.0.2", "rtsp"))


def test_a_camera_that_nobody_told_of_has_seen_nothing(api: int, broker: SqliteBroker) -> None:
    say(broker, topics.CAMERAS, Camera("new", "rtsp://192.0.2.10/1", is_live=True))
    (new,) = until(lambda: ask(api, "GET", "/v1/cameras").body)
    assert (new["is_seen"], new["last_frame"], new["frames"]) == (False, None, 0)


def test_crops_are_served_and_audited(tmp_path: Path, broker: SqliteBroker) -> None:
    media = InMemoryMedia()
    media.put("north/t1/0.jpg", b"\xff\xd8picture")
    with serving(settings_in(tmp_path), media=media) as port:
        answer = ask(port, "GET", "/v1/crops/north/t1/0.jpg?purpose=incident%2012")
        assert (answer.status, answer.body, answer.headers["Content-Type"]) == (200, b"\xff\xd8picture", "image/jpeg")
        assert ask(port, "GET", "/v1/crops/north/t2/0.jpg").status == 404
    seen = [(each["action"], each["subject"], each["issued_by"], each["purpose"]) for each in audit_records(broker)]
    assert seen == [("crop", "north/t1/0.jpg", "control-room", "incident 12"), ("crop", "north/t2/0.jpg", "control-room", "")]


def test_a_key_cannot_leave_the_store(tmp_path: Path, broker: SqliteBroker) -> None:
    settings = settings_in(tmp_path)
    with serving(settings, media=wiring.open_media(settings)) as port:  # type: ignore[arg-type]
        for key in ("../log.sqlite", "%2e%2e/log.sqlite", "..%2f..%2fetc/passwd", "/etc/passwd", ".hidden"):
            assert ask(port, "GET", f"/v1/crops/{key}").status == 422, key


@pytest.mark.usefixtures("worker")
def test_a_watch_is_added_listed_and_removed(api: int, broker: SqliteBroker) -> None:
    body = {"text": "red coat", "threshold": 0.7, "cameras": ["north"], "purpose": WHY}
    added = ask(api, "POST", "/v1/watches", body)
    assert (added.status, added.body["what"], added.body["issued_by"]) == (201, ["red coat"], "control-room")
    (listed,) = ask(api, "GET", "/v1/watches").body
    assert listed == added.body
    with closing(broker.reader([topics.WATCHES])) as reader:
        (message,) = until_end(broker, reader, topics.WATCHES)
    watch = wire.decode(Watch, message.value)
    assert (watch.threshold, watch.cameras, watch.purpose) == (0.7, ("north",), WHY)
    assert 23.9 * 3600 < (watch.expires_at_ns - time.time_ns()) / S < 24.1 * 3600
    assert ask(api, "DELETE", f"/v1/watches/{watch.watch_id}?purpose=found").status == 204
    assert ask(api, "GET", "/v1/watches").body == []
    assert ask(api, "DELETE", f"/v1/watches/{watch.watch_id}").status == 404
    assert [each["action"] for each in audit_records(broker)] == ["watch check", "watch add", "watch remove"]


@pytest.mark.usefixtures("worker")
def test_a_watch_that_would_never_alert_is_refused(api: int, broker: SqliteBroker) -> None:
    refused = ask(api, "POST", "/v1/watches", {"text": "friendly", "purpose": WHY})
    assert (refused.status, refused.body["error"]) == (422, "nothing in 'friendly' can be seen in a picture")
    past = ask(api, "POST", "/v1/watches", {"text": "red", "purpose": WHY, "expires": "2020-01-01T00:00Z"})
    assert (past.status, past.body["error"]) == (422, "expires must lie in the future, got 2020-01-01T00:00Z")
    assert ask(api, "POST", "/v1/watches", {"text": "red"}).body["error"].startswith("purpose must say why")
    assert sum(broker.end_offsets(topics.WATCHES).values()) == 0


def test_a_watch_is_not_in_force_while_nobody_can_check_it(tmp_path: Path, broker: SqliteBroker) -> None:
    settings = settings_in(tmp_path)
    quick = settings.model_copy(update={"search": settings.search.model_copy(update={"deadline_s": 0.1})})
    with serving(quick) as port:
        answer = ask(port, "POST", "/v1/watches", {"text": "red", "purpose": WHY})
    assert answer.status == 503
    assert "not in force" in answer.body["error"]
    assert sum(broker.end_offsets(topics.WATCHES).values()) == 0


def test_watches_of_others_are_listed_without_their_pictures(api: int, broker: SqliteBroker) -> None:
    of_a_picture = Watch("w1", (Probe("look-alike", embeddings=(embedding(BODY, 1, 0),)),), 0.5, issued_by="alice")
    say(broker, topics.WATCHES, of_a_picture, Watch("w2", (Probe("text", "red"),), 0.5, expires_at_ns=1))
    (listed,) = until(lambda: ask(api, "GET", "/v1/watches").body)
    assert (listed["watch_id"], listed["what"], listed["issued_by"]) == ("w1", ["look-alike"], "alice")
    assert "vector" not in json.dumps(listed)


# ----------------------------------------------------------------------------- a broker that goes away


class Lamed:
    """A broker, or a reader of it, that raises NotReadyError while it is away."""

    def __init__(self, inner: Any, away: threading.Event) -> None:
        self._inner, self._away = inner, away

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name in ("close", "assignment"):
            return found

        def call(*arguments: Any, **named: Any) -> Any:
            if self._away.is_set():
                raise NotReadyError("the broker is on a break")
            made = found(*arguments, **named)
            return Lamed(made, self._away) if name == "reader" else made

        return call


def test_waiting_requests_outlive_a_broker_that_is_away(tmp_path: Path, broker: SqliteBroker) -> None:
    settings, away = settings_in(tmp_path), threading.Event()

    @contextmanager
    def lamed() -> Iterator[Broker]:
        with wiring.open_broker(settings) as inner:
            yield Lamed(inner, away)

    with serving(settings, lamed) as port:
        waiting: list[Any] = []
        thread = threading.Thread(target=lambda: waiting.append(ask(port, "POST", "/v1/searches", red_search(deadline_s=20))))
        thread.start()
        until(lambda: sum(broker.end_offsets(topics.QUERIES).values()) == 1)
        with Stream(port) as stream:
            away.set()
            until(lambda: len(ask(port, "GET", "/ready").body["reasons"]) == 3)  # polls under way have ended
            assert ask(port, "GET", "/ready").status == 503
            ready = ask(port, "GET", "/ready").body
            assert ready["ready"] is False
            assert set(ready["reasons"].values()) == {"the broker is on a break"}
            assert ask(port, "GET", "/ready", client="").body == {"ready": False}
            assert ask(port, "GET", "/live").status == 200
            refused = ask(port, "POST", "/v1/searches", red_search())
            assert (refused.status, refused.headers["Retry-After"]) == (503, "2")
            assert "the broker is on a break" in refused.body["error"]
            assert ask(port, "GET", "/v1/alerts").status == 200, "what is known is told"
            with working(broker):
                say(broker, topics.ALERTS, alert(1))
                time.sleep(0.3)
                assert not waiting
                away.clear()
                thread.join(20)
            assert waiting[0].status == 200
            assert stream.alerts(1) == ["a1"]
        until(lambda: ask(port, "GET", "/ready").status == 200)


def test_a_broker_that_is_not_there_at_the_start_is_waited_for(tmp_path: Path, broker: SqliteBroker) -> None:
    settings, tries = settings_in(tmp_path), []

    @contextmanager
    def late() -> Iterator[Broker]:
        tries.append(1)
        if len(tries) < 4:
            raise NotReadyError("nobody answers at 192.0.2.1")
        with wiring.open_broker(settings) as inner:
            yield inner

    with serving(settings, late, until_ready=False) as port:
        answer = ask(port, "GET", "/v1/alerts")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
        assert ask(port, "POST", "/v1/searches", red_search()).status == 503
        until(lambda: ask(port, "GET", "/ready").status == 200)
        assert ask(port, "GET", "/v1/alerts").status == 200


def test_wrong_settings_end_the_gateway_and_say_why(tmp_path: Path) -> None:
    @contextmanager
    def wrong() -> Iterator[Broker]:
        raise SettingsError("topic alerts must exist and does not")
        yield

    server = ApiServer(settings_in(tmp_path), wrong, InMemoryMedia(), threading.Event())
    with pytest.raises(SettingsError, match="topic alerts must exist"):
        server.run()


def test_a_port_that_is_taken_is_named(tmp_path: Path, api: int) -> None:
    settings = settings_in(tmp_path)
    taken = settings.model_copy(update={"api": settings.api.model_copy(update={"port": api})})
    with pytest.raises(SettingsError, match=f"got 127.0.0.1:{api}"):
        ApiServer(taken, lambda: wiring.open_broker(settings), InMemoryMedia(), threading.Event())


def test_who_waits_is_let_go_when_the_gateway_stops(tmp_path: Path, broker: SqliteBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.api.server.STOP_WITHIN_S", 60)  # longer than ``serving`` waits for the end
    waiting: list[Any] = []
    with ExitStack() as outside:
        with serving(settings_in(tmp_path)) as port:
            thread = threading.Thread(target=lambda: waiting.append(ask(port, "POST", "/v1/searches", red_search(deadline_s=60))))
            thread.start()
            stream = outside.enter_context(Stream(port))
            until(lambda: sum(broker.end_offsets(topics.QUERIES).values()) == 1)
        thread.join(5)
        assert waiting[0].status == 202
        assert stream.next() == {}


# ------------------------------------------------------------------------- logs, metrics, the document


class Heard(logging.Handler):
    """What the gateway's log says, as JSON lines."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.lines: list[dict[str, Any]] = []

    @property
    def text(self) -> str:
        return "\n".join(json.dumps(line) for line in self.lines)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))

    def __enter__(self) -> Heard:
        self._log = logging.getLogger("sightline.api")
        self._before = self._log.level
        self._log.setLevel(logging.DEBUG)
        self._log.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._log.removeHandler(self)
        self._log.setLevel(self._before)


@pytest.mark.usefixtures("worker")
def test_logs_say_what_happened_and_never_what_was_asked(api: int, broker: SqliteBroker) -> None:
    with Heard() as heard:
        ask(api, "POST", "/v1/searches", red_search())
        ask(api, "POST", "/v1/searches", red_search(text="friendly"))
        ask(api, "POST", "/v1/searches", {"text": "red jacket", "surname": "Miller"})
        ask(api, "GET", f"/v1/crops/north/t-red/0.jpg?purpose={WHY.replace(' ', '%20')}")
        ask(api, "GET", "/v1/cameras", client="", headers={"Authorization": "Bearer token-of-nobody"})
        broker.produce(topics.QUERIES, b'{"schema_version":1,"type":"query","text":"red jacket"}', b"q")
        broker.flush()
        until(lambda: "does not decode" in heard.text)
    answered = [line for line in heard.lines if line["message"] == "answered"]
    assert [(line["route"], line["status"], line["client"]) for line in answered] == [
        ("/v1/searches", 200, "control-room"),
        ("/v1/searches", 422, "control-room"),
        ("/v1/searches", 422, "control-room"),
        ("/v1/crops/{key:path}", 404, "control-room"),
        ("/v1/cameras", 401, "-"),
    ]
    assert all(line["ms"] >= 0 for line in answered)
    for word in ("red", "jacket", "friendly", "Miller", "token", "incident", "t-red"):
        assert not re.search(rf"\b{word}\b", heard.text), word


def test_a_bug_tells_the_log_where_and_nobody_what(tmp_path: Path, broker: SqliteBroker) -> None:
    class BrokenMedia(InMemoryMedia):
        def get(self, key: str) -> bytes:
            raise RuntimeError(f"red jacket {key}")

    with Heard() as heard, serving(settings_in(tmp_path), media=BrokenMedia()) as port:
        answer = ask(port, "GET", "/v1/crops/north/t1/0.jpg")
        assert (answer.status, answer.body) == (500, {"error": "the gateway failed; its log says where"})
    (failed,) = [line for line in heard.lines if line["message"] == "request failed"]
    assert failed["error"] == "RuntimeError"
    assert "test_api.py" in failed["at"]
    assert "red jacket" not in heard.text


@pytest.mark.usefixtures("worker")
def test_metrics_count_answers(api: int) -> None:
    ask(api, "POST", "/v1/searches", red_search())
    ask(api, "GET", "/nowhere")
    answer = ask(api, "GET", "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    for line in (
        'sightline_api_requests_total{method="POST",route="/v1/searches",status="200"} 1',
        'sightline_api_requests_total{method="-",route="-",status="404"} 1',
        'sightline_api_request_seconds_count{method="POST",route="/v1/searches"} 1',
        "sightline_api_waiting_searches 0",
        "sightline_api_broker_up 1",
    ):
        assert line in answer.body.decode()


def test_the_document_says_what_the_code_serves() -> None:
    file = Path(__file__).parents[2] / "deploy" / "openapi.json"
    assert file.read_text("utf-8") == document.as_json(), "python -m services.api.document > deploy/openapi.json"
    written = {(method.upper(), path) for path, operations in json.loads(file.read_text()).get("paths").items() for method in operations}
    assert written == {(served.method, document.shown_path(served)) for served in gateway.ROUTES}


def test_times_keep_their_microseconds() -> None:
    assert moment_ns("since", "2026-11-21T04:05:06.789012Z", 0) == 1_795_233_906_789_012_000
    assert moment_ns("since", "2026-11-21T06:05:06+02:00", 0) == 1_795_233_906_000_000_000
    assert moment(1_795_233_906_789_012_345) == "2026-11-21T04:05:06.789Z"
    assert moment(2**62) == moment(2**63)


def test_tls_where_a_certificate_is_set(tmp_path: Path, broker: SqliteBroker) -> None:
    import ssl

    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    try:
        command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
        subprocess.run(command, check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as reason:
        pytest.skip(f"no openssl: {reason}")
    settings, stop = settings_in(tmp_path, tls_certificate_file=certificate, tls_key_file=key), threading.Event()
    server = ApiServer(settings, lambda: wiring.open_broker(settings), InMemoryMedia(), stop)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        trusted = ssl.create_default_context(cafile=str(certificate))
        connection = http.client.HTTPSConnection("localhost", server.port, timeout=10, context=trusted)
        connection.request("GET", "/live")
        assert connection.getresponse().status == 200
        connection.close()
    finally:
        stop.set()
        thread.join(15)
    with pytest.raises(SettingsError, match=r"api\.tls_certificate_file and tls_key_file must be PEM files"):
        ApiServer(
            settings_in(tmp_path, tls_certificate_file=key, tls_key_file=key), lambda: wiring.open_broker(settings), InMemoryMedia(), stop
        )


# ----------------------------------------------------------------------------------------------- Kafka


def test_a_search_and_a_stream_over_a_real_kafka(tmp_path: Path, kafka_bootstrap: str) -> None:
    settings = settings_in(tmp_path).model_copy(update={"broker": BrokerSettings(kind="kafka", bootstrap_servers=kafka_bootstrap)})
    with closing(KafkaBroker(KafkaConnection(kafka_bootstrap))) as broker:
        before = set(broker.topics())
        try:
            topics.create_all(broker)
            say(broker, topics.ALERTS, *(alert(i) for i in range(3)))
            with serving(settings) as port:
                assert len(ask(port, "GET", "/v1/alerts").body) == 3
                early = ask(port, "POST", "/v1/searches", red_search(deadline_s=0.2))
                assert early.status == 202
                with working(broker):
                    found = ask(port, "POST", "/v1/searches", red_search(deadline_s=20))
                    assert (found.status, found.body["matches"][0]["tracklet_id"]) == (200, "t-red")
                    place = f"/v1/searches/{early.body['query_id']}"
                    until(lambda: ask(port, "GET", place).status == 200, 20)
                    assert ask(port, "POST", "/v1/watches", {"text": "red", "purpose": WHY}).status == 201
                with Stream(port) as stream:
                    say(broker, topics.ALERTS, alert(3, camera_id=uuid.uuid4().hex), alert(4))
                    assert sorted(stream.alerts(2)) == ["a3", "a4"]
                    last = stream.last_id
            say(broker, topics.ALERTS, alert(5))
            with serving(settings) as port, Stream(port, last_id=last) as stream:
                assert stream.alerts(1) == ["a5"]
                assert len(ask(port, "GET", "/v1/watches").body) == 1
            assert [each["action"] for each in audit_records(broker)] == ["search", "search", "watch check", "watch add"]
        finally:
            forget_topics(kafka_bootstrap, before)
