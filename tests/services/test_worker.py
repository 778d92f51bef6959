"""The loop of all workers: what each branch of the error tree does, and that nothing is lost or doubled when it stops or dies."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from pipeline.backoff import Backoff
from pipeline.errors import BadInputError, NotReadyError, SettingsError, StorageFullError
from pipeline.ports import Message, TopicPartition, TopicSpec
from pipeline.types import Camera
from services import wire
from services.adapters.sqlite_broker import SqliteBroker
from services.topics import CAMERAS, create_all
from services.worker import Output, Received, TooManyBadMessages, Worker

SESSION_S = 1.0


class Shouter:
    """Answers every message of ``words`` in capitals; refuses, waits or breaks where the word says so."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.not_ready = 0

    def handle(self, batch: Sequence[Received]) -> list[Output]:
        words = [received.value for received in batch]
        self.batches.append(words)
        if self.not_ready > 0:
            self.not_ready -= 1
            raise NotReadyError("the index is being opened")
        if any(b"bad" in word for word in words):
            raise BadInputError("this word is bad")
        if b"broken" in words:
            raise ZeroDivisionError("a bug")
        if b"unset" in words:
            raise SettingsError("index.path must be a folder")
        return [Output("shouts", "key", word.upper()) for word in words]


class Clicker:
    """Counts what the worker tells."""

    def __init__(self) -> None:
        self.messages = self.outputs = self.dead = self.retries = 0
        self.begun: list[tuple[str, tuple[str, ...]]] = []
        self.up: list[bool] = []
        self.in_hand: list[int] = []
        self.lags: list[int] = []

    def started(self, worker: str, topics: Sequence[str]) -> None:
        self.begun.append((worker, tuple(topics)))

    def connected(self, worker: str, is_up: bool) -> None:
        self.up.append(is_up)

    def holds(self, worker: str, messages: int) -> None:
        self.in_hand.append(messages)

    def handled(self, worker: str, messages: int, outputs: int, seconds: float) -> None:
        self.messages += messages
        self.outputs += outputs

    def dead_lettered(self, worker: str, topic: str, error: BaseException) -> None:
        self.dead += 1

    def retried(self, worker: str, error: BaseException) -> None:
        self.retries += 1

    def lagged(self, worker: str, messages: int) -> None:
        self.lags.append(messages)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[SqliteBroker]:
    with SqliteBroker(tmp_path / "log.db", session_timeout_s=SESSION_S) as opened:
        opened.create_topics([TopicSpec("words"), TopicSpec("words.dlt"), TopicSpec("shouts")])
        yield opened


def say(broker: SqliteBroker, *words: bytes) -> None:
    for word in words:
        broker.produce("words", word, b"speaker", [("trace", b"7")])
    broker.flush()


def heard(broker: SqliteBroker, topic: str = "shouts") -> list[Message]:
    consumer = broker.consumer([topic], f"heard-{time.monotonic_ns()}")
    messages: list[Message] = []
    while found := consumer.poll(0.05):
        messages += found
    consumer.close()
    return messages


def worker(broker: SqliteBroker, handler: object, **settings: object) -> Worker:
    settings = {"poll_s": 0.05, "keep_alive_s": 0.1, "backoff": Backoff(0.01, 0.05)} | settings
    return Worker("shouter", broker, ["words"], handler, **settings)  # type: ignore[arg-type]


def committed(broker: SqliteBroker) -> int:
    return broker.groups().get("shouter", {}).get(TopicPartition("words", 0), 0)


def test_every_message_is_answered_once_and_committed(broker: SqliteBroker) -> None:
    say(broker, *(b"%d" % i for i in range(25)))
    clicker = Clicker()
    worker(broker, Shouter(), batch=10, observer=clicker).run(until_drained=True)
    assert [m.value for m in heard(broker)] == [b"%d" % i for i in range(25)]
    assert committed(broker) == 25
    assert (clicker.messages, clicker.outputs, clicker.dead) == (25, 25, 0)


def test_a_bad_message_is_put_aside_with_its_reason_and_the_rest_go_on(broker: SqliteBroker) -> None:
    say(broker, b"one", b"bad", b"two", b"three")
    clicker = Clicker()
    worker(broker, Shouter(), observer=clicker).run(until_drained=True)
    assert [m.value for m in heard(broker)] == [b"ONE", b"TWO", b"THREE"]
    (letter,) = heard(broker, "words.dlt")
    assert (letter.key, letter.value) == (b"speaker", b"bad")
    assert dict(letter.headers) == {
        "trace": b"7",
        "stage": b"shouter",
        "topic": b"words",
        "partition": b"0",
        "offset": b"1",
        "error": b"BadInputError: this word is bad",
        "schema_version": b"",
    }
    assert committed(broker) == 4
    assert clicker.dead == 1


