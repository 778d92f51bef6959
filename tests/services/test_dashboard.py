"""deploy/grafana: the dashboard is one that Grafana takes, lies where compose mounts it, and asks for what we and our rules make."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client import Counter, Histogram
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.process_collector import ProcessCollector

from services.metrics import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
GRAFANA = DEPLOY / "grafana"
DASHBOARD = json.loads((GRAFANA / "dashboard.json").read_text("utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
ASKING = [panel for panel in PANELS if panel["type"] != "row"]
COLUMNS = 24
OF_TARGETS = {"job", "instance"}
OF_PROMETHEUS = {"up": frozenset[str](), "ALERTS": frozenset({"alertname", "alertstate", "severity", "camera", "worker", "topic"})}
NAME = re.compile(r"\b(?:sightline[_:][\w:]+|process_\w+|up|ALERTS)\b")
VARIABLES = {"$__rate_interval": "1m", "$camera": ".*", "$worker": ".*"}


# --------------------------------------------------------------------------------------- what there is to ask for


def of_workers() -> dict[str, frozenset[str]]:
    """Every series that our processes show, with its labels."""
    found: dict[str, frozenset[str]] = {}
    for metric in Metrics().registry._collector_to_names:
        if isinstance(metric, ProcessCollector):
            found |= {sample.name: frozenset() for family in metric.collect() for sample in family.samples}
            continue
        name, labels = metric._name, frozenset(metric._labelnames)  # type: ignore[attr-defined]
        if isinstance(metric, Counter):
            found[f"{name}_total"] = labels
        elif isinstance(metric, Histogram):
            found |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
        else:
            found[name] = labels
    return found


def of_the_gateway() -> dict[str, frozenset[str]]:
    """What the gateway shows, after one answer."""
    pytest.importorskip("starlette", reason="the gateway's libraries are not installed")
    from services.api.gateway import Gateway
    from services.api.tally import Tally
    from services.settings import Settings
    from tests.fakes import InMemoryMedia

    tally = Tally()
    Gateway(Settings(), lambda: pytest.fail("nobody connects"), InMemoryMedia(), lambda: None, tally=tally)
    tally.answered("GET", "/live", 200, 0.1)
    families = text_string_to_metric_families(tally.render()[0].decode())
    return {sample.name: frozenset(sample.labels) for family in families for sample in family.samples}


def recorded() -> dict[str, frozenset[str]]:
    """What the rules make, with the labels that they keep."""
    kept = {}
    for group in yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text("utf-8"))["groups"]:
        for rule in group["rules"]:
            if "record" in rule:
                grouped = re.search(r"\bby \(([^)]*)\)", rule["expr"])
                kept[rule["record"]] = frozenset(re.split(r",\s*", grouped[1]) if grouped else ()) - {"le"}
    return kept


@pytest.fixture(scope="module")
def known() -> dict[str, frozenset[str]]:
    return of_workers() | of_the_gateway() | recorded() | OF_PROMETHEUS


def wrong_with(expression: str, known: dict[str, frozenset[str]]) -> list[str]:
    """What an expression names that nobody makes."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    names = set(NAME.findall(bare))
    wrong = [f"metric {name}" for name in sorted(names - set(known))] or ([] if names else ["no metric at all"])
    for name, matchers in re.findall(r"([\w:]+)\{([^}]*)\}", bare):
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
        wrong += [f"label {label} of {name}" for label in sorted(labels - known.get(name, frozenset()) - OF_TARGETS)]
    of_all = set().union(*(known.get(name, frozenset()) for name in names)) | OF_TARGETS
    for listed in re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", bare):
        wrong += [f"label {label}" for label in sorted({each.strip() for each in listed.split(",")} - {""} - of_all)]
    return wrong


