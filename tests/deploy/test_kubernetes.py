"""deploy/kubernetes: what the schemas of Kubernetes allow, and that names, ports, probes, secrets, topics and groups fit together."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]

from services.settings import load_settings
from services.supervisor import STOP_WITHIN_S
from services.topics import CAMERAS, DAY_MS, TOPICS, TRACKLETS
from tests.deploy.known import DEPLOY, GROUPS, PARTITIONS, documents, is_pinned, is_setting, option, settings_of, wrong_with
from tests.deploy.test_dockerfile import environment_of

FOLDER = DEPLOY / "kubernetes"
BASE, SETTINGS, SECRETS = FOLDER / "base", FOLDER / "base" / "sightline.toml", FOLDER / "secret.example.yaml"
KUSTOMIZATIONS = sorted(path.parent for path in FOLDER.rglob("kustomization.yaml"))
OVERLAYS = ("base", "overlays/cpu", "overlays/gpu")
OLDEST, NEWEST = "1.32", kubernetes_validate.latest_version()
OF_OTHERS = {"keda.sh/v1alpha1", "monitoring.coreos.com/v1"}  # kinds whose schemas are not Kubernetes' own
WORKLOADS = {"Deployment", "StatefulSet", "Job"}

Manifest = dict[str, Any]

# What KEDA and the Prometheus operator take, of the parts that we use.
KEYS: dict[str, set[str]] = {
    "ScaledObject": {
        "scaleTargetRef", "pollingInterval", "cooldownPeriod", "minReplicaCount", "maxReplicaCount", "fallback", "advanced", "triggers",
    },
    "TriggerAuthentication": {"secretTargetRef"},
    "PodMonitor": {"selector", "jobLabel", "podMetricsEndpoints"},
}  # fmt: skip
TRIGGERS = {
    "cpu": {"value"},
    "kafka": {"bootstrapServers", "sasl", "tls", "consumerGroup", "topic", "lagThreshold", "offsetResetPolicy"},
}


def raw() -> list[Manifest]:
    """Every manifest as it is written, those of the components too; patches of overlays are no manifests."""
    paths = [path for folder in (BASE, *(FOLDER / "components").iterdir()) for path in sorted(folder.glob("*.yaml"))]
    return [each for path in paths if path.stem != "kustomization" for each in documents(path)]


@cache
def rendered(overlay: str) -> list[Manifest]:
    """What kubectl makes of an overlay."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    run = subprocess.run(["kubectl", "kustomize", str(FOLDER / overlay)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return [each for each in yaml.safe_load_all(run.stdout) if each]


@pytest.fixture(params=["as written", *OVERLAYS])
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return raw() if request.param == "as written" else rendered(request.param)


@pytest.fixture(params=["as written", "overlays/cpu", "overlays/gpu"])
def whole(request: pytest.FixtureRequest) -> list[Manifest]:
    """With KEDA and the Prometheus operator."""
    return raw() if request.param == "as written" else rendered(request.param)


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [each for each in manifests if each["kind"] in kinds]