def test_a_message_that_does_not_decode_is_put_aside_before_the_handler_sees_it(broker: SqliteBroker) -> None:
    create_all(broker)
    seen: list[object] = []

    class Noting:
        def handle(self, batch: Sequence[Received]) -> list[Output]:
            seen.extend(received.value for received in batch)
            return []

    broker.produce(CAMERAS, wire.encode(Camera("north", "a.mp4")), b"north")
    broker.produce(CAMERAS, b"{damaged", b"south")
    broker.produce(CAMERAS, b'{"schema_version":7,"type":"camera"}', b"east")
    broker.produce(CAMERAS, None, b"west")
    broker.flush()
    Worker("noting", broker, [CAMERAS], Noting(), poll_s=0.05).run(until_drained=True)
    assert sorted(map(str, seen)) == sorted(map(str, [Camera("north", "a.mp4"), None]))
    letters = {m.key: dict(m.headers) for m in heard(broker, CAMERAS + ".dlt")}
    assert set(letters) == {b"south", b"east"}
    assert letters[b"east"]["schema_version"] == b"7"
    assert b"newer Sightline" in letters[b"east"]["error"]


def test_not_ready_is_tried_again_with_the_same_messages(broker: SqliteBroker) -> None:
    say(broker, b"one", b"two")
    handler, clicker = Shouter(), Clicker()
    handler.not_ready = 3
    worker(broker, handler, observer=clicker).run(until_drained=True)
    assert handler.batches == [[b"one", b"two"]] * 4
    assert len(heard(broker)) == 2
    assert clicker.retries == 3


@pytest.mark.parametrize(("word", "error"), [(b"broken", ZeroDivisionError), (b"unset", SettingsError)])
def test_a_bug_or_wrong_settings_stop_the_worker_with_nothing_committed(broker: SqliteBroker, word: bytes, error: type[Exception]) -> None:
    say(broker, b"one", word)
    with pytest.raises(error):
        worker(broker, Shouter()).run(until_drained=True)
    assert committed(broker) == 0
    assert heard(broker) == []


def test_too_many_bad_messages_stop_the_worker(broker: SqliteBroker) -> None:
    say(broker, *(b"word" for _ in range(1000)), *(b"bad" for _ in range(15)))
    with pytest.raises(TooManyBadMessages, match=r"1%.*1000"):
        worker(broker, Shouter(), batch=5).run(until_drained=True)
    assert committed(broker) == 1010  # 10 of the last 1000 are allowed; the batch that broke the rule is not committed
    assert len(heard(broker, "words.dlt")) == 10


def test_one_in_a_hundred_bad_messages_is_put_up_with(broker: SqliteBroker) -> None:
    say(broker, *(b"bad" if i % 100 == 50 else b"word" for i in range(2000)))
    worker(broker, Shouter()).run(until_drained=True)
    assert committed(broker) == 2000
    assert len(heard(broker, "words.dlt")) == 20


class FullDisk(SqliteBroker):
    """A log that has no room for the first ``refusals`` flushes."""

    refusals = 0

    def flush(self, timeout_s: float = 10.0) -> None:
        if self.refusals > 0:
            self.refusals -= 1
            raise StorageFullError("no space is left")
        super().flush(timeout_s)


def test_a_full_disk_holds_the_commit_back_until_the_outputs_are_written(tmp_path: Path) -> None:
    broker = FullDisk(tmp_path / "log.db", session_timeout_s=SESSION_S)
    broker.create_topics([TopicSpec("words"), TopicSpec("shouts")])
    say(broker, b"one")
    broker.refusals = 4
    handler = Shouter()
    worker(broker, handler).run(until_drained=True)
    assert handler.batches == [[b"one"]]  # handled once, flushed five times
    assert [m.value for m in heard(broker)] == [b"ONE"]
    assert committed(broker) == 1
    broker.close()


def test_a_worker_stopped_while_the_world_is_not_ready_commits_nothing(broker: SqliteBroker) -> None:
    say(broker, b"one")
    handler, stop = Shouter(), threading.Event()
    handler.not_ready = 10**6
    thread = threading.Thread(target=worker(broker, handler).run, args=(stop,))
    thread.start()
    time.sleep(0.3)
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
    assert committed(broker) == 0


