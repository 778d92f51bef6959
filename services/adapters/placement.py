"""Which partition a key belongs to, and which member of a group gets which partition. Kafka's rules, no storage."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache


def murmur2(data: bytes) -> int:
    """Kafka's murmur2 hash, 0..2^32-1, so that a later move to Kafka keeps every key in its partition."""
    length, mixer, mask = len(data), 0x5BD1E995, 0xFFFFFFFF
    value = 0x9747B28C ^ length
    whole = length & ~3
    for start in range(0, whole, 4):
        word = int.from_bytes(data[start : start + 4], "little") * mixer & mask
        word = (word ^ (word >> 24)) * mixer & mask
        value = (value * mixer & mask) ^ word
    if length > whole:
        value = (value ^ int.from_bytes(data[whole:], "little")) * mixer & mask
    value = (value ^ (value >> 13)) * mixer & mask
    return value ^ (value >> 15)


@lru_cache(maxsize=65_536)
def partition_of(key: bytes, partitions: int) -> int:
    """The partition of ``key``, as Kafka's default partitioner gives it."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def assign(
    partitions: Mapping[int, str], members: Mapping[int, frozenset[str]], before: Mapping[int, int], held: Collection[int] = ()
) -> dict[int, int]:
    """Partition id -> member id: balanced to within one where subscriptions allow, moving as little as that needs, deterministic.

    partitions: id -> topic; members: id -> subscribed topics; before: the assignment so far;
    held: partitions that stay with their owner, balance or not.
    """
    load = dict.fromkeys(sorted(members), 0)
    assigned: dict[int, int] = {}

    def idlest(topic: str) -> int | None:
        return min((m for m in load if topic in members[m]), key=lambda m: (load[m], m), default=None)

    for partition, topic in sorted(partitions.items()):
        owner = before.get(partition)
        if owner is not None and topic in members.get(owner, ()):
            assigned[partition] = owner
            load[owner] += 1
    for partition, topic in sorted(partitions.items()):
        if partition not in assigned and (member := idlest(topic)) is not None:
            assigned[partition] = member
            load[member] += 1
    # Neighbouring partitions go to different members, as a few new messages without keys lie in neighbouring partitions.
    ranked, ordinal = sorted(members), {partition: i for i, partition in enumerate(sorted(partitions))}
    for is_wished in (lambda p, m: ranked[ordinal[p] % len(ranked)] == m, lambda p, m: True):
        is_settled = False
        while not is_settled:
            is_settled = True
            for partition in sorted(set(assigned) - set(held), reverse=True):
                giver, taker = assigned[partition], idlest(partitions[partition])
                if taker is not None and load[giver] - load[taker] >= 2 and is_wished(partition, taker):
                    assigned[partition] = taker
                    load[giver] -= 1
                    load[taker] += 1
                    is_settled = False
    return assigned
