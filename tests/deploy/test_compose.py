"""deploy/compose.yaml and its GPU override: what the compose specification allows, and what Sightline, its settings and topics need."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml  # type: ignore[import-untyped]

from pipeline.errors import SettingsError
from services.settings import Settings, load_settings
from services.supervisor import STOP_WITHIN_S
from services.topics import DAY_MS, TOPICS
from tests.deploy.known import (
    DEPLOY,
    PARTITIONS,
    ROOT,
    interpolated,
    is_pinned,
    is_setting,
    missing,
    option,
    settings_of,
    variables,
    wrong_with,
)
from tests.deploy.test_dockerfile import environment_of, stages

FILE, GPU, EXAMPLE, SETTINGS = (DEPLOY / name for name in ("compose.yaml", "compose.gpu.yaml", ".env.example", "compose.example.toml"))
ENVIRONMENT = {"GRAFANA_PASSWORD": "right"}
WORKERS = ("ingest", "index", "query", "alert", "archive")


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = interpolated(yaml.safe_load(path.read_text("utf-8")), ENVIRONMENT)
    return found


def merged(below: Any, above: Any) -> Any:
    """What compose makes of a file and its override, for the keys that ours use: maps are merged, the rest is replaced."""
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: merged(below[key], each) if key in below else each for key, each in above.items()}
    return above


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return read(FILE)


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose["services"]
    return found


@pytest.fixture(scope="module")
def ours(services: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The services that run Sightline's image."""
    return {name: each for name, each in services.items() if "build" in each}


