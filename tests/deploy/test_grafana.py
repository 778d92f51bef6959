"""deploy/grafana: a dashboard that Grafana takes, whose every expression finds something, and provisioning that fits compose.yaml."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.deploy.test_prometheus import DEPLOY, promtool, recorded, series, wrong_with

FOLDER = DEPLOY / "grafana"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text("utf-8"))
PROVISIONING = {path.parent.name: yaml.safe_load(path.read_text("utf-8")) for path in FOLDER.glob("provisioning/*/*.yml")}
ROWS = ["Are all cameras seen", "Is the line keeping up", "Do searches and alerts work", "What went wrong"]
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
SCHEMA_VERSION = 42  # of Grafana 12.2
OF_GRAFANA = {"$__rate_interval": "5m", "$camera": ".*", "$worker": ".*"}


def filled(expression: str) -> str:
    """The expression as Grafana sends it."""
    for name, value in OF_GRAFANA.items():
        expression = expression.replace(name, value)
    return expression


def expressions() -> Iterator[tuple[str, str]]:
    for panel in PANELS:
        yield from ((panel["title"], filled(target["expr"])) for target in panel["targets"])
    yield from ((each["name"], filled(each["expr"])) for each in DASHBOARD["annotations"]["list"])


def mounts() -> dict[str, str]:
    """Path in Grafana's container -> where it is below deploy/."""
    volumes = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]["grafana"]["volumes"]
    parts = [volume.split(":") for volume in volumes]
    return {part[1]: part[0].removeprefix("./") for part in parts if part[0].startswith("./")}


# ------------------------------------------------------------------------------------------------ dashboard


def test_it_is_of_the_version_that_compose_runs() -> None:
    image = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]["grafana"]["image"]
    assert re.search(r"grafana:12\.[2-9]", image)
    assert DASHBOARD["schemaVersion"] == SCHEMA_VERSION
    assert (DASHBOARD["id"], DASHBOARD["uid"]) == (None, "sightline"), "Grafana gives the number, links go by the uid"


def test_ids_and_titles_are_there_once() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert len(set(titles)) == len(titles)


def test_rows_are_the_questions_of_whoever_is_on_duty() -> None:
    assert [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"] == ROWS


def test_no_panel_lies_over_another_or_leaves_the_page() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["w"] > 0
        assert at["h"] > 0
        assert 0 <= at["x"] <= at["x"] + at["w"] <= 24
        for cell in [(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]:
            assert cell not in taken, f"{panel['title']} lies over {taken[cell]}"
            taken[cell] = panel["title"]


def test_lines_of_the_page_are_full() -> None:
    widths: dict[int, int] = {}
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        widths[at["y"]] = widths.get(at["y"], 0) + at["w"]
    assert set(widths.values()) == {24}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_panels_can_be_understood(panel: dict[str, Any]) -> None:
    shown = panel["fieldConfig"]["defaults"]
    assert len(panel["title"]) <= 32
    assert len(panel["description"]) > 20
    assert shown["unit"]
    steps = shown["thresholds"]["steps"]
    assert steps[0]["value"] is None, "the first colour holds from the lowest value on"
    assert [step["value"] for step in steps[1:]] == sorted(step["value"] for step in steps[1:])
    assert all(step["color"] in ("green", "yellow", "red", "blue") for step in steps)
    assert panel["datasource"] == {"type": "prometheus", "uid": PROVISIONING["datasources"]["datasources"][0]["uid"]}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_what_a_panel_asks_for_exists(panel: dict[str, Any]) -> None:
    references = [target["refId"] for target in panel["targets"]]
    assert len(set(references)) == len(references)
    for target in panel["targets"]:
        expression = filled(target["expr"])
        assert "$" not in expression
        assert wrong_with(expression) == []
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            assert re.search(rf"\b{label}\b", expression) or label in ("instance", "job", *labels_of(expression)), label


def labels_of(expression: str) -> set[str]:
    return set().union(*(labels for name, labels in (series() | recorded()).items() if name in expression))


def test_every_metric_is_shown_somewhere() -> None:
    rules = (DEPLOY / "prometheus" / "rules.yml").read_text("utf-8")
    everything = " ".join(expression for _, expression in expressions()) + rules
    families = {re.sub(r"_(bucket|sum|count)$", "", name) if "le" in labels else name for name, labels in series().items()}
    ours = {name for name in families if name.startswith("sightline_") and not re.search(r"_(sum|count)$", name)}
    assert {name for name in ours if name not in everything} <= {"sightline_publish_messages_total"}


def test_every_recorded_number_is_used() -> None:
    alerts = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text("utf-8"))["groups"]
    used = " ".join([expression for _, expression in expressions()] + [rule["expr"] for group in alerts for rule in group["rules"]])
    assert {name for name in recorded() if name not in used} == set()


def test_prometheus_understands_every_expression(tmp_path: Any) -> None:
    rules = [{"record": f"panel:of:{number}", "expr": expression} for number, (_, expression) in enumerate(expressions())]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", file)


def test_one_can_choose_cameras_and_workers() -> None:
    known = series()
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert set(variables) == {"camera", "worker"}
    for name, variable in variables.items():
        match = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
        assert match is not None
        assert match[2] == name
        assert name in known[match[1]]
        assert variable["definition"] == variable["query"]["query"]
        assert (variable["multi"], variable["includeAll"]) == (True, True)
        assert any(f'{name}=~"${name}"' in target["expr"] for panel in PANELS for target in panel["targets"])


def test_choosing_cameras_is_never_forgotten() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            for name, labels in series().items():
                if "camera" in labels and re.search(rf"\b{name}\b", target["expr"]):
                    assert f'{name}{{camera=~"$camera"' in target["expr"], panel["title"]


# --------------------------------------------------------------------------------------------- provisioning


def test_the_data_source_is_prometheus_of_compose() -> None:
    (source,) = PROVISIONING["datasources"]["datasources"]
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]
    port = services["prometheus"]["ports"][0].rpartition(":")[2]
    assert PROVISIONING["datasources"]["apiVersion"] == 1
    assert source["type"] == "prometheus"
    assert source["url"] == f"http://prometheus:{port}"
    interval = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8"))["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval, "Grafana's $__rate_interval is made of it"


def test_compose_mounts_the_provisioning_and_the_dashboard_where_it_is_looked_for() -> None:
    (provider,) = PROVISIONING["dashboards"]["providers"]
    mounted = mounts()
    assert PROVISIONING["dashboards"]["apiVersion"] == 1
    assert mounted["/etc/grafana/provisioning"] == "grafana/provisioning"
    assert mounted[f"{provider['options']['path']}/dashboard.json"] == "grafana/dashboard.json"
    assert all((DEPLOY / source).exists() for source in mounted.values())