def named(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [each for each in of_kind(manifests, kind) if each["metadata"]["name"] == name]
    return found


def pod_of(workload: Manifest) -> Manifest:
    found: Manifest = workload["spec"]["template"]["spec"]
    return found


def containers(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """(where, pod, container) of everything that runs."""
    for workload in of_kind(manifests, *WORKLOADS):
        pod = pod_of(workload)
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            yield f"{workload['metadata']['name']}/{container['name']}", pod, container


def ports_of(pod: Manifest) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for container in pod["containers"] for port in container.get("ports", ())}


def selected(manifests: list[Manifest], selector: dict[str, Any]) -> list[Manifest]:
    """The workloads whose pods a selector meets. The label of the whole is put on by kustomize."""
    wanted = selector.get("matchLabels", selector)
    found = []
    for workload in of_kind(manifests, *WORKLOADS):
        labels = {"app.kubernetes.io/part-of": "sightline"} | workload["spec"]["template"]["metadata"]["labels"]
        if wanted.items() <= labels.items():
            found.append(workload)
    return found


# ---------------------------------------------------------------------------------------------- the schemas


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_the_schemas_of_kubernetes_take_every_manifest(manifests: list[Manifest], version: str) -> None:
    for manifest in manifests:
        if manifest["apiVersion"] not in OF_OTHERS:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_an_unknown_key_would_be_told() -> None:
    wrong = {**raw()[0], "spek": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)


def test_what_others_read_has_keys_that_they_know(whole: list[Manifest]) -> None:
    for manifest in whole:
        if manifest["apiVersion"] in OF_OTHERS:
            assert set(manifest["spec"]) <= KEYS[manifest["kind"]], manifest["metadata"]["name"]
    for scaled in of_kind(whole, "ScaledObject"):
        for trigger in scaled["spec"]["triggers"]:
            assert set(trigger["metadata"]) <= TRIGGERS[trigger["type"]]
            assert all(isinstance(value, str) for value in trigger["metadata"].values()), "KEDA takes texts alone"


def test_the_secrets_are_manifests_too_and_hold_no_secret() -> None:
    for secret in documents(SECRETS):
        kubernetes_validate.validate(secret, NEWEST, strict=True)
        assert {value for key, value in secret["stringData"].items() if key != "keda-username"} == {"CHANGE-ME"}


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda folder: str(folder.relative_to(FOLDER)))
def test_every_file_is_in_its_kustomization(folder: Path) -> None:
    (kustomization,) = documents(folder / "kustomization.yaml")
    mentioned = [*kustomization.get("resources", ()), *(patch["path"] for patch in kustomization.get("patches", ()) if "path" in patch)]
    mentioned += [file for made in kustomization.get("configMapGenerator", ()) for file in made["files"]]
    here = {path.name for path in folder.iterdir() if path.is_file()} - {"kustomization.yaml"}
    assert here == {name for name in mentioned if "/" not in name}
    assert all((folder / name).exists() for name in [*mentioned, *kustomization.get("components", ())])


def test_every_resource_lies_in_our_namespace() -> None:
    for overlay in OVERLAYS:
        others = [each for each in rendered(overlay) if each["kind"] != "Namespace" and each["metadata"].get("namespace") != "sightline"]
        assert others == []


# ------------------------------------------------------------------------------------------ what fits together


def test_selectors_meet_the_pods_that_they_mean(manifests: list[Manifest]) -> None:
    for manifest in of_kind(manifests, "Deployment", "StatefulSet"):
        name = manifest["metadata"]["name"]
        assert [each["metadata"]["name"] for each in selected(manifests, manifest["spec"]["selector"])] == [name]
        for spread in pod_of(manifest)["topologySpreadConstraints"]:
            assert selected(manifests, spread["labelSelector"]) == [manifest]
    keys = {"Service": "selector", "PodDisruptionBudget": "selector", "PodMonitor": "selector", "NetworkPolicy": "podSelector"}
    for kind, key in keys.items():
        for manifest in of_kind(manifests, kind):
            assert selected(manifests, manifest["spec"][key]), f"{kind} {manifest['metadata']['name']} meets no pod"


def test_every_worker_that_goes_on_has_a_disruption_budget(manifests: list[Manifest]) -> None:
    running = {each["metadata"]["name"] for each in of_kind(manifests, "Deployment", "StatefulSet")}
    assert {each["metadata"]["name"] for each in of_kind(manifests, "PodDisruptionBudget")} == running
    assert running == {"ingest", "index", "alert", "archive", "api"}
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        (workload,) = selected(manifests, budget["spec"]["selector"])
        assert workload["metadata"]["name"] == budget["metadata"]["name"]
        assert budget["spec"]["maxUnavailable"] == 1, "a budget that allows none would hold up every emptying of a node"


def test_services_and_policies_name_ports_that_pods_have(manifests: list[Manifest]) -> None:
    for service in of_kind(manifests, "Service"):
        (workload,) = selected(manifests, service["spec"]["selector"])
        assert {port["targetPort"] for port in service["spec"]["ports"]} == set(ports_of(pod_of(workload)))
    everything = {name for workload in of_kind(manifests, *WORKLOADS) for name in ports_of(pod_of(workload))}
    for policy in of_kind(manifests, "NetworkPolicy"):
        assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]} <= everything


def test_every_port_is_watched_by_prometheus(whole: list[Manifest]) -> None:
    watched = {
        (workload["metadata"]["name"], endpoint["port"])
        for monitor in of_kind(whole, "PodMonitor")
        for workload in selected(whole, monitor["spec"]["selector"])
        for endpoint in monitor["spec"]["podMetricsEndpoints"]
    }
    open_ports = {(each["metadata"]["name"], name) for each in of_kind(whole, *WORKLOADS) for name in ports_of(pod_of(each))}
    assert open_ports <= watched


