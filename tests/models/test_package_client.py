"""Archives come by the machine's own clients, and an error says what to do."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from models.package_client import PackageClient
from pipeline.errors import SourceUnavailableError


class Client:
    """Stands for npm and pip: notes the commands, fails or leaves an archive."""

    def __init__(self, returncode: int = 0, said: str = "", archive: str = "thing-1.0.0.tgz") -> None:
        self.commands: list[list[str]] = []
        self.returncode, self.said, self.archive = returncode, said, archive

    def __call__(self, command: list[str], cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.archive and not self.returncode:
            (Path(cwd) / self.archive).write_bytes(b"archive")
        return subprocess.CompletedProcess(command, self.returncode, "", self.said)


@pytest.fixture
def npm_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")


@pytest.mark.usefixtures("npm_is_here")
@pytest.mark.parametrize(("ecosystem", "asked"), [("npm", "thing@1.0.0"), ("pypi", "thing==1.0.0")])
def test_one_version_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ecosystem: str, asked: str) -> None:
    client = Client()
    monkeypatch.setattr(subprocess, "run", client)
    assert PackageClient(tmp_path / "tools").archive(ecosystem, "thing", "1.0.0", tmp_path).read_bytes() == b"archive"
    assert client.commands[0][-1] == asked


def test_a_wheel_of_another_machine_can_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(archive="thing.whl")
    monkeypatch.setattr(subprocess, "run", client)
    PackageClient(tmp_path / "tools").archive("pypi", "thing", "1.0.0", tmp_path, wheel="3.11 manylinux_2_28_x86_64")
    command = " ".join(client.commands[0])
    assert " download --only-binary=:all: --python-version 3.11 --platform manylinux_2_28_x86_64 --quiet " in command
    assert command.endswith("thing==1.0.0")


@pytest.mark.usefixtures("npm_is_here")
@pytest.mark.parametrize("ecosystem", ["npm", "pypi"])
def test_offline_the_error_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ecosystem: str) -> None:
    monkeypatch.setattr(subprocess, "run", Client(1, "network unreachable"))
    with pytest.raises(SourceUnavailableError, match=r"network unreachable.*sightline weights fetch"):
        PackageClient(tmp_path / "tools").archive(ecosystem, "thing", "1.0.0", tmp_path)


@pytest.mark.usefixtures("npm_is_here")
def test_a_client_that_leaves_nothing_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", Client(archive=""))
    with pytest.raises(SourceUnavailableError, match="no archive"):
        PackageClient(tmp_path / "tools").archive("npm", "thing", "1.0.0", tmp_path)


def test_without_npm_a_packaged_one_is_tried_and_named_when_it_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(subprocess, "run", Client(1, "network unreachable"))
    with pytest.raises(SourceUnavailableError, match="npm"):
        PackageClient(tmp_path / "tools").archive("npm", "thing", "1.0.0", tmp_path)
    assert not (tmp_path / "tools" / "nodejs").exists()