def filled(expression: str) -> str:
    """An expression as Grafana sends it."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def targets() -> Iterator[tuple[str, dict[str, Any]]]:
    for panel in ASKING:
        for target in panel["targets"]:
            yield panel["title"], target


# ------------------------------------------------------------------------------------------------ expressions


def test_everything_asked_for_is_made_by_somebody(known: dict[str, frozenset[str]]) -> None:
    assert {title: wrong for title, target in targets() if (wrong := wrong_with(target["expr"], known))} == {}


def test_what_does_not_exist_would_be_told(known: dict[str, frozenset[str]]) -> None:
    assert wrong_with("sum by (camera) (rate(sightline_capture_frames_total[5m]))", known) == []
    assert wrong_with("sightline_capture_frames", known) == ["metric sightline_capture_frames"]
    assert wrong_with('sightline_capture_frames_total{worker="a"}', known) == ["label worker of sightline_capture_frames_total"]
    assert wrong_with("sum by (worker) (sightline_capture_frames_total)", known) == ["label worker"]
    assert wrong_with("vector(1)", known) == ["no metric at all"]


def test_legends_name_labels_that_are_left(known: dict[str, frozenset[str]]) -> None:
    for title, target in targets():
        asked = re.search(r"\bby \(([^)]*)\)", target["expr"])
        (name, *_) = NAME.findall(target["expr"])
        left = set(re.split(r",\s*", asked[1])) if asked else known[name] | OF_TARGETS
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= left, title


def test_prometheus_can_read_every_expression(tmp_path: Path) -> None:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    rules = [{"record": f"asked:{number}", "expr": filled(target["expr"])} for number, (_, target) in enumerate(targets())]
    assert not any("$" in rule["expr"] for rule in rules), "a variable that no test fills"
    file = tmp_path / "asked.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    run = subprocess.run([tool, "check", "rules", file], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_delays_and_shares_are_asked_of_the_rules_that_alerts_use() -> None:
    """One meaning of each figure: what a quantile leaves out is decided in rules.yml alone."""
    assert [title for title, target in targets() if "histogram_quantile" in target["expr"]] == []
    assert {name for _, target in targets() for name in re.findall(r"sightline:[\w:]+", target["expr"])} == set(recorded())


# ------------------------------------------------------------------------------------------------------ shape


def test_it_is_a_dashboard_of_a_current_schema() -> None:
    assert DASHBOARD["schemaVersion"] >= 40
    assert (DASHBOARD["uid"], DASHBOARD["title"]) == ("sightline", "Sightline")
    assert "id" not in DASHBOARD  # it is Grafana's to give
    assert {panel["type"] for panel in PANELS} <= {"row", "stat", "timeseries", "state-timeline", "table"}


def test_panels_have_ids_and_titles_of_their_own() -> None:
    for field in ("id", "title"):
        values = [panel[field] for panel in PANELS]
        assert len(set(values)) == len(values), field


def test_panels_lie_side_by_side() -> None:
    def spot(panel: dict[str, Any]) -> tuple[int, int, int, int]:
        at = panel["gridPos"]
        return at["x"], at["y"], at["x"] + at["w"], at["y"] + at["h"]

    for panel in PANELS:
        left, top, right, bottom = spot(panel)
        assert left >= 0 <= top < bottom, panel["title"]
        assert left < right <= COLUMNS, panel["title"]
    for one, other in combinations(PANELS, 2):
        a, b = spot(one), spot(other)
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], f"{one['title']} lies on {other['title']}"
    assert [spot(panel)[1] for panel in PANELS] == sorted(spot(panel)[1] for panel in PANELS)


def test_the_rows_are_the_questions_of_whoever_is_on_duty() -> None:
    rows = [panel for panel in PANELS if panel["type"] == "row"]
    assert [row["title"] for row in rows] == [
        "Are all cameras seen?",
        "Is the line keeping up?",
        "Do searches and alerts work?",
        "What went wrong?",
    ]
    starts = [PANELS.index(row) for row in rows] + [len(PANELS)]
    assert all(after - before > 5 for before, after in pairwise(starts))


@pytest.mark.parametrize("panel", ASKING, ids=lambda panel: panel["title"])
def test_every_panel_says_what_it_shows_and_asks_for_it(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["targets"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    assert all(target["datasource"] == panel["datasource"] and target["instant"] != target["range"] for target in panel["targets"])
    assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["value"] is None


def test_parts_of_the_runbook_that_panels_name_exist() -> None:
    headings = set(re.findall(r"^#+ (.*)$", (DEPLOY / "RUNBOOK.md").read_text("utf-8"), flags=re.M))
    named = {match for panel in ASKING for match in re.findall(r"Runbook: ([\w ]+)\.", panel["description"])}
    assert len(named) >= 10
    assert named <= headings


def test_one_can_look_at_one_camera_and_one_worker(known: dict[str, frozenset[str]]) -> None:
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert set(variables) == {"datasource", "camera", "worker"}
    for name in ("camera", "worker"):
        assert variables[name]["includeAll"]
        assert variables[name]["multi"]
        asked = variables[name]["query"]["query"]
        for metric in re.findall(r"sightline_\w+", asked):
            assert name in known[metric]
        assert sum(f"${name}" in target["expr"] for _, target in targets()) >= 5


# ----------------------------------------------------------------------------------------------- provisioning


def test_the_datasource_that_is_provisioned_is_the_one_that_is_asked() -> None:
    (file,) = (GRAFANA / "provisioning" / "datasources").glob("*.yml")
    sources = yaml.safe_load(file.read_text("utf-8"))["datasources"]
    (usual,) = [each for each in sources if each.get("isDefault")]
    variable = next(each for each in DASHBOARD["templating"]["list"] if each["name"] == "datasource")
    assert (usual["type"], usual["uid"]) == (variable["query"], variable["current"]["value"])
    port = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]["prometheus"]["ports"][0].rpartition(":")[2]
    assert usual["url"] == f"http://prometheus:{port}"


def test_the_dashboard_is_mounted_where_it_is_looked_for() -> None:
    (file,) = (GRAFANA / "provisioning" / "dashboards").glob("*.yml")
    (provider,) = yaml.safe_load(file.read_text("utf-8"))["providers"]
    volumes = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]["grafana"]["volumes"]
    mounted = {each.split(":")[1]: each.split(":")[0] for each in volumes}
    assert mounted[f"{provider['options']['path']}/dashboard.json"] == "./grafana/dashboard.json"
    assert mounted["/etc/grafana/provisioning"] == "./grafana/provisioning"