def test_volumes_config_maps_and_claims_are_there(manifests: list[Manifest]) -> None:
    claims = {each["metadata"]["name"] for each in of_kind(manifests, "PersistentVolumeClaim")}
    maps = {each["metadata"]["name"] for each in of_kind(manifests, "ConfigMap")}
    if not maps:  # as written: kustomize makes them
        (kustomization,) = documents(BASE / "kustomization.yaml")
        maps = {made["name"] for made in kustomization["configMapGenerator"]}
    for workload in of_kind(manifests, *WORKLOADS):
        pod = pod_of(workload)
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        made = {template["metadata"]["name"] for template in workload["spec"].get("volumeClaimTemplates", ())}
        for volume in volumes.values():
            assert volume.get("persistentVolumeClaim", {}).get("claimName", "crops") in claims
            assert volume.get("configMap", {}).get("name", next(iter(maps))) in maps
        for _, _, container in containers([workload]):
            places = [mount["mountPath"] for mount in container["volumeMounts"]]
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes) | made
            assert not [place for place in places for other in places if place.startswith(other + "/")], "a mount within a read-only one"
        assert {mount["name"] for _, _, each in containers([workload]) for mount in each["volumeMounts"]} == set(volumes) | made


def secret_uses(manifests: list[Manifest]) -> Iterator[tuple[str, str]]:
    """(secret, key) of everything that asks for one."""
    for _, pod, container in containers(manifests):
        for variable in container.get("env", ()):
            if "secretKeyRef" in variable.get("valueFrom", {}):
                yield variable["valueFrom"]["secretKeyRef"]["name"], variable["valueFrom"]["secretKeyRef"]["key"]
        for volume in pod["volumes"]:
            yield from ((volume["secret"]["secretName"], item["key"]) for item in volume.get("secret", {}).get("items", ()))
    for authentication in of_kind(manifests, "TriggerAuthentication"):
        yield from ((each["name"], each["key"]) for each in authentication["spec"]["secretTargetRef"])
    for monitor in of_kind(manifests, "PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            if "authorization" in endpoint:
                yield endpoint["authorization"]["credentials"]["name"], endpoint["authorization"]["credentials"]["key"]


def test_the_example_holds_every_secret_that_is_asked_for_and_no_other(whole: list[Manifest]) -> None:
    assert set(secret_uses(whole)) == {(secret["metadata"]["name"], key) for secret in documents(SECRETS) for key in secret["stringData"]}


def test_every_container_gets_the_password_of_its_own_user_alone(manifests: list[Manifest]) -> None:
    for where, _, container in containers(manifests):
        environment = {each["name"]: each for each in container["env"]}
        user = environment["SIGHTLINE_BROKER__SASL_USERNAME"]["value"].removeprefix("sightline-")
        assert environment["SIGHTLINE_BROKER__SASL_PASSWORD"]["valueFrom"]["secretKeyRef"]["key"] == user, where
        expected = {"topics": "operator", "replay": "index"}.get(container["name"], container["name"])
        assert user == expected, where


# ----------------------------------------------------------------------------------------------------- pods


def test_pods_may_do_nothing_that_they_need_not(manifests: list[Manifest]) -> None:
    (namespace,) = of_kind(manifests, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for where, pod, container in containers(manifests):
        whole_pod = pod["securityContext"]
        assert (whole_pod["runAsNonRoot"], whole_pod["seccompProfile"]) == (True, {"type": "RuntimeDefault"}), where
        assert whole_pod["runAsUser"] == whole_pod["fsGroup"] == 10001, where
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, where
        assert pod["automountServiceAccountToken"] is False, where
        assert pod["enableServiceLinks"] is False, f"{where}: SIGHTLINE_* variables of the cluster would be taken for settings"
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), where
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]), where
        assert {"cpu", "memory"} <= set(container["resources"]["limits"]), where


def test_pods_are_given_time_to_stop(manifests: list[Manifest]) -> None:
    for where, pod, _ in containers(manifests):
        assert pod["terminationGracePeriodSeconds"] >= 2 * STOP_WITHIN_S, where


