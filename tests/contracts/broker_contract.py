"""What every broker must do: one suite, run on each adapter by tests/contracts/test_broker_contract.py.

Times are generous and groups settle by polling, so that a broker across a network passes as well as a file does.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import pytest

from pipeline.errors import BadInputError, NotReadyError, SettingsError
from pipeline.ports import Broker, Consumer, Message, TopicPartition, TopicSpec

WITHIN_S = 20.0


def send(broker: Broker, topic: str, value: bytes) -> None:
    broker.produce(topic, value)
    broker.flush()


def read(consumer: Consumer, count: int, within_s: float = WITHIN_S) -> list[Message]:
    """The next ``count`` messages, or those that came in time."""
    messages: list[Message] = []
    until = time.monotonic() + within_s
    while len(messages) < count and time.monotonic() < until:
        messages += consumer.poll(0.2, count - len(messages))
    return messages


def settle(consumers: Sequence[Consumer], partitions: int, is_even: bool = True) -> None:
    """Poll until the group has shared out all partitions; fails when it does not."""
    until = time.monotonic() + WITHIN_S
    while time.monotonic() < until:
        for consumer in consumers:
            assert consumer.poll(0.05) == [], "settle before there is anything to read"
        sizes = [len(consumer.assignment()) for consumer in consumers]
        if sum(sizes) == partitions and (not is_even or max(sizes) - min(sizes) <= 1):
            return
    pytest.fail(f"the group did not settle: {sizes} of {partitions} partitions")


def commit_all(consumer: Consumer, messages: Sequence[Message]) -> None:
    offsets: dict[TopicPartition, int] = defaultdict(int)
    for message in messages:
        partition = TopicPartition(message.topic, message.partition)
        offsets[partition] = max(offsets[partition], message.offset + 1)
    consumer.commit(offsets)


class BrokerContract:
    """Mix into a test class; the fixtures ``broker`` and ``connect`` (another client of the same log) come from the adapter's table."""

    @pytest.fixture
    def one(self, broker: Broker) -> str:
        broker.create_topics([TopicSpec("one", partitions=1)])
        return "one"

    @pytest.fixture
    def four(self, broker: Broker) -> str:
        broker.create_topics([TopicSpec("four", partitions=4)])
        return "four"

    # topics

    def test_a_topic_keeps_the_settings_it_was_created_with(self, broker: Broker) -> None:
        spec = TopicSpec("kept", partitions=3, retention_ms=3_600_000, max_message_bytes=2000)
        broker.create_topics([spec])
        broker.create_topics([spec])
        assert broker.topics()["kept"] == spec

    def test_a_topic_asked_for_with_other_partitions_is_refused(self, broker: Broker) -> None:
        broker.create_topics([TopicSpec("kept", partitions=3)])
        send(broker, "kept", b"x")
        with pytest.raises(SettingsError, match="kept"):
            broker.create_topics([TopicSpec("kept", partitions=4)])

    def test_an_unknown_topic_is_refused(self, broker: Broker) -> None:
        with pytest.raises(SettingsError, match="nowhere"):
            send(broker, "nowhere", b"x")
        with pytest.raises(SettingsError, match="nowhere"):
            broker.consumer(["nowhere"], "readers").poll(0.1)

    def test_members_that_poll_briefly_share_all_the_same(self, broker: Broker, connect: Callable[[], Broker]) -> None:
        other = connect()
        for number, poll_s in enumerate((0.002, 0.005, 0.01, 0.02, 0.05)):
            broker.create_topics([TopicSpec(f"brief-{number}", partitions=4)])
            members = [client.consumer([f"brief-{number}"], f"brief-{number}") for client in (broker, other)]
            until = time.monotonic() + WITHIN_S
            while [len(member.assignment()) for member in members] != [2, 2]:
                assert time.monotonic() < until, f"not shared by polls of {poll_s} s"
                for member in members:
                    member.poll(poll_s)

    # messages

    def test_a_message_arrives_as_it_was_sent(self, broker: Broker, one: str) -> None:
        before_ms = int(time.time() * 1000)
        broker.produce(one, b"\x00value\xff", b"key", [("stage", b"index"), ("empty", b""), ("stage", b"again")])
        broker.flush()
        (message,) = read(broker.consumer([one], "readers"), 1)
        assert (message.topic, message.partition, message.offset) == (one, 0, 0)
        assert (message.key, message.value) == (b"key", b"\x00value\xff")
        assert message.headers == (("stage", b"index"), ("empty", b""), ("stage", b"again"))
        assert before_ms - 1000 <= message.timestamp_ms <= before_ms + 60_000

    def test_nothing_and_the_empty_are_told_apart(self, broker: Broker, one: str) -> None:
        for key, value in ((b"k", None), (None, b"v"), (b"", b"")):
            broker.produce(one, value, key)
        broker.flush()
        assert [(m.key, m.value) for m in read(broker.consumer([one], "readers"), 3)] == [(b"k", None), (None, b"v"), (b"", b"")]

    def test_offsets_count_up_from_zero_in_the_order_of_sending(self, broker: Broker, one: str) -> None:
        for i in range(300):
            broker.produce(one, str(i).encode())
            if i % 70 == 0:
                broker.flush()
        broker.flush()
        messages = read(broker.consumer([one], "readers"), 300)
        assert [m.offset for m in messages] == list(range(300))
        assert [int(m.value or b"") for m in messages] == list(range(300))

    def test_a_key_keeps_its_partition_and_its_order(self, broker: Broker, connect: Callable[[], Broker], four: str) -> None:
        other = connect()
        for i in range(60):
            client = (broker, other)[i % 2]
            client.produce(four, str(i).encode(), f"camera-{i % 6}".encode())
            client.flush()
        where: dict[bytes, set[int]] = defaultdict(set)
        order: dict[bytes, list[int]] = defaultdict(list)
        for message in read(broker.consumer([four], "readers"), 60):
            where[message.key or b""].add(message.partition)
            order[message.key or b""].append(int(message.value or b""))
        assert len(where) == 6
        assert all(len(partitions) == 1 for partitions in where.values())
        assert all(values == sorted(values) for values in order.values())

    def test_keys_are_placed_as_kafka_places_them(self, broker: Broker) -> None:
        # Kafka's own test vectors of murmur2, as partitions of 1000: masks the sign bit, then the remainder
        vectors = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536, b"abc": 479470107}
        broker.create_topics([TopicSpec("wide", partitions=1000)])
        for key in vectors:
            broker.produce("wide", b"x", key)
        broker.flush()
        placed = {m.key: m.partition for m in read(broker.consumer(["wide"], "readers"), len(vectors))}
        assert placed == {key: (value & 0x7FFFFFFF) % 1000 for key, value in vectors.items()}

    def test_messages_without_a_key_use_every_partition(self, broker: Broker, four: str) -> None:
        for _ in range(400):
            broker.produce(four, b"x")
        broker.flush()
        assert all(end > 0 for end in broker.end_offsets(four).values())

    def test_a_message_over_the_limit_of_its_topic_is_bad_input(self, broker: Broker) -> None:
        broker.create_topics([TopicSpec("small", max_message_bytes=1000)])
        with pytest.raises(BadInputError, match="1000"):
            send(broker, "small", bytes(1001))
        broker.produce("small", bytes(800))
        broker.flush()
        assert list(broker.end_offsets("small").values()) == [1]

    def test_what_is_flushed_is_there_for_other_clients(self, broker: Broker, connect: Callable[[], Broker], one: str) -> None:
        broker.produce(one, b"x")
        broker.flush()
        assert connect().end_offsets(one) == {TopicPartition(one, 0): 1}

    def test_a_poll_wakes_soon_after_a_message_came(self, broker: Broker, connect: Callable[[], Broker], one: str) -> None:
        consumer = connect().consumer([one], "readers")
        settle([consumer], 1)
        for _ in range(3):
            timer = threading.Timer(0.3, lambda: (broker.produce(one, b"x"), broker.flush()))
            timer.start()
            started = time.monotonic()
            assert len(read(consumer, 1, 5.0)) == 1
            assert time.monotonic() - started < 1.0  # a loaded machine; measured without load it is about 15 ms
            timer.join()

    def test_a_poll_gives_up_when_its_time_is_over(self, broker: Broker, one: str) -> None:
        consumer = broker.consumer([one], "readers")
        settle([consumer], 1)
        started = time.monotonic()
        assert consumer.poll(0.3) == []
        assert 0.25 <= time.monotonic() - started < 2.0

    def test_a_poll_gives_at_most_what_is_asked(self, broker: Broker, four: str) -> None:
        for i in range(50):
            broker.produce(four, b"x", str(i).encode())
        broker.flush()
        consumer = broker.consumer([four], "readers")
        sizes = []
        while sum(sizes) < 50:
            sizes.append(len(consumer.poll(1.0, max_messages=7)))
            assert sizes[-1] <= 7

    # positions and offsets

    def test_a_new_group_starts_where_it_says(self, broker: Broker, one: str) -> None:
        broker.produce(one, b"old")
        broker.flush()
        late = broker.consumer([one], "late", start="latest")
        early = broker.consumer([one], "early", start="earliest")
        settle([late], 1)
        broker.produce(one, b"new")
        broker.flush()
        assert [m.value for m in read(late, 1)] == [b"new"]
        assert [m.value for m in read(early, 2)] == [b"old", b"new"]

    def test_a_group_goes_on_where_it_committed(self, broker: Broker, one: str) -> None:
        for i in range(10):
            broker.produce(one, str(i).encode())
        broker.flush()
        first = broker.consumer([one], "readers")
        commit_all(first, read(first, 4))
        read(first, 3)  # read but not committed: comes again
        first.close()
        second = broker.consumer([one], "readers")
        assert [m.offset for m in read(second, 6)] == [4, 5, 6, 7, 8, 9]
        assert second.committed(TopicPartition(one, 0)) == 4
        assert broker.groups()["readers"] == {TopicPartition(one, 0): 4}

    def test_groups_do_not_see_each_other(self, broker: Broker, one: str) -> None:
        broker.produce(one, b"x")
        broker.flush()
        for group in ("index", "alert"):
            consumer = broker.consumer([one], group)
            messages = read(consumer, 1)
            assert len(messages) == 1
            assert consumer.committed(TopicPartition(one, 0)) is None
            commit_all(consumer, messages)

    def test_a_seek_goes_back_and_forth(self, broker: Broker, one: str) -> None:
        for i in range(10):
            broker.produce(one, str(i).encode())
        broker.flush()
        consumer, partition = broker.consumer([one], "readers"), TopicPartition(one, 0)
        read(consumer, 10)
        assert consumer.position(partition) == 10
        consumer.seek(partition, 3)
        assert consumer.position(partition) == 3
        assert [m.offset for m in read(consumer, 2)] == [3, 4]
        consumer.seek(partition, 9)
        assert [m.offset for m in read(consumer, 1)] == [9]

    def test_lag_counts_what_is_left_to_read(self, broker: Broker, four: str) -> None:
        consumer = broker.consumer([four], "readers")
        settle([consumer], 4)
        assert consumer.lag() == 0
        for i in range(20):
            broker.produce(four, b"x", str(i).encode())
        broker.flush()
        read(consumer, 5)
        assert consumer.lag() == 15
        read(consumer, 15)
        assert consumer.lag() == 0

    # readers outside of groups

    def test_a_reader_sees_everything_and_leaves_no_trace(self, broker: Broker, connect: Callable[[], Broker], four: str) -> None:
        for i in range(12):
            broker.produce(four, str(i).encode(), str(i).encode())
        broker.flush()
        readers = [connect().reader([four]) for _ in range(2)]
        for reader in readers:
            assert reader.assignment() == {TopicPartition(four, p) for p in range(4)}
            assert sorted(int(m.value or b"") for m in read(reader, 12)) == list(range(12))
            assert sum(reader.position(TopicPartition(four, p)) for p in range(4)) == 12
            reader.close()
        assert broker.groups() == {}

    def test_a_reader_of_news_sees_only_what_comes_after_it_was_opened(self, broker: Broker, four: str) -> None:
        send(broker, four, b"old")
        reader = broker.reader([four], start="latest")
        for _ in range(4):
            send(broker, four, b"new")
        assert [m.value for m in read(reader, 5, 2.0)] == [b"new"] * 4

    # groups

    def test_a_member_says_when_its_partitions_are_settled(self, connect: Callable[[], Broker], four: str) -> None:
        member = connect().consumer([four], "readers")
        settle([member], 4)
        assert member.is_stable()

    def test_members_share_the_partitions_evenly(self, broker: Broker, connect: Callable[[], Broker], four: str) -> None:
        members = [connect().consumer([four], "readers") for _ in range(3)]
        settle(members, 4)
        shares = [member.assignment() for member in members]
        assert frozenset().union(*shares) == {TopicPartition(four, p) for p in range(4)}
        for i in range(40):
            broker.produce(four, str(i).encode(), str(i).encode())
        broker.flush()
        seen: Counter[bytes] = Counter()
        until = time.monotonic() + WITHIN_S
        while sum(seen.values()) < 40 and time.monotonic() < until:
            seen.update(m.value or b"" for member in members for m in member.poll(0.1))
        assert seen == Counter(str(i).encode() for i in range(40))

    def test_a_member_more_than_partitions_waits_in_reserve(self, connect: Callable[[], Broker], one: str) -> None:
        members = [connect().consumer([one], "readers") for _ in range(2)]
        settle(members, 1)

    def test_a_member_that_leaves_hands_its_partitions_on(self, broker: Broker, connect: Callable[[], Broker], four: str) -> None:
        staying, leaving = (connect().consumer([four], "readers") for _ in range(2))
        settle([staying, leaving], 4)
        leaving.close()
        settle([staying], 4)

    def test_a_silent_member_loses_its_partitions_and_cannot_commit_them(
        self, broker: Broker, connect: Callable[[], Broker], four: str, session_timeout_s: float
    ) -> None:
        silent = connect().consumer([four], "readers")
        settle([silent], 4)
        for i in range(40):
            broker.produce(four, str(i).encode(), str(i).encode())
        broker.flush()
        in_hand = read(silent, 40)
        time.sleep(session_timeout_s)  # it does not poll: for the group it is dead
        heir = connect().consumer([four], "readers")
        again = read(heir, 40)
        assert sorted(int(m.value or b"") for m in again) == list(range(40))
        with pytest.raises(NotReadyError):
            commit_all(silent, in_hand)
        commit_all(heir, again)
        assert sum(broker.groups()["readers"].values()) == 40

    def test_a_silent_member_joins_again_and_reads_from_what_was_committed(
        self, broker: Broker, connect: Callable[[], Broker], one: str, session_timeout_s: float
    ) -> None:
        silent = connect().consumer([one], "readers")
        settle([silent], 1)
        for i in range(6):
            broker.produce(one, str(i).encode())
        broker.flush()
        read(silent, 6)
        time.sleep(session_timeout_s)
        heir = connect().consumer([one], "readers")
        commit_all(heir, read(heir, 6)[:4])
        heir.close()
        assert [m.offset for m in read(silent, 2)] == [4, 5]

    def test_keep_alive_holds_the_partitions_of_messages_in_hand(
        self, broker: Broker, connect: Callable[[], Broker], four: str, session_timeout_s: float
    ) -> None:
        busy = connect().consumer([four], "readers")
        settle([busy], 4)
        broker.produce(four, b"a long job", b"job")
        broker.flush()
        in_hand = read(busy, 1)
        other = connect().consumer([four], "readers")
        until = time.monotonic() + 1.5 * session_timeout_s
        while time.monotonic() < until:
            busy.keep_alive()
            assert other.poll(0.1) == []
        commit_all(busy, in_hand)
        assert sum(broker.groups()["readers"].values()) == 1

    # retention and compaction

    def test_a_consumer_passes_over_offsets_that_were_compacted_away(self, broker: Broker, compact: Callable[[Broker, str], None]) -> None:
        broker.create_topics([TopicSpec("latest", cleanup="compact")])
        for i in range(30):
            broker.produce("latest", str(i).encode(), f"watch-{i % 3}".encode())
        broker.flush()
        compact(broker, "latest")  # may add messages of other keys
        (end,) = broker.end_offsets("latest").values()
        consumer = broker.consumer(["latest"], "readers")
        messages = [m for m in read(consumer, end - 27, 4.0) if (m.key or b"").startswith(b"watch")]
        assert [(m.offset, m.value) for m in messages] == [(27, b"27"), (28, b"28"), (29, b"29")]
        assert consumer.lag() == 0

    def test_a_compacted_topic_refuses_messages_without_a_key(self, broker: Broker) -> None:
        broker.create_topics([TopicSpec("latest", cleanup="compact")])
        with pytest.raises(BadInputError, match="key"):
            send(broker, "latest", b"x")
