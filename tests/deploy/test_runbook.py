"""deploy/RUNBOOK.md: what it tells people to type exists, what it links to is there, what it names is named so in the code."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from pipeline.errors import SightlineError
from services.logs import mask
from services.metrics import Metrics
from services.settings import load_settings
from services.topics import TOPICS, dead_letter_topic
from tests.deploy.known import (
    DEPLOY,
    GROUPS,
    PARTITIONS,
    commands_in,
    missing,
    ours_in,
    setting_keys,
    wrong_with,
)
from tests.deploy.test_kubernetes import raw
from tests.deploy.test_rights import grants

TEXT = (DEPLOY / "RUNBOOK.md").read_text("utf-8")
RULES = DEPLOY / "prometheus" / "rules.yml"
LINKED_BY_ALERTS = (
    "camera-not-seen",
    "camera-dropping-frames",
    "worker-lagging",
    "worker-down",
    "worker-not-committing",
    "dead-letters",
    "alerts-late",
    "search-slow",
    "partial-answers",
    "detector-slow",
)
OTHER_COMMANDS = (  # of the systems around us
    {"kubectl", "docker", "curl", "pip", "cp", "chmod", "cd", "echo", "df", "printf", "sed", "export", "journalctl", "id", "date", "cat"}
    | {"grep", "base64", "shift", "kafka-configs.sh", "kafka-acls.sh", "kafka-console-consumer.sh"}
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.M | re.S)


def inline() -> list[str]:
    """What stands between backquotes in the prose."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", TEXT, flags=re.M | re.S))