def test_probes_ask_the_port_that_is_served(manifests: list[Manifest]) -> None:
    for workload in of_kind(manifests, "Deployment", "StatefulSet"):
        ports = ports_of(pod_of(workload))
        assert len(set(ports.values())) == len(ports), "the containers of a pod share its ports"
        for container in pod_of(workload)["containers"]:
            if "ports" not in container:
                assert container["name"] == "operator"
                continue
            (port,) = container["ports"]
            for probe, path in (("startupProbe", "/live"), ("livenessProbe", "/live"), ("readinessProbe", "/ready")):
                assert container[probe]["httpGet"] == {"path": path, "port": port["name"]}
            served = option(container["args"], "--port") or settings_of({}).api.port
            assert port["containerPort"] == int(served)


def test_commands_exist_in_the_command_line(manifests: list[Manifest]) -> None:
    for where, _, container in containers(manifests):
        if "command" not in container:
            assert wrong_with(container["args"]) == "", where
            continue
        assert container["command"][0] == "sh", where
        for line in container["args"][0].splitlines():
            if line.strip().startswith("sightline "):
                assert wrong_with(line.split()[1:]) == "", where


def test_there_is_a_container_for_every_worker(manifests: list[Manifest]) -> None:
    run = {container["args"][1] for _, _, container in containers(manifests) if container["args"][0] == "worker"}
    assert run == set(GROUPS)


def test_every_environment_key_is_a_setting_and_every_container_takes_its_settings(manifests: list[Manifest]) -> None:
    for where, _, container in containers(manifests):
        given = {each["name"]: each.get("value", "from-elsewhere") for each in container["env"]}
        assert [name for name in given if name.startswith("SIGHTLINE_") and not is_setting(name)] == [], where
        target = "gpu" if container["image"].endswith("gpu") else "cpu"
        image = {name: value for name, value in environment_of(target).items() if name.startswith("SIGHTLINE_")}
        settings = settings_of(image | given, SETTINGS)
        mounted = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert str(Path(given["SIGHTLINE_SETTINGS"]).parent) in mounted, where
        assert str(settings.broker.ssl_ca_file.parent if settings.broker.ssl_ca_file else "") in mounted, where
        assert settings.server.host == "0.0.0.0", where


def test_images_are_pinned() -> None:
    for overlay in OVERLAYS:
        on_gpu = ("ingest/ingest", "archive/archive") if overlay == "overlays/gpu" else ()
        for where, _, container in containers(rendered(overlay)):
            assert is_pinned(container["image"]), where
            assert container["image"].endswith("-gpu" if where in on_gpu else "-cpu"), where


def test_the_settings_stand_by_themselves_and_let_nobody_ask_the_gateway() -> None:
    settings = load_settings(SETTINGS, {})
    assert (settings.broker.kind, settings.broker.security_protocol) == ("kafka", "SASL_SSL")
    assert [client.token_sha256 for client in settings.api.clients] == ["0" * 64]


# ------------------------------------------------------------------------------------------------ the index