class Slow:
    """Takes its time over each message, and notes when it was asked."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.asked = seconds, 0

    def handle(self, batch: Sequence[Received]) -> Iterable[Output]:
        self.asked += 1
        time.sleep(self.seconds)
        return [Output("shouts", None, received.value) for received in batch]


def run_in_thread(run: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_stopped_worker_finishes_and_commits_the_batch_in_hand(broker: SqliteBroker) -> None:
    say(broker, *(b"%d" % i for i in range(20)))
    slow, stop = Slow(0.3), threading.Event()
    thread = run_in_thread(lambda: worker(broker, slow, batch=5).run(stop))
    while not slow.asked:
        time.sleep(0.01)
    stop.set()
    thread.join(5)
    assert committed(broker) == len(heard(broker)) == 5


def test_a_slow_handler_keeps_its_partitions(broker: SqliteBroker, tmp_path: Path) -> None:
    say(broker, b"one")
    slow = Slow(1.8 * SESSION_S)
    thread = run_in_thread(lambda: worker(broker, slow).run(until_drained=True))
    while not slow.asked:
        time.sleep(0.01)
    with SqliteBroker(tmp_path / "log.db", session_timeout_s=SESSION_S) as other:
        rival = other.consumer(["words"], "shouter")
        while thread.is_alive():
            assert rival.poll(0.1) == []
    assert slow.asked == 1
    assert committed(broker) == 1


def test_a_stuck_handler_loses_its_partitions_to_another_worker(broker: SqliteBroker, tmp_path: Path) -> None:
    say(broker, b"one")
    stuck = Slow(2.5 * SESSION_S)
    thread = run_in_thread(lambda: worker(broker, stuck, max_handle_s=0.2).run(until_drained=True))
    while not stuck.asked:
        time.sleep(0.01)
    with SqliteBroker(tmp_path / "log.db", session_timeout_s=SESSION_S) as other:
        rival = Slow(0.0)
        worker(other, rival).run(until_drained=True)
        assert rival.asked == 1
    thread.join(10)
    assert not thread.is_alive()
    assert committed(broker) == 1


def test_a_generator_sends_its_outputs_while_it_goes_on(broker: SqliteBroker, tmp_path: Path) -> None:
    say(broker, b"job")
    seen_early = threading.Event()

    class Archive:
        def handle(self, batch: Sequence[Received]) -> Iterator[Output]:
            yield Output("shouts", None, b"first")
            time.sleep(0.6)
            yield Output("shouts", None, b"second")
            with SqliteBroker(tmp_path / "log.db") as other:
                until = time.monotonic() + 5
                while time.monotonic() < until and not seen_early.is_set():
                    if sum(other.end_offsets("shouts").values()):
                        seen_early.set()
                    yield Output("shouts", None, b"more")
                    time.sleep(0.05)

    worker(broker, Archive(), batch=1).run(until_drained=True)
    assert seen_early.is_set()


def test_sigterm_keeps_the_last_batch_and_kill_9_loses_nothing(broker: SqliteBroker, tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys, threading, time
        from pathlib import Path
        from services.adapters.sqlite_broker import SqliteBroker
        from services.worker import Output, Worker, stop_on_signals

        class Echo:
            def handle(self, batch):
                print("busy", flush=True)
                time.sleep(0.05)
                return [Output("shouts", None, received.value) for received in batch]

        stop = threading.Event()
        stop_on_signals(stop)
        with SqliteBroker(Path(sys.argv[1]), session_timeout_s=1.0) as broker:
            Worker("shouter", broker, ["words"], Echo(), batch=10, poll_s=0.05).run(stop)
        print("stopped", flush=True)
        """
    )
    say(broker, *(b"%d" % i for i in range(200)))
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen([sys.executable, "-c", script, tmp_path / "log.db"], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline() == "busy\n"
        process.send_signal(number)
        rest = process.communicate(timeout=10)[0]
        assert (process.returncode == 0) == (number == signal.SIGTERM)
        assert ("stopped" in rest) == (number == signal.SIGTERM)
    assert 40 <= committed(broker) < 200
    worker(broker, Shouter()).run(until_drained=True)
    answers = [int(m.value or b"") for m in heard(broker)]
    assert set(answers) == set(range(200))
    assert len(answers) <= 200 + 10  # only the batch in hand of the killed one came twice


# ------------------------------------------------------------------------------------------- seen from outside


def test_what_is_in_hand_is_told_until_it_is_committed(broker: SqliteBroker) -> None:
    say(broker, *(b"%d" % i for i in range(25)))
    clicker = Clicker()
    worker(broker, Shouter(), batch=10, observer=clicker).run(until_drained=True)
    assert clicker.begun == [("shouter", ("words",))]
    assert clicker.in_hand == [10, 0, 10, 0, 5, 0]
    assert clicker.lags[-1] == 0
    assert set(clicker.up) == {True}


def test_a_batch_that_is_given_up_is_in_hand_no_more_and_not_counted(broker: SqliteBroker) -> None:
    say(broker, b"one")
    handler, clicker, stop = Shouter(), Clicker(), threading.Event()
    handler.not_ready = 10**6
    thread = run_in_thread(lambda: worker(broker, handler, observer=clicker).run(stop))
    while not handler.batches:
        time.sleep(0.01)
    stop.set()
    thread.join(5)
    assert clicker.in_hand == [1, 0]
    assert clicker.messages == 0


class AskedForLag(SqliteBroker):
    """Counts how often a member asks for its lag; the first ``refusals`` times nobody answers."""

    asked = refusals = 0

    def consumer(self, topics: Sequence[str], group: str, start: str = "earliest"):  # type: ignore[no-untyped-def]
        made = super().consumer(topics, group, start)
        ask = made.lag

        def lag() -> int:
            self.asked += 1
            if self.asked <= self.refusals:
                raise NotReadyError("the broker does not answer")
            return ask()

        made.lag = lag  # type: ignore[method-assign]
        return made


@pytest.fixture
def asked_for_lag(tmp_path: Path) -> Iterator[AskedForLag]:
    with AskedForLag(tmp_path / "log.db", session_timeout_s=SESSION_S) as opened:
        opened.create_topics([TopicSpec("words"), TopicSpec("shouts")])
        yield opened


def test_lag_is_asked_for_once_a_second_and_falls_to_0_when_nothing_comes(asked_for_lag: AskedForLag) -> None:
    say(asked_for_lag, *(b"%d" % i for i in range(200)))
    clicker, stop = Clicker(), threading.Event()
    started = time.monotonic()
    thread = run_in_thread(lambda: worker(asked_for_lag, Slow(0.001), batch=1, poll_s=0.02, observer=clicker).run(stop))
    while (clicker.messages < 200 or clicker.lags[-1] > 0) and time.monotonic() - started < 30:
        time.sleep(0.05)
    time.sleep(1.0)
    stop.set()
    thread.join(5)
    assert clicker.messages == 200
    assert 2 <= asked_for_lag.asked <= 2 + (time.monotonic() - started)  # 200 batches and dozens of empty polls
    assert clicker.lags[0] > 0
    assert clicker.lags[-1] == 0


def test_a_lag_that_nobody_knows_stops_no_work(asked_for_lag: AskedForLag) -> None:
    say(asked_for_lag, b"one", b"two")
    asked_for_lag.refusals = 3
    clicker = Clicker()
    worker(asked_for_lag, Shouter(), observer=clicker).run(until_drained=True)
    assert clicker.messages == 2
    assert clicker.up[0] is False
    assert clicker.up[-1] is True


def test_lines_about_messages_say_where_they_are(broker: SqliteBroker, caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("sightline.worker")
    log.addHandler(caplog.handler)
    try:
        say(broker, b"one", b"bad", b"three")
        handler = Shouter()
        handler.not_ready = 1
        with caplog.at_level(logging.DEBUG, "sightline.worker"):
            worker(broker, handler).run(until_drained=True)
    finally:
        log.removeHandler(caplog.handler)
    lines = {record.getMessage().partition(": ")[2].partition(":")[0].partition(",")[0]: vars(record) for record in caplog.records}
    aside, waiting, batch = lines["bad input put aside"], lines["not ready"], lines["batch"]
    assert (aside["topic"], aside["partition"], aside["offset"]) == ("words", 0, 1)
    assert "messages" not in aside
    assert (waiting["topic"], waiting["partition"], waiting["offset"], waiting["messages"]) == ("words", 0, 0, 3)
    assert (batch["topic"], batch["partition"], batch["first_offset"], batch["last_offset"], batch["messages"]) == ("words", 0, 0, 2, 3)


def test_a_trace_that_comes_with_a_message_is_handed_on_without_tracing_of_our_own(broker: SqliteBroker) -> None:
    parent = ("traceparent", b"00-510d2fbf0dbaef24510d2fbf0dbaef24-510d2fbf0dbaef24-01")
    broker.produce("words", b"one", None, [parent, ("origin", b"elsewhere")])
    broker.produce("words", b"two")
    broker.flush()
    worker(broker, Shouter(), batch=1).run(until_drained=True)
    assert [message.headers for message in heard(broker)] == [(parent,), ()]
