"""Dead letters: messages that could not be worked off, with the reason; to be looked at and put back once it is mended."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pipeline.errors import NotFoundError
from pipeline.ports import Broker, Message, TopicPartition
from services.reading import until_end
from services.topics import DEAD_LETTER_SUFFIX, dead_letter_topic

GROUP = "dead-letters"
FACTS = ("stage", "topic", "partition", "offset", "error", "schema_version")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One message put aside: where it came from (topic, partition, offset), which stage refused it and why."""

    stage: str
    topic: str
    partition: int
    offset: int
    error: str
    schema_version: str
    key: str
    bytes: int
    at_ms: int

    def as_dict(self) -> dict[str, str | int]:
        """For programs."""
        return asdict(self)


def list_dead_letters(broker: Broker, topic: str | None = None) -> list[DeadLetter]:
    """The dead letters of ``topic`` (the original's name), or of all, that were not put back yet; oldest first per topic."""
    topics = _dead_topics(broker, topic)
    replayed = dict(broker.groups().get(GROUP, {}))
    found = []
    for name in topics:
        reader = broker.reader([name])
        try:
            waiting = (m for m in until_end(broker, reader, name) if m.offset >= replayed.get(TopicPartition(name, m.partition), 0))
            found += [_letter(message) for message in waiting]
        finally:
            reader.close()
    return found


def replay(broker: Broker, topic: str, limit: int | None = None) -> int:
    """Put the dead letters of ``topic`` back onto it, oldest first, at most ``limit``; gives how many.

    Each is committed after its copy is durable, so a crash may put one back twice and loses none.
    Raises NotFoundError when there is no such topic.
    """
    (name,) = _dead_topics(broker, topic)
    ends = broker.end_offsets(name)
    consumer = broker.consumer([name], GROUP)
    count = 0
    try:
        for message in until_end(broker, consumer, name):
            is_new = message.offset >= ends[TopicPartition(name, message.partition)]  # may be one just put back that failed again
            if is_new or (limit is not None and count >= limit):
                break
            headers = [(header, value) for header, value in message.headers if header not in FACTS]
            broker.produce(topic, message.value, message.key, headers)
            broker.flush()
            consumer.commit({TopicPartition(name, message.partition): message.offset + 1})
            count += 1
    finally:
        consumer.close()
    return count


def _dead_topics(broker: Broker, topic: str | None) -> list[str]:
    present = broker.topics()
    if topic is None:
        return sorted(name for name in present if name.endswith(DEAD_LETTER_SUFFIX))
    name = dead_letter_topic(topic.removesuffix(DEAD_LETTER_SUFFIX))
    if name not in present:
        known = ", ".join(sorted(n.removesuffix(DEAD_LETTER_SUFFIX) for n in present if n.endswith(DEAD_LETTER_SUFFIX)))
        raise NotFoundError(f"the topic must be one of {known or '(none yet)'}, got {topic!r}")
    return [name]


def _letter(message: Message) -> DeadLetter:
    facts = {name: value.decode(errors="replace") for name, value in message.headers if name in FACTS}

    def number(name: str) -> int:
        return int(facts[name]) if facts.get(name, "").isdigit() else -1

    return DeadLetter(
        stage=facts.get("stage", ""),
        topic=facts.get("topic", message.topic.removesuffix(DEAD_LETTER_SUFFIX)),
        partition=number("partition"),
        offset=number("offset"),
        error=facts.get("error", ""),
        schema_version=facts.get("schema_version", ""),
        key=(message.key or b"").decode(errors="replace"),
        bytes=len(message.value or b""),
        at_ms=message.timestamp_ms,
    )
