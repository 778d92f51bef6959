"""deploy/prometheus: promtool takes all of it, every metric and label is one of ours, every alert is tried and leads into the runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client import Counter, Histogram, ProcessCollector

from services.metrics import DELAY_SECONDS, Metrics
from services.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
FOLDER = DEPLOY / "prometheus"
CONFIG, RULES, CASES = (FOLDER / name for name in ("prometheus.yml", "rules.yml", "rules_test.yml"))
OF_PROMETHEUS = {"up": frozenset[str](), "ALERTS": frozenset({"alertname", "alertstate", "severity", "camera", "worker", "topic"})}
OF_TARGETS = {"job", "instance", "pod"}
NAME = re.compile(r"\b(?:(?:sightline|process)[_:][\w:]+|up|ALERTS)\b")
WANTED = {
    "CameraNotSeen": "camera-not-seen",
    "CameraDroppingFrames": "camera-dropping-frames",
    "WorkerLagging": "worker-lagging",
    "WorkerDown": "worker-down",
    "WorkerNotCommitting": "worker-not-committing",
    "DeadLetters": "dead-letters",
    "AlertsLate": "alerts-late",
    "SearchSlow": "search-slow",
    "PartialAnswers": "partial-answers",
    "DetectorSlow": "detector-slow",
    "TrackletsHeld": "broker-lost",
}


# ------------------------------------------------------------------------------------- what expressions name


def series() -> dict[str, frozenset[str]]:
    """Every series that our processes show, with its labels."""
    found: dict[str, frozenset[str]] = {}
    for metric in Metrics().registry._collector_to_names:
        if isinstance(metric, ProcessCollector):  # what it finds depends on the system; ours run on Linux
            found |= dict.fromkeys(("process_resident_memory_bytes", "process_cpu_seconds_total"), frozenset[str]())
            continue
        name, labels = metric._name, frozenset(metric._labelnames)  # type: ignore[attr-defined]
        if isinstance(metric, Counter):
            found[f"{name}_total"] = labels
        elif isinstance(metric, Histogram):
            found |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
        else:
            found[name] = labels
    return found


def recorded() -> dict[str, frozenset[str]]:
    """What the rules make, with the labels that they keep."""
    kept = {}
    for rule in rules():
        if "record" in rule:
            grouped = re.search(r"\bby \(([^)]*)\)", rule["expr"])
            kept[rule["record"]] = frozenset(grouped[1].split(", ") if grouped else ()) - {"le"}
    return kept


def wrong_with(expression: str) -> list[str]:
    """What an expression names that nobody makes."""
    known = series() | recorded() | OF_PROMETHEUS
    bare = re.sub(r'"[^"]*"', '""', expression)
    names = set(NAME.findall(bare))
    wrong = [f"metric {name}" for name in names - set(known)] or ([] if names else ["no metric at all"])
    for name, matchers in re.findall(r"([\w:]+)\{([^}]*)\}", bare):
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
        wrong += [f"label {label} of {name}" for label in labels - known.get(name, frozenset()) - OF_TARGETS]
    of_all = set().union(*(known.get(name, frozenset()) for name in names)) | OF_TARGETS
    for listed in re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", bare):
        wrong += [f"label {label}" for label in {each.strip() for each in listed.split(",")} - {""} - of_all]
    return wrong


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def cases() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(CASES.read_text("utf-8"))["tests"]
    return found


def tried(alert: str) -> Iterator[bool]:
    """Whether the alert was expected to fire, for each time that it is looked for."""
    for case in cases():
        for look in case.get("promql_expr_test", ()):
            if f'alertname="{alert}"' in look["expr"]:
                yield bool(look["exp_samples"])


# ------------------------------------------------------------------------------------------------- promtool


def promtool(*arguments: str | Path) -> None:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    run = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_promtool_takes_the_configuration(tmp_path: Path) -> None:
    for file in (CONFIG, RULES):
        shutil.copy(file, tmp_path)
    (tmp_path / "api-token").write_text("")  # compose mounts it
    promtool("check", "config", tmp_path / CONFIG.name)


def test_promtool_takes_the_rules() -> None:
    promtool("check", "rules", "--lint-fatal", RULES)


def test_the_alerts_fire_and_stay_silent_as_they_should() -> None:
    promtool("test", "rules", CASES)


# ---------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("record") or rule["alert"])
def test_rules_name_metrics_and_labels_that_exist(rule: dict[str, Any]) -> None:
    assert wrong_with(rule["expr"]) == []


def test_the_cases_are_made_of_series_that_exist() -> None:
    known = series() | OF_PROMETHEUS
    for case in cases():
        for each in case["input_series"]:
            name, labels = re.fullmatch(r"(\w+)\{(.*)\}", each["series"]).groups()  # type: ignore[union-attr]
            given = set(re.findall(r'(\w+)="', labels))
            assert given - OF_TARGETS == known[name], each["series"]


def test_what_does_not_exist_would_be_told() -> None:
    assert wrong_with("sum by (camera) (rate(sightline_capture_frames_total[5m]))") == []
    assert wrong_with("sightline_capture_frames") == ["metric sightline_capture_frames"]
    assert wrong_with('sightline_capture_frames_total{worker="a"}') == ["label worker of sightline_capture_frames_total"]
    assert wrong_with("sum by (worker) (sightline_capture_frames_total)") == ["label worker"]
    assert wrong_with("vector(1)") == ["no metric at all"]


def test_labels_in_texts_are_those_of_the_metrics() -> None:
    known = series() | recorded() | OF_PROMETHEUS
    for rule in alerts():
        of_rule = set().union(*(known[name] for name in NAME.findall(re.sub(r'"[^"]*"', '""', rule["expr"])))) | OF_TARGETS
        assert set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values()))) <= of_rule, rule["alert"]


def test_footage_is_left_out_of_delays_by_a_bucket_that_exists() -> None:
    bounds = re.findall(r'"le", "\+Inf", "le", "([\d.]+)"', RULES.read_text("utf-8"))
    assert len(bounds) == 4
    assert {float(bound) for bound in bounds} == {max(DELAY_SECONDS)}
    assert set(bounds) == {str(max(DELAY_SECONDS))}, "as the metrics write it"


# --------------------------------------------------------------------------------------------------- alerts


def test_the_alerts_are_those_that_were_wanted() -> None:
    assert {rule["alert"] for rule in alerts()} == set(WANTED)


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_alerts_say_how_bad_it_is_what_to_do_and_where_to_read_on(rule: dict[str, Any]) -> None:
    texts = rule["annotations"]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(texts) == {"summary", "description", "runbook_url"}
    assert len(texts["summary"]) < 110
    assert len(texts["description"]) > 80
    assert texts["runbook_url"].endswith(f"deploy/RUNBOOK.md#{WANTED[rule['alert']]}")


def test_links_lead_into_the_runbook() -> None:
    headings = re.findall(r"^#+ (.*)$", (DEPLOY / "RUNBOOK.md").read_text("utf-8"), flags=re.M)
    anchors = {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}
    assert set(WANTED.values()) <= anchors


@pytest.mark.parametrize("alert", WANTED)
def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(alert: str) -> None:
    assert set(tried(alert)) == {True, False}


# ------------------------------------------------------------------------------------------------ scraping


def test_every_worker_and_the_gateway_is_watched_with_all_its_replicas() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]
    workers = {name: command for name, each in services.items() if "worker" in (command := each.get("command", ()))}
    ports = {name: int(command[command.index("--port") + 1]) for name, command in workers.items()}
    ports["api"] = Settings().api.port
    watched = {}
    for job in yaml.safe_load(CONFIG.read_text("utf-8"))["scrape_configs"]:
        (lookup,) = job["dns_sd_configs"]
        assert (lookup["names"], lookup["type"]) == ([job["job_name"]], "A")
        assert job.get("metrics_path", "/metrics") == "/metrics"
        watched[job["job_name"]] = lookup["port"]
    assert watched == ports


def test_compose_mounts_what_the_configuration_reads() -> None:
    config = yaml.safe_load(CONFIG.read_text("utf-8"))
    prometheus = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]["prometheus"]
    mounted = {part[-2]: part[0] for volume in prometheus["volumes"] if len(part := re.split(r":(?=/|ro$)", volume)) == 3}
    at = "/etc/prometheus"
    assert f"--config.file={at}/prometheus.yml" in prometheus["command"]
    assert mounted[f"{at}/prometheus.yml"] == "./prometheus/prometheus.yml"
    assert {f"{at}/{name}" for name in config["rule_files"]} <= set(mounted)
    tokens = [job["authorization"]["credentials_file"] for job in config["scrape_configs"] if "authorization" in job]
    assert {f"{at}/{name}" for name in tokens} <= set(mounted)
    assert all((DEPLOY / source).is_file() for source in mounted.values() if source.startswith("./"))