def test_every_copy_of_the_index_has_a_group_and_a_volume_of_its_own(manifests: list[Manifest]) -> None:
    index = named(manifests, "StatefulSet", "index")
    pod = pod_of(index)
    by_name = {container["name"]: container for container in [*pod["initContainers"], *pod["containers"]]}
    assert set(by_name) == {"replay", "index", "query", "operator"}
    for name in ("replay", "index", "operator"):
        (group,) = [each for each in by_name[name]["env"] if each["name"] == "SIGHTLINE_INDEX__GROUP"]
        assert group["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    for container in by_name.values():
        assert {"name": "data", "mountPath": environment_of("cpu")["SIGHTLINE_STORAGE__DATA_FOLDER"]} in container["volumeMounts"]
    (claim,) = index["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert named(manifests, "Service", index["spec"]["serviceName"])["spec"]["clusterIP"] == "None"


def test_a_new_copy_of_the_index_can_be_made_whole_from_its_topic(whole: list[Manifest]) -> None:
    """The number of copies follows the queries, so nobody is there to copy a volume: no longer kept than the topic keeps."""
    retention_ms = next(spec.retention_ms for spec in TOPICS if spec.name == TRACKLETS)
    assert load_settings(SETTINGS, {}).index.retention_days * DAY_MS <= retention_ms
    index = named(whole, "StatefulSet", "index")
    assert index["spec"]["persistentVolumeClaimRetentionPolicy"]["whenScaled"] == "Delete", "one that comes back would answer from the past"


def test_crops_and_footage_can_be_shared_by_nodes_and_crops_written_by_who_must(manifests: list[Manifest]) -> None:
    for claim in of_kind(manifests, "PersistentVolumeClaim"):
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    folder = environment_of("cpu")["SIGHTLINE_STORAGE__CROPS_FOLDER"]
    may_write = {
        where: not mount.get("readOnly", False)
        for where, _, container in containers(manifests)
        for mount in container["volumeMounts"]
        if mount["mountPath"] == folder
    }
    writers = ("ingest/ingest", "archive/archive", "index/index", "index/operator")
    assert may_write == {**dict.fromkeys(writers, True), "api/api": False}


def test_wrong_settings_end_the_topics_job_at_once(manifests: list[Manifest]) -> None:
    job = named(manifests, "Job", "topics")
    (rule,) = job["spec"]["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailJob", "onExitCodes": {"containerName": "topics", "operator": "In", "values": [2]}}
    assert pod_of(job)["restartPolicy"] == "Never"


# ---------------------------------------------------------------------------------------------- autoscaling


def test_pods_grow_with_the_lag_of_their_own_group_and_never_beyond_partitions(whole: list[Manifest]) -> None:
    groups = {"index": "query", "alert": "alert", "archive": "archive"}
    scaled = {each["metadata"]["name"]: each["spec"] for each in of_kind(whole, "ScaledObject")}
    assert set(scaled) == {*groups, "ingest"}
    for name, group in groups.items():
        (trigger,) = scaled[name]["triggers"]
        metadata = trigger["metadata"]
        assert (metadata["consumerGroup"], metadata["topic"]) == (group, GROUPS[group][0])
        assert scaled[name]["maxReplicaCount"] <= PARTITIONS[metadata["topic"]]
        assert int(metadata["lagThreshold"]) > 0
        assert metadata["offsetResetPolicy"] == "earliest", "where our workers begin"
    assert scaled["ingest"]["maxReplicaCount"] <= PARTITIONS[CAMERAS]
    assert scaled["archive"]["minReplicaCount"] == 0


def test_ingest_grows_with_busy_cores_as_it_has_no_lag(whole: list[Manifest]) -> None:
    (trigger,) = named(whole, "ScaledObject", "ingest")["spec"]["triggers"]
    assert (trigger["type"], trigger["metricType"]) == ("cpu", "Utilization")
    (container,) = pod_of(named(whole, "Deployment", "ingest"))["containers"]
    assert container["resources"]["requests"]["cpu"], "utilization is of what was requested"


def test_scaled_objects_name_workloads_and_logins_that_exist(whole: list[Manifest]) -> None:
    settings = load_settings(SETTINGS, {}).broker
    for scaled in of_kind(whole, "ScaledObject"):
        target = scaled["spec"]["scaleTargetRef"]
        workload = named(whole, target.get("kind", "Deployment"), target["name"])
        assert target.get("apiVersion", "apps/v1") == workload["apiVersion"]
        for trigger in scaled["spec"]["triggers"]:
            if trigger["type"] != "kafka":
                continue
            metadata = trigger["metadata"]
            assert metadata["bootstrapServers"] == settings.bootstrap_servers
            assert metadata["sasl"] == re.sub(r"-(SHA)-", r"_\1", settings.sasl_mechanism).lower()
            assert (metadata["tls"] == "enable") == settings.security_protocol.endswith("SSL")
            login = named(whole, "TriggerAuthentication", trigger["authenticationRef"]["name"])
            assert {each["parameter"] for each in login["spec"]["secretTargetRef"]} == {"username", "password", "ca"}


def test_the_number_of_pods_is_keda_s_where_keda_is() -> None:
    for overlay in ("overlays/cpu", "overlays/gpu"):
        for scaled in of_kind(rendered(overlay), "ScaledObject"):
            target = scaled["spec"]["scaleTargetRef"]
            workload = named(rendered(overlay), target.get("kind", "Deployment"), target["name"])
            assert "replicas" not in workload["spec"], "each apply would set it back"


def test_gpu_pods_ask_for_a_gpu_and_the_others_do_not() -> None:
    asked = {where: container["resources"]["limits"].get("nvidia.com/gpu") for where, _, container in containers(rendered("overlays/gpu"))}
    assert {where: number for where, number in asked.items() if number} == {"ingest/ingest": "1", "archive/archive": "1"}