def mounts(service: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Path in the container -> (source, whether it can be written)."""
    parts = [volume.split(":") for volume in service.get("volumes", ())]
    return {part[1]: (part[0], part[2:] != ["ro"]) for part in parts}


# -------------------------------------------------------------------------------------- the specification


@pytest.mark.parametrize("with_gpu", [False, True])
def test_the_files_keep_to_the_compose_specification(with_gpu: bool) -> None:
    whole = merged(read(FILE), read(GPU)) if with_gpu else read(FILE)
    compose_spec.PyCompose.from_yaml(yaml.safe_dump(whole))


@pytest.mark.parametrize("with_gpu", [False, True])
def test_docker_compose_itself_takes_the_files(with_gpu: bool) -> None:
    if shutil.which("docker") is None or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker's compose plugin is not installed")
    files = ["-f", str(FILE), *(["-f", str(GPU)] if with_gpu else [])]
    command = ["docker", "compose", *files, "--env-file", os.devnull, "--profile", "*", "config", "--quiet"]
    run = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


def test_without_the_password_that_must_be_set_nothing_starts() -> None:
    with pytest.raises(KeyError, match="GRAFANA_PASSWORD"):
        interpolated(yaml.safe_load(FILE.read_text()), {})


def test_services_wait_for_services_that_can_become_what_is_waited_for(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        for other, wish in service.get("depends_on", {}).items():
            assert other in services, f"{name} waits for {other}"
            awaited = services[other]
            match wish["condition"]:
                case "service_healthy":
                    assert awaited["healthcheck"].get("test"), f"{other} can never be found healthy"
                case "service_completed_successfully":
                    assert awaited["restart"] == "no", f"{other} never ends"
                case other_condition:
                    pytest.fail(f"{name} waits for {other} with {other_condition}")


def test_every_worker_starts_after_the_topics_are_made(ours: dict[str, dict[str, Any]]) -> None:
    for name in (*WORKERS, "api"):
        assert ours[name]["depends_on"] == {"topics": {"condition": "service_completed_successfully"}}
    assert ours["topics"]["command"] == ["topics", "create"]


def test_volumes_and_configs_are_declared_and_used(compose: dict[str, Any], services: dict[str, dict[str, Any]]) -> None:
    named = {source for service in services.values() for source, _ in mounts(service).values() if source[0] not in "./"}
    assert named == set(compose["volumes"])
    used = {config["source"] for service in services.values() for config in service.get("configs", ())}
    assert used == set(compose["configs"])


def test_what_is_mounted_from_the_tree_is_there(compose: dict[str, Any], services: dict[str, dict[str, Any]]) -> None:
    sources = {source for service in services.values() for source, _ in mounts(service).values() if source[0] in "./"}
    sources |= {config["file"] for config in compose["configs"].values()}
    absent = [each for each in sources - {"/dev/null"} if missing(str((DEPLOY / each).relative_to(ROOT)))]
    assert absent == []


def test_ports_are_open_on_this_machine_alone_and_each_once(services: dict[str, dict[str, Any]]) -> None:
    ports = [port.split(":") for service in services.values() for port in service.get("ports", ())]
    assert {address for address, _, _ in ports} == {"127.0.0.1"}
    assert len({published for _, published, _ in ports}) == len(ports)


def test_images_are_pinned(services: dict[str, dict[str, Any]]) -> None:
    assert [name for name, service in services.items() if not is_pinned(service["image"])] == []


@pytest.mark.parametrize("path", [FILE, GPU])
def test_images_of_ours_are_built_from_stages_that_exist(path: Path) -> None:
    for name, service in read(path)["services"].items():
        if "build" in service:
            build = service["build"]
            assert (DEPLOY / build["context"]).resolve() == ROOT
            assert build["target"] in {stage.name for stage in stages(ROOT / build["dockerfile"])}, name
            assert service["image"].endswith("-" + build["target"])


def test_the_example_of_the_environment_names_every_variable_and_no_other() -> None:
    lines = [line.lstrip("#") for line in EXAMPLE.read_text().splitlines() if "=" in line and not line.startswith("# ")]
    named = {line.partition("=")[0]: line.partition("=")[2] for line in lines}
    asked = variables(FILE.read_text()) | variables(GPU.read_text())
    assert set(named) == set(asked)
    must_be_set = {name for name, how in asked.items() if how == ":?"}
    assert {line.partition("=")[0] for line in EXAMPLE.read_text().splitlines() if line and line[0] != "#"} == must_be_set
    assert all(not value for name, value in named.items() if "PASSWORD" in name), "no secret is shown as an example"


# ------------------------------------------------------------------------------------------------ Sightline


def settings_in(service: dict[str, Any], target: str = "cpu") -> Settings:
    environment = environment_of(target) | {key: str(value) for key, value in service["environment"].items()}
    return settings_of({key: value for key, value in environment.items() if key.startswith("SIGHTLINE_")}, SETTINGS)


def test_the_example_settings_stand_by_themselves() -> None:
    settings = load_settings(SETTINGS, {})
    assert settings.broker.kind == "kafka"
    assert settings.broker.bootstrap_servers == "kafka:9092"
    assert settings.cameras == [], "workers follow the cameras topic, not this list"


def test_nobody_may_ask_the_gateway_until_a_token_is_put_in() -> None:
    assert [client.token_sha256 for client in load_settings(SETTINGS, {}).api.clients] == ["0" * 64]


@pytest.mark.parametrize("with_gpu", [False, True])
def test_every_environment_key_is_a_setting_and_every_worker_takes_its_settings(with_gpu: bool) -> None:
    whole = merged(read(FILE), read(GPU)) if with_gpu else read(FILE)
    for name, service in whole["services"].items():
        if "build" not in service:
            continue
        unknown = [key for key in service["environment"] if key.startswith("SIGHTLINE_") and not is_setting(key)]
        assert unknown == [], name
        settings = settings_in(service, service["build"]["target"])
        assert settings.storage.data_folder == Path("/var/lib/sightline")
        assert settings.storage.crops_folder == Path("/var/lib/sightline-crops")
        assert settings.logs.format == "json"
        assert settings.server.host == settings.api.host == "0.0.0.0", "loopback cannot be reached from other containers"


def test_a_key_that_is_no_setting_is_told() -> None:
    with pytest.raises(SettingsError, match=r"broker\.bootstrap_serverz"):
        settings_in({"environment": {"SIGHTLINE_BROKER__BOOTSTRAP_SERVERZ": "x"}})


def test_every_command_exists_in_the_command_line(ours: dict[str, dict[str, Any]]) -> None:
    assert {name: wrong for name, service in ours.items() if (wrong := wrong_with(service["command"]))} == {}


def test_there_is_a_service_for_every_worker(ours: dict[str, dict[str, Any]]) -> None:
    assert {service["command"][1] for service in ours.values() if service["command"][0] == "worker"} == set(WORKERS)
    assert ours["api"]["command"][0] == "api"


def test_replicas_are_no_more_than_partitions_and_one_for_the_index(ours: dict[str, dict[str, Any]]) -> None:
    replicas = {name: ours[name]["deploy"]["replicas"] for name in WORKERS}
    assert replicas["index"] == 1, "one writer for a folder"
    bounds = {"ingest": "cameras", "query": "queries", "alert": "tracklets", "archive": "archive-jobs"}
    assert all(replicas[name] <= PARTITIONS[topic] for name, topic in bounds.items())
    assert (replicas["ingest"], replicas["query"]) == (2, 2)


def test_index_and_query_share_the_index_and_who_stores_or_removes_crops_shares_those(ours: dict[str, dict[str, Any]]) -> None:
    settings = settings_in(ours["index"])
    data, crops = str(settings.storage.data_folder), str(settings.storage.crops_folder)
    assert {name for name in ours if data in mounts(ours[name])} == {"index", "query", "cli"}
    assert all(mounts(ours[name])[data] == ("data", True) for name in ("index", "query", "cli"))
    may_write = {name: mounts(ours[name])[crops][1] for name in ours if crops in mounts(ours[name])}
    assert may_write == {"ingest": True, "index": True, "archive": True, "cli": True, "api": False}


def test_footage_lies_at_one_place_for_who_plans_and_who_reads_it(ours: dict[str, dict[str, Any]]) -> None:
    assert {name: mounts(ours[name])["/footage"] for name in ours if "/footage" in mounts(ours[name])} == dict.fromkeys(
        ("ingest", "archive", "cli"), ("footage", False)
    )


def test_health_is_asked_where_it_is_served(ours: dict[str, dict[str, Any]]) -> None:
    for name in WORKERS:
        asked = environment_of("cpu")["HEALTH_URL"]
        assert asked == f"http://127.0.0.1:{option(ours[name]['command'], '--port')}/live"
    settings = settings_in(ours["api"])
    assert ours["api"]["environment"]["HEALTH_URL"] == f"http://127.0.0.1:{settings.api.port}/live"
    assert ours["api"]["ports"][0].endswith(f":{settings.api.port}")
    assert ours["topics"]["healthcheck"] == ours["cli"]["healthcheck"] == {"disable": True}


def test_everything_of_ours_runs_with_few_rights_and_bounded(services: dict[str, dict[str, Any]], ours: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "network_mode", "pid", "ipc"} & set(service), name
        assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"]), name
        assert service["logging"]["options"]["max-size"], name
        assert service["restart"] == ("no" if name in ("topics", "cli") else "unless-stopped"), name
    for name, service in ours.items():
        assert service["read_only"] is True, name
        assert seconds(service["stop_grace_period"]) > STOP_WITHIN_S, name


def seconds(duration: str) -> float:
    assert duration.endswith("s")
    return float(duration[:-1])


def test_kafka_takes_the_largest_message_and_makes_no_topic_by_itself(services: dict[str, dict[str, Any]]) -> None:
    kafka = services["kafka"]["environment"]
    assert kafka["KAFKA_MESSAGE_MAX_BYTES"] >= max(spec.max_message_bytes for spec in TOPICS)
    assert kafka["KAFKA_REPLICA_FETCH_MAX_BYTES"] >= kafka["KAFKA_MESSAGE_MAX_BYTES"]
    assert kafka["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
    longest_ms = max(spec.retention_ms for spec in TOPICS)
    assert kafka["KAFKA_OFFSETS_RETENTION_MINUTES"] * 60_000 >= longest_ms, "where a worker was is known as long as what it has to read"
    assert kafka["KAFKA_LOG_ROLL_HOURS"] * 3_600_000 <= DAY_MS, "the runbook says that a message is gone a day after its time"
    assert ("kafka", True) in mounts(services["kafka"]).values()
    assert kafka["KAFKA_LOG_DIRS"] in mounts(services["kafka"])


def test_the_gpu_is_used_where_people_are_found() -> None:
    whole = merged(read(FILE), read(GPU))
    assert set(read(GPU)["services"]) == {"ingest", "archive"}
    for name in read(GPU)["services"]:
        settings = settings_in(whole["services"][name], "gpu")
        assert (settings.detect.device, settings.embed.vectors) == ("cuda", "frame"), "the device is used in the one-pass way alone"
        (device,) = whole["services"][name]["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
