"""Reading a topic to its end as it is now, or an index whole, for those who must know everything that is there."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from pipeline.errors import NotReadyError
from pipeline.ports import Broker, Consumer, Gallery, Message
from pipeline.types import Tracklet

PATIENCE_S = 30.0
POLL_S = 0.2
PAGE = 500  # tracklets with their vectors that are held at once


def until_end(broker: Broker, consumer: Consumer, *topics: str, patience_s: float = PATIENCE_S) -> Iterator[Message]:
    """The messages of ``topics``, all that the consumer reads, from its position until it has reached the end as it is now.

    What came meanwhile and was read with the rest is given too: who goes on with the same consumer would never see it again.
    Raises NotReadyError when nothing comes for ``patience_s`` although the end is not reached.
    """
    ends = {partition: end for topic in topics for partition, end in broker.end_offsets(topic).items() if end > 0}
    waits_until_s = time.monotonic() + patience_s
    while any(p not in consumer.assignment() or consumer.position(p) < end for p, end in ends.items()):
        messages = consumer.poll(POLL_S)
        yield from messages
        if messages:
            waits_until_s = time.monotonic() + patience_s
        elif time.monotonic() > waits_until_s:
            raise NotReadyError(f"{', '.join(topics)} could not be read to the end: nothing came for {patience_s:g} s; is the broker busy?")


def in_pages(gallery: Gallery, tracklet_ids: Sequence[str]) -> Iterator[list[Tracklet]]:
    """The stored tracklets of these ids, in their order, some at a time."""
    for start in range(0, len(tracklet_ids), PAGE):
        yield gallery.tracklets(tracklet_ids[start : start + PAGE])
