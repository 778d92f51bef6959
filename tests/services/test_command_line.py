"""The command line as a user meets it: documented, quick, and clear about bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from services.cli.app import app

ROOT = Path(__file__).parents[2]


def commands() -> list[str]:
    """All commands that help shows, groups spelled out: "watch add"."""
    found = []
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        if command.hidden:
            continue
        below = getattr(command, "commands", None)
        found += [f"{name} {each}" for each in below] if below else [name]
    return found


def sightline(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-m", "services", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", commands())
def test_every_command_is_documented_in_the_readme(command: str) -> None:
    assert f"sightline {command}" in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("command", commands())
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_settings_shows_every_key_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["settings", "--json"])
    assert json.loads(result.output)["detect.model"] == "detector-retriever"


def test_a_settings_typo_stops_the_start_with_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "sightline.toml").write_text("[detect]\nbatchsize = 3\n")
    run = sightline("settings", folder=tmp_path)
    assert run.returncode == 2
    assert run.stderr.startswith("sightline: unknown setting detect.batchsize")
    assert "Traceback" not in run.stderr


def test_a_search_without_a_purpose_is_refused(tmp_path: Path) -> None:
    run = sightline("search", "red jacket", folder=tmp_path)
    assert run.returncode == 2
    assert "must say why" in run.stderr


def test_a_time_that_is_no_time_is_named(tmp_path: Path) -> None:
    run = sightline("search", "red jacket", "--from", "teatime", "--purpose", "test", folder=tmp_path)
    assert run.returncode == 2
    assert "'teatime'" in run.stderr


def test_up_without_cameras_says_what_to_add(tmp_path: Path) -> None:
    run = sightline("up", folder=tmp_path)
    assert run.returncode == 2
    assert "[[cameras]]" in run.stderr