def anchors() -> list[str]:
    """The anchors of the headings, as the usual renderers make them."""
    shell = re.sub(r"^```.*?^```", "", TEXT, flags=re.M | re.S)
    return [re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", shell, flags=re.M)]


def shell() -> str:
    return "\n".join([*blocks("sh"), *(each for each in inline() if each.startswith("sightline "))])


def services() -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    return found


# ------------------------------------------------------------------------------------------------ commands


def test_every_command_of_ours_exists() -> None:
    commands = list(ours_in(shell()))
    assert len(commands) > 30
    assert {" ".join(command): wrong for command in commands if (wrong := wrong_with(command))} == {}


def test_a_command_that_does_not_exist_would_be_told() -> None:
    (command,) = ours_in("x && sightline topics make # comment 'with a quote")
    assert wrong_with(command) == "there is no command `sightline topics make`"
    assert wrong_with(["dead-letters", "replay"]) == "`sightline dead-letters replay` needs topic"
    assert wrong_with(["camera", "add", "gate", "-", "--hz", "10"]) == "`sightline camera add` has no option --hz"


def test_the_service_of_systemd_starts_a_command_of_ours() -> None:
    (unit,) = blocks("ini")
    start = re.search(r"^ExecStart=\S*/sightline (.*)$", unit, flags=re.M)
    assert start is not None
    assert wrong_with(start[1].split()) == ""
    assert "RestartPreventExitStatus=2" in unit


def test_the_blocks_are_shell() -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    for block in blocks("sh"):
        run = subprocess.run([bash, "-n"], input=block, capture_output=True, text=True, check=False)
        assert run.returncode == 0, f"{run.stderr}\n{block}"


def test_every_other_command_is_known_or_defined_at_the_top() -> None:
    defined = set(re.findall(r"^(\w+)\(\) \{", TEXT, flags=re.M))
    assert defined == {"sightline", "logs", "workers", "groups", "compose", "allow"}
    used = {command[0] for block in blocks("sh") for command in commands_in(block) if "=" not in command[0]}
    assert used - defined - OTHER_COMMANDS == set()


def test_services_that_are_started_and_stopped_are_in_the_compose_file() -> None:
    for line in re.findall(r"\bcompose (?:up|stop|start|exec|logs|cp) (.*)", "\n".join(blocks("sh"))):
        words = [word.partition(":")[0].partition("=")[0] for word in line.partition("#")[0].partition("/opt")[0].split()]
        names = [word for word in words if re.fullmatch(r"[a-z]+", word) and word not in ("d", "python", "c", "rm", "import")]
        assert set(names) <= set(services()), line


def test_what_kubernetes_is_told_of_is_in_the_manifests() -> None:
    known = {f"{each['kind'].lower()}/{each['metadata']['name']}" for each in raw()}
    assert set(re.findall(r"\b((?:deployment|statefulset|job)/[a-z]+)\b", TEXT)) <= known


# --------------------------------------------------------------------------------------------- names and links


def test_every_link_leads_somewhere() -> None:
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= set(anchors())
    assert len(set(anchors())) == len(anchors()), "two headings with one anchor"


@pytest.mark.parametrize("anchor", LINKED_BY_ALERTS)
def test_alerts_find_their_part(anchor: str) -> None:
    assert anchor in anchors()


def test_the_rules_link_to_parts_that_exist() -> None:
    linked = set(re.findall(r"RUNBOOK\.md#([\w-]+)", RULES.read_text("utf-8")))
    assert linked
    assert linked <= set(anchors())


def test_every_file_that_is_named_is_there() -> None:
    named = set(re.findall(r"\bdeploy/[\w./-]*\w", TEXT)) | {"CHANGELOG.md"}
    made_by_the_reader = {"deploy/.env", "deploy/compose.toml"}
    assert [path for path in sorted(named - made_by_the_reader) if missing(path)] == []


def test_every_setting_that_is_named_exists() -> None:
    sections = {key.partition(".")[0] for key in setting_keys()}
    named = {match[0] for match in re.finditer(r"\b([a-z]+)\.([a-z0-9_]+)\b(?![./-])", " ".join(inline())) if match[1] in sections}
    files = {each for each in named if re.search(r"\.(sqlite|toml|lost|new|yaml|py|sh)$", each)}
    assert named - files - setting_keys() == set()
    assert len(named) >= 8


def test_the_settings_that_are_shown_are_settings(tmp_path: Path) -> None:
    for block in blocks("toml"):
        file = tmp_path / "sightline.toml"
        file.write_text(block)
        assert load_settings(file, {}).broker.security_protocol == tomllib.loads(block)["broker"]["security_protocol"]


def test_every_metric_that_is_named_exists() -> None:
    metrics = Metrics()
    known = {family.name for family in metrics.registry.collect()}
    for name in re.findall(r"\bsightline_\w+", TEXT):
        assert name.removesuffix("_total") in known, name


def test_every_error_that_is_named_exists() -> None:
    def below(kind: type[SightlineError]) -> set[str]:
        return {kind.__name__}.union(*(below(each) for each in kind.__subclasses__()))

    assert set(re.findall(r"\b[A-Z]\w+Error\b", TEXT)) <= below(SightlineError)


def test_numbers_of_partitions_are_those_of_the_topics() -> None:
    said = re.search(r"find no work: (\d+) for ingest, (\d+) for archive, (\d+) for alert, (\d+) for query", TEXT)
    assert said is not None
    assert [int(each) for each in said.groups()] == [PARTITIONS[GROUPS[name][0]] for name in ("ingest", "archive", "alert", "query")]


def test_retention_that_is_promised_is_that_of_the_topics() -> None:
    hours = {spec.name: spec.retention_ms / 3_600_000 for spec in TOPICS}
    assert "`tracklets` until its 7 days are over; the same goes for `identities` (7 days), `rankings` (6 hours)," in TEXT
    assert "`alerts` (28 days) and dead letters" in TEXT
    assert (hours["tracklets"], hours["rankings"], hours["alerts"], hours["tracklets.dlt"]) == (7 * 24, 6, 28 * 24, 28 * 24)
    assert hours["erasures"] == 28 * 24
    for topic, milliseconds, size in re.findall(r"--entity-name (\w+) \\\n +--add-config retention.ms=(\d+),max.message.bytes=(\d+)", TEXT):
        (spec,) = [each for each in TOPICS if each.name == topic]
        assert (spec.retention_ms, spec.max_message_bytes) == (int(milliseconds), int(size))


def test_nobody_is_shown_a_password() -> None:
    shown = [line for line in TEXT.splitlines() if mask(line) != line]
    assert all("user:password@192.0.2.10" in line for line in shown)


# ------------------------------------------------------------------------------------------------ rights


def test_rights_name_topics_and_groups_that_exist() -> None:
    for grant in grants():
        assert set(grant.topics) <= {*PARTITIONS, "*"}, grant
        assert set(grant.groups) <= {*GROUPS, "*"}, grant


def test_every_worker_may_read_its_topics_join_its_group_and_put_bad_messages_aside() -> None:
    for group, topics in GROUPS.items():
        mine = [grant for grant in grants() if grant.user == group]
        assert {*topics} <= {topic for grant in mine if "Read" in grant.operations for topic in grant.topics}
        assert group in {each for grant in mine if "Read" in grant.operations for each in grant.groups}
        if group != "ingest":  # a camera that cannot be read is logged and left out
            written = {topic for grant in mine if "Write" in grant.operations for topic in grant.topics}
            assert {dead_letter_topic(topic) for topic in topics} <= written


def test_there_is_a_user_for_every_password_in_the_cluster() -> None:
    (kafka, _) = yaml.safe_load_all((DEPLOY / "kubernetes" / "secret.example.yaml").read_text())
    assert {grant.user for grant in grants()} == set(kafka["stringData"]) - {"ca.crt", "keda-username"}
