"""Reading a topic to its end as it is now, for those who must know everything that is on it."""

from __future__ import annotations

import time
from collections.abc import Iterator

from pipeline.errors import NotReadyError
from pipeline.ports import Broker, Consumer, Message, TopicPartition

PATIENCE_S = 30.0


def until_end(broker: Broker, consumer: Consumer, topic: str, patience_s: float = PATIENCE_S) -> Iterator[Message]:
    """The messages of ``topic`` from the consumer's position to the end as it is now.

    Raises NotReadyError when nothing comes for ``patience_s`` although the end is not reached.
    """
    ends = {partition: end for partition, end in broker.end_offsets(topic).items() if end > 0}
    waits_until_s = time.monotonic() + patience_s
    while any(p not in consumer.assignment() or consumer.position(p) < end for p, end in ends.items()):
        messages = consumer.poll(0.2)
        for message in messages:
            if message.offset < ends.get(TopicPartition(topic, message.partition), 0):
                yield message
        if messages:
            waits_until_s = time.monotonic() + patience_s
        elif time.monotonic() > waits_until_s:
            raise NotReadyError(f"topic {topic} could not be read to its end: nothing came for {patience_s:g} s")
