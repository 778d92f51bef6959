"""The SQLite log alone: processes that die, disks that are full, files of others, cleaning up, sharing out partitions."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.errors import NewerSchemaError, NotReadyError, ReadOnlyStorageError, SettingsError, StorageFullError
from pipeline.ports import Message, TopicPartition, TopicSpec
from services.adapters.placement import assign
from services.adapters.sqlite_broker import TOMBSTONE_RETENTION_MS, SqliteBroker
from services.adapters.sqlite_consumer import SqliteConsumer

SESSION_S = 1.0


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


@pytest.fixture
def broker(log_file: Path) -> Iterator[SqliteBroker]:
    with SqliteBroker(log_file, session_timeout_s=SESSION_S) as opened:
        yield opened


class StoppedClock:
    """UTC seconds that pass only when told to."""

    def __init__(self, now_s: float = 1_700_000_000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def read_all(consumer: SqliteConsumer) -> list[Message]:
    messages: list[Message] = []
    while found := consumer.poll(0.1):
        messages += found
    return messages


def start_process(script: str, *arguments: object) -> subprocess.Popen[str]:
    preamble = "import sys, time\nfrom pathlib import Path\nfrom services.adapters.sqlite_broker import *\n"
    preamble += "from pipeline.ports import *\nlog_file = Path(sys.argv[1])\n"
    command = [sys.executable, "-c", preamble + textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def kill(process: subprocess.Popen[str]) -> str:
    """kill -9; gives what it had printed."""
    process.send_signal(signal.SIGKILL)
    return process.communicate(timeout=10)[0]


# ---------------------------------------------------------------------------------------- processes that die


def test_a_producer_killed_at_random_moments_loses_no_flushed_message_and_doubles_none(broker: SqliteBroker, log_file: Path) -> None:
    broker.create_topics([TopicSpec("t", partitions=3)])
    script = """
        broker, run = SqliteBroker(log_file), sys.argv[2]
        print("ready", flush=True)
        for batch in range(1_000_000):
            for i in range(7):
                broker.produce("t", f"{run}/{batch}/{i}".encode() + bytes(500), key=str(i).encode())
            broker.flush()
            print(batch, flush=True)
    """
    rng = random.Random(7)
    acknowledged: set[str] = set()
    for run in range(8):
        process = start_process(script, log_file, run)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 0.15))
        whole_lines = [line for line in kill(process).split("\n")[:-1] if line]
        acknowledged |= {f"{run}/{batch}/{i}" for batch in whole_lines for i in range(7)}
    there = Counter((m.value or b"").rstrip(b"\0").decode() for m in read_all(broker.consumer(["t"], "readers")))
    assert len(acknowledged) > 50
    assert acknowledged <= set(there)
    assert set(there.values()) == {1}
    batches = Counter(name.rsplit("/", 1)[0] for name in there)
    assert set(batches.values()) == {7}, "a flush is all or nothing"
    assert sqlite3.connect(log_file).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_partitions_of_a_killed_consumer_go_to_the_others_within_the_session_timeout(broker: SqliteBroker, log_file: Path) -> None:
    broker.create_topics([TopicSpec("t", partitions=4)])
    for i in range(80):
        broker.produce("t", str(i).encode(), key=str(i).encode())
    broker.flush()
    process = start_process(
        """
        consumer = SqliteBroker(log_file, session_timeout_s=1.0).consumer(["t"], "readers")
        held = consumer.poll(5.0, 20)
        offsets = {}
        for message in held:
            offsets[TopicPartition(message.topic, message.partition)] = message.offset + 1
        consumer.commit(offsets)
        more = consumer.poll(5.0, 20)  # in hand when it dies: these must come again
        for message in held:
            print(message.value.decode(), flush=True)
        print("dying", flush=True)
        time.sleep(60)
        """,
        log_file,
    )
    assert process.stdout is not None
    committed = []
    while (line := process.stdout.readline()) != "dying\n":
        committed.append(int(line))
    heir = broker.consumer(["t"], "readers")
    assert heir.poll(0.2) == []
    kill(process)
    killed_s = time.monotonic()
    rest: list[Message] = []
    while len(rest) < 60 and time.monotonic() - killed_s < 10:
        rest += heir.poll(0.1)
        if rest and len(heir.assignment()) == 4:
            taken_after_s = time.monotonic() - killed_s
    assert sorted([*committed, *(int(m.value or b"") for m in rest)]) == list(range(80))
    assert taken_after_s < SESSION_S * 1.125 + 1.0  # a session and an eighth, and a second for a loaded machine


def test_three_processes_open_a_fresh_log_at_once_and_produce_into_it(log_file: Path) -> None:
    script = """
        broker = SqliteBroker(log_file)
        broker.create_topics([TopicSpec("t", partitions=2)])
        for i in range(100):
            broker.produce("t", f"{sys.argv[2]}/{i}".encode())
            if i % 5 == 4:
                broker.flush()
        broker.close()
    """
    processes = [start_process(script, log_file, number) for number in range(3)]
    assert [process.wait(30) for process in processes] == [0, 0, 0]
    for process in processes:
        process.communicate()
    with SqliteBroker(log_file) as broker:
        values = {(m.value or b"").decode() for m in read_all(broker.consumer(["t"], "readers"))}
        assert values == {f"{number}/{i}" for number in range(3) for i in range(100)}
        assert sum(broker.end_offsets("t").values()) == 300


def test_a_member_from_before_a_reboot_is_taken_for_dead(broker: SqliteBroker, log_file: Path) -> None:
    broker.create_topics([TopicSpec("t", partitions=2)])
    ghost = broker.consumer(["t"], "readers")
    assert len(ghost.assignment()) == 2
    with sqlite3.connect(log_file) as database:
        database.execute("UPDATE members SET seen_at_s = seen_at_s + 1e6")  # the clock since boot began again
    database.close()
    heir = broker.consumer(["t"], "readers")
    assert len(heir.assignment()) == 2


# ------------------------------------------------------------------------------------------- storage trouble


class FullDisk:
    """A log whose disk has no room for more: SQLite says so itself (SQLITE_FULL)."""

    def __init__(self, broker: SqliteBroker) -> None:
        self._connection = broker._connection
        (self._pages,) = self._connection.execute("PRAGMA page_count").fetchone()

    def fill(self) -> None:
        self._connection.execute(f"PRAGMA max_page_count={self._pages}")

    def free(self) -> None:
        self._connection.execute("PRAGMA max_page_count=1073741823")


def test_a_full_disk_acknowledges_nothing_and_loses_nothing(broker: SqliteBroker, log_file: Path) -> None:
    broker.create_topics([TopicSpec("t")])
    broker.produce("t", b"before")
    broker.flush()
    disk = FullDisk(broker)
    disk.fill()
    for i in range(20):
        broker.produce("t", bytes([i]) * 5000)
    for _ in range(3):
        with pytest.raises(StorageFullError, match="space"):
            broker.flush()
    with SqliteBroker(log_file) as other:
        assert sum(other.end_offsets("t").values()) == 1
    disk.free()
    broker.flush()
    values = [m.value for m in read_all(broker.consumer(["t"], "readers"))]
    assert values == [b"before", *(bytes([i]) * 5000 for i in range(20))]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_really_full_file_system_acknowledges_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        broker = SqliteBroker(folder / "log.db", session_timeout_s=SESSION_S)
        broker.create_topics([TopicSpec("t")])
        sent = 0
        broker.produce("t", bytes(20_000))
        with suppress(StorageFullError):
            while sent < 1000:
                broker.flush()
                sent += 1
                broker.produce("t", bytes(20_000))
        assert 0 < sent < 100
        broker._connection.close()
        with SqliteBroker(folder / "log.db") as again:
            assert list(again.end_offsets("t").values()) == [sent]
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    with pytest.raises(ReadOnlyStorageError, match="writable"):
        SqliteBroker(in_the_way / "log.db")


def test_a_read_only_folder_is_named() -> None:
    folder = Path(tempfile.mkdtemp())
    with SqliteBroker(folder / "log.db") as broker:
        broker.create_topics([TopicSpec("t")])
    (folder / "log.db").chmod(0o444)
    folder.chmod(0o555)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # root may write anything: be nobody for a moment
        for name in ("log.db", "new.db"):
            with pytest.raises(ReadOnlyStorageError, match="writable"):
                SqliteBroker(folder / name).create_topics([TopicSpec("t2")])
    finally:
        if user == 0:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_a_log_of_a_newer_sightline_is_refused(log_file: Path) -> None:
    SqliteBroker(log_file).close()
    database = sqlite3.connect(log_file)
    database.execute("PRAGMA user_version=99")
    database.close()
    with pytest.raises(NewerSchemaError, match="99"):
        SqliteBroker(log_file)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("this is no database " * 100)
    with pytest.raises(SettingsError, match="Sightline log"):
        SqliteBroker(tmp_path / "notes.db")
    foreign = sqlite3.connect(tmp_path / "foreign.db")
    foreign.execute("CREATE TABLE pets (name)")
    foreign.close()
    with pytest.raises(SettingsError, match="another SQLite database"):
        SqliteBroker(tmp_path / "foreign.db")


def test_a_log_locked_for_long_is_not_ready_and_keeps_the_messages(broker: SqliteBroker, log_file: Path) -> None:
    broker.create_topics([TopicSpec("t")])
    locker = sqlite3.connect(log_file, isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    broker.produce("t", b"x")
    with pytest.raises(NotReadyError, match="locked"):
        broker.flush(timeout_s=0.1)
    locker.execute("ROLLBACK")
    locker.close()
    broker.flush()
    assert sum(broker.end_offsets("t").values()) == 1


# ----------------------------------------------------------------------------------------------- cleaning up


def test_messages_older_than_the_retention_time_are_removed(log_file: Path) -> None:
    clock = StoppedClock()
    with SqliteBroker(log_file, clock=clock) as broker:
        broker.create_topics([TopicSpec("t", retention_ms=60_000)])
        for i in range(10):
            broker.produce("t", str(i).encode())
            clock.now_s += 10
        broker.flush()
        assert broker.maintain() == 4  # of 100, 90 ... 10 s: those older than 60
        assert [m.offset for m in read_all(broker.consumer(["t"], "readers"))] == [4, 5, 6, 7, 8, 9]
        clock.now_s += 1000
        assert broker.maintain() == 6
        broker.produce("t", b"new")
        broker.flush()
        assert [m.offset for m in read_all(broker.consumer(["t"], "others"))] == [10]


def test_the_oldest_messages_over_the_retention_size_are_removed(broker: SqliteBroker) -> None:
    broker.create_topics([TopicSpec("t", retention_bytes=10_000)])
    for i in range(30):
        broker.produce("t", bytes([i]) * 1000)
    broker.flush()
    assert broker.maintain() == 20
    assert broker.maintain() == 0
    assert [m.offset for m in read_all(broker.consumer(["t"], "readers"))] == list(range(20, 30))


def test_removed_messages_give_their_space_back(log_file: Path) -> None:
    clock = StoppedClock()
    with SqliteBroker(log_file, clock=clock) as broker:
        broker.create_topics([TopicSpec("t", retention_ms=1000)])
        for _ in range(300):
            broker.produce("t", bytes(10_000))
        broker.flush()
        clock.now_s += 10
        assert broker.maintain() == 300
    assert log_file.stat().st_size < 300_000


def test_compaction_keeps_the_last_of_each_key_and_tombstones_for_a_day(log_file: Path) -> None:
    clock = StoppedClock()
    with SqliteBroker(log_file, clock=clock) as broker:
        broker.create_topics([TopicSpec("watches", cleanup="compact")])
        for key, value in ((b"a", b"1"), (b"b", b"2"), (b"a", b"3"), (b"b", None), (b"c", b"4")):
            broker.produce("watches", value, key)
        broker.flush()
        broker.maintain()
        kept = read_all(broker.consumer(["watches"], "one"))
        assert [(m.key, m.value) for m in kept] == [(b"a", b"3"), (b"b", None), (b"c", b"4")]
        clock.now_s += TOMBSTONE_RETENTION_MS / 1000 + 1
        broker.maintain()
        assert [m.key for m in read_all(broker.consumer(["watches"], "two"))] == [b"a", b"c"]


def test_a_group_that_only_looked_leaves_nothing_behind(broker: SqliteBroker, log_file: Path) -> None:
    broker.create_topics([TopicSpec("t")])
    broker.consumer(["t"], "looked").close()
    assert "looked" not in broker.groups()
    killed = SqliteBroker(log_file, session_timeout_s=0.05).consumer(["t"], "killed")
    time.sleep(0.1)
    broker.maintain()
    assert "killed" not in broker.groups()
    killed.close()


def test_a_consumer_that_was_closed_says_so(broker: SqliteBroker) -> None:
    broker.create_topics([TopicSpec("t")])
    consumer = broker.consumer(["t"], "readers")
    consumer.close()
    consumer.close()
    with pytest.raises(RuntimeError, match="closed"):
        consumer.poll(0.1)


def test_an_idle_poll_costs_little(broker: SqliteBroker) -> None:
    broker.create_topics([TopicSpec("t")])
    consumer = broker.consumer(["t"], "readers")
    before_s = time.process_time()
    consumer.poll(1.0)
    assert time.process_time() - before_s < 0.15  # measured 0.01


def test_many_messages_without_a_flush_are_written_before_memory_grows(broker: SqliteBroker) -> None:
    broker.create_topics([TopicSpec("t")])
    for _ in range(40):
        broker.produce("t", bytes(1_000_000))
    assert sum(broker.end_offsets("t").values()) >= 16
    broker.flush()
    assert sum(broker.end_offsets("t").values()) == 40


# ---------------------------------------------------------------------------------------- sharing partitions


def test_partitions_are_shared_evenly_move_little_and_always_the_same_way() -> None:
    partitions = {i: "t" if i < 8 else "u" for i in range(12)}
    both = frozenset({"t", "u"})
    two = assign(partitions, {1: both, 2: both}, {})
    assert Counter(two.values()) == {1: 6, 2: 6}
    three = assign(partitions, {1: both, 2: both, 3: both}, two)
    assert Counter(three.values()) == {1: 4, 2: 4, 3: 4}
    assert sum(two[p] != three[p] for p in partitions) == 4
    assert assign(partitions, {1: both, 2: both, 3: both}, two) == three
    without = assign(partitions, {1: both, 3: both}, three)
    assert all(without[p] == three[p] for p in partitions if three[p] != 2)
    assert Counter(without.values()) == {1: 6, 3: 6}


def test_neighbouring_partitions_go_to_different_members() -> None:
    partitions = dict.fromkeys(range(16), "archive-jobs")
    one = assign(partitions, {1: frozenset({"archive-jobs"})}, {})
    two = assign(partitions, dict.fromkeys((1, 2), frozenset({"archive-jobs"})), one)
    assert all(two[p] != two[p + 1] for p in range(15))
    four = assign(partitions, dict.fromkeys((1, 2, 3, 4), frozenset({"archive-jobs"})), two)
    assert min(len({four[p + i] for i in range(4)}) for p in range(0, 16, 4)) >= 3


def test_a_member_gets_only_topics_it_asked_for() -> None:
    shares = assign({0: "t", 1: "t", 2: "u"}, {1: frozenset({"t"}), 2: frozenset({"t", "u"})}, {})
    assert shares[2] == 2
    assert Counter(shares.values())[1] >= 1
    assert assign({0: "t"}, {1: frozenset({"u"})}, {0: 1}) == {}
    assert assign({0: "t"}, {}, {0: 1}) == {}


def test_any_members_get_shares_that_differ_by_one_at_most() -> None:
    rng = random.Random(3)
    before: dict[int, int] = {}
    for _ in range(100):
        count = rng.randint(1, 16)
        members = {member: frozenset({"t"}) for member in rng.sample(range(10), rng.randint(1, 6))}
        before = assign(dict.fromkeys(range(count), "t"), members, before)
        loads = [list(before.values()).count(member) for member in members]
        assert len(before) == count
        assert max(loads) - min(loads) <= 1


def test_a_partition_is_never_committed_by_two_members(broker: SqliteBroker) -> None:
    broker.create_topics([TopicSpec("t", partitions=2)])
    for i in range(10):
        broker.produce("t", b"x", str(i).encode())
    broker.flush()
    first = broker.consumer(["t"], "readers")
    in_hand = first.poll(1.0)
    second = broker.consumer(["t"], "readers")
    assert second.poll(0.1) == []  # first is at work on both partitions
    first.commit({TopicPartition(m.topic, m.partition): m.offset + 1 for m in in_hand})
    assert first.poll(0.1) == []  # now one of them moves
    second.poll(0.1)
    assert len(first.assignment()) == len(second.assignment()) == 1
    (moved,) = second.assignment()
    with pytest.raises(NotReadyError, match="not assigned"):
        first.commit({moved: 0})
