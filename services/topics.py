"""The topics: one home for their names, what travels on them and how long it is kept.

deploy/topics.toml says the same for people who set up Kafka; ``as_toml`` writes it and a test keeps the two equal.
"""

from __future__ import annotations

from typing import Any

from pipeline.archive import JobProgress
from pipeline.errors import SettingsError
from pipeline.ports import Broker, TopicSpec
from pipeline.types import (
    Alert,
    ArchiveJob,
    Camera,
    CameraCoverage,
    Decision,
    Erasure,
    IdentityEvent,
    Query,
    Ranking,
    Reembedding,
    Tracklet,
    Watch,
)

CAMERAS, TRACKLETS, COVERAGE = "cameras", "tracklets", "coverage"
QUERIES, RANKINGS = "queries", "rankings"
WATCHES, ALERTS = "watches", "alerts"
ARCHIVE_JOBS, ARCHIVE_PROGRESS = "archive-jobs", "archive-progress"
AUDIT = "audit"
ERASURES = "erasures"
DECISIONS, IDENTITIES = "decisions", "identities"
REEMBEDDINGS = "reembeddings"

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
DEAD_LETTER_SUFFIX = ".dlt"
DEAD_LETTER_HEADER_BYTES = 65_536  # a dead letter is its original plus headers: it must fit where the original did

_LIVE_TOPICS = (
    TopicSpec(CAMERAS, partitions=64, cleanup="compact"),  # the bound on ingest workers, and fine enough to share cameras evenly
    TopicSpec(TRACKLETS, partitions=8, retention_ms=7 * DAY_MS, max_message_bytes=4_194_304),
    TopicSpec(COVERAGE, partitions=8, retention_ms=7 * DAY_MS),
    TopicSpec(QUERIES, partitions=4, retention_ms=6 * HOUR_MS),
    TopicSpec(RANKINGS, partitions=4, retention_ms=6 * HOUR_MS, max_message_bytes=4_194_304),  # a thousand matches with their crops
    TopicSpec(WATCHES, partitions=1, cleanup="compact"),
    TopicSpec(ALERTS, partitions=4, retention_ms=28 * DAY_MS),
    TopicSpec(ARCHIVE_JOBS, partitions=16, retention_ms=7 * DAY_MS),  # the bound on archive workers that share the work
    TopicSpec(ARCHIVE_PROGRESS, partitions=1, cleanup="compact"),
    TopicSpec(REEMBEDDINGS, partitions=8, retention_ms=7 * DAY_MS),
    TopicSpec(ERASURES, partitions=1, retention_ms=28 * DAY_MS),  # longer than tracklets lie on theirs: a replay brings nobody back
    TopicSpec(DECISIONS, partitions=1, cleanup="compact"),  # an operator's word holds until it is withdrawn
    TopicSpec(IDENTITIES, partitions=4, retention_ms=7 * DAY_MS),
    TopicSpec(AUDIT, partitions=1),  # for ever, until the law of the place says otherwise
)

_VALUE_TYPES: dict[str, type[Any]] = {
    CAMERAS: Camera,
    TRACKLETS: Tracklet,
    COVERAGE: CameraCoverage,
    ERASURES: Erasure,
    DECISIONS: Decision,
    IDENTITIES: IdentityEvent,
    REEMBEDDINGS: Reembedding,
    QUERIES: Query,
    RANKINGS: Ranking,
    WATCHES: Watch,
    ALERTS: Alert,
    ARCHIVE_JOBS: ArchiveJob,
    ARCHIVE_PROGRESS: JobProgress,
}


def dead_letter_topic(topic: str) -> str:
    """Where the messages of ``topic`` go that can never work."""
    return topic + DEAD_LETTER_SUFFIX


def _dead_letter_spec(spec: TopicSpec) -> TopicSpec:
    size = spec.max_message_bytes + DEAD_LETTER_HEADER_BYTES
    return TopicSpec(dead_letter_topic(spec.name), retention_ms=28 * DAY_MS, max_message_bytes=size)


TOPICS: tuple[TopicSpec, ...] = _LIVE_TOPICS + tuple(_dead_letter_spec(spec) for spec in _LIVE_TOPICS)


def create_all(broker: Broker) -> None:
    """Create every topic that is missing; raises SettingsError when one is there with other settings."""
    broker.create_topics(TOPICS)


def check_all(broker: Broker) -> None:
    """Raises SettingsError that names every topic that is missing or has other settings than ours."""
    wrong = drift(broker)
    if wrong:
        raise SettingsError("; ".join(wrong) + ". `sightline topics create` makes what is missing; what differs is for you to decide")


def drift(broker: Broker) -> list[str]:
    """What is missing or differs, a line each; none when all is as it must be."""
    present = broker.topics()
    missing = [spec.name for spec in TOPICS if spec.name not in present]
    wrong = []
    if missing:
        wrong.append(f"{len(missing)} of {len(TOPICS)} topics must exist and do not: {', '.join(missing)}")
    for spec in TOPICS:
        differences = spec.differences(present.get(spec.name, spec))
        if differences:
            wrong.append(f"topic {spec.name} must have {differences}")
    return wrong


def value_type(topic: str) -> type[Any] | None:
    """The type that travels on ``topic``; None where the bytes are handed on as they are."""
    return _VALUE_TYPES.get(topic)


def as_toml() -> str:
    """The text of deploy/topics.toml."""
    lines = ["# Topics of Sightline, in Kafka's words. Written from services/topics.py; a test keeps the two equal.", ""]
    for spec in TOPICS:
        lines += [
            "[[topics]]",
            f'name = "{spec.name}"',
            f"partitions = {spec.partitions}",
            f'"cleanup.policy" = "{spec.cleanup}"',
            f'"retention.ms" = {spec.retention_ms}',
            f'"retention.bytes" = {spec.retention_bytes}',
            f'"max.message.bytes" = {spec.max_message_bytes}',
            "",
        ]
    return "\n".join(lines)
