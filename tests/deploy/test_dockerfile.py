"""deploy/docker/Dockerfile: both images, what goes into them, and who they run as."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from services.health import HealthServer
from services.settings import Settings
from services.wiring import BASE_WEIGHTS
from tests.deploy.known import DEPLOY, ROOT, is_pinned, is_setting, wrong_with

FILE = DEPLOY / "docker" / "Dockerfile"
IGNORE = FILE.with_name("Dockerfile.dockerignore")
TARGETS = ("cpu", "gpu")
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|CREDENTIAL|PRIVATE|_KEY\b", re.I)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@dataclass(frozen=True)
class Stage:
    """FROM source AS name, and its instructions as (word, the rest)."""

    source: str
    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        return [rest for each, rest in self.instructions if each == word]


def stages(path: Path = FILE) -> list[Stage]:
    """The stages of a Dockerfile, in order."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text("utf-8"), flags=re.M)
    found: list[Stage] = []
    for line in re.sub(r"\\\n", "", text).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            source, _, name = rest.partition(" AS ")
            found.append(Stage(source, name))
        elif word:
            found[-1].instructions.append((word, rest.strip()))
    return found


def lineage(target: str) -> list[Stage]:
    """A stage and those it is made from, the farthest first."""
    by_name = {stage.name: stage for stage in stages()}
    found = [by_name[target]]
    while found[0].source in by_name:
        found.insert(0, by_name[found[0].source])
    return found


def environment_of(target: str) -> dict[str, str]:
    """What ENV sets in an image."""
    words = [word for stage in lineage(target) for rest in stage.all("ENV") for word in shlex.split(rest)]
    return dict(word.split("=", 1) for word in words)


def last(target: str, word: str) -> str:
    return [rest for stage in lineage(target) for rest in stage.all(word)][-1]


def runs() -> list[tuple[str, str]]:
    return [(stage.name, rest) for stage in stages() for rest in stage.all("RUN")]


def test_both_images_can_be_asked_for() -> None:
    assert set(TARGETS) <= {stage.name for stage in stages()}


def test_every_base_image_is_pinned_or_a_stage_before() -> None:
    before: set[str] = set()
    for stage in stages():
        assert stage.source in before or is_pinned(stage.source), stage
        before.add(stage.name)


def test_the_base_has_a_python_that_the_project_takes() -> None:
    version = re.search(r"^python:(\d+\.\d+)", lineage("cpu")[0].source)
    assert version is not None
    assert f">={version[1]}" == PROJECT["requires-python"], "the versions in requirements.lock passed the tests with this one"


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_a_fixed_user_without_rights(target: str) -> None:
    user, _, group = last(target, "USER").partition(":")
    assert int(user) >= 10_000
    assert int(group) >= 10_000
    assert lineage(target)[-1].instructions[-1] == ("USER", f"{user}:{group}")
    (made,) = [rest for _, rest in runs() if "useradd" in rest]
    assert f"--uid {user}" in made
    assert f"-o {user} -g {group}" in made, "its folders are its own"


@pytest.mark.parametrize("target", TARGETS)
def test_every_variable_of_an_image_is_a_setting(target: str) -> None:
    environment = environment_of(target)
    assert [name for name in environment if name.startswith("SIGHTLINE_") and not is_setting(name)] == []


def test_the_gpu_image_works_on_the_gpu_as_it_is() -> None:
    environment = environment_of("gpu")
    assert environment["SIGHTLINE_DETECT__DEVICE"] == "cuda"
    assert environment["SIGHTLINE_EMBED__VECTORS"] == "frame", "the device is used in the one-pass way alone"
    assert environment["NVIDIA_VISIBLE_DEVICES"]


def test_ports_are_those_of_the_settings() -> None:
    settings = Settings()
    assert last("cpu", "EXPOSE").split() == [str(settings.server.port), str(settings.api.port)]


def test_nothing_is_fetched_or_unpacked_unseen() -> None:
    assert [rest for stage in stages() for rest in stage.all("ADD")] == []
    assert [run for _, run in runs() if re.search(r"\b(curl|wget)\b|https?://", run)] == []


def test_no_secret_goes_into_a_layer() -> None:
    names = [rest for stage in stages() for word in ("ENV", "ARG", "LABEL") for rest in stage.all(word)]
    assert [rest for rest in names if SECRET.search(rest)] == []
    assert [run for _, run in runs() if SECRET.search(run)] == []


def test_what_is_copied_is_there_and_is_sent_to_the_builder() -> None:
    for stage in stages():
        for rest in stage.all("COPY"):
            words = [word for word in rest.split() if not word.startswith("--")]
            if "--from=" in rest:
                assert rest.split("--from=")[1].split()[0] in {each.name for each in stages()}
                continue
            for source in words[:-1]:
                assert (ROOT / source).exists(), source
                assert is_sent(source), f"{source} is left out by {IGNORE.name}"


def is_sent(path: str) -> bool:
    """Whether the builder gets a path, by the rules of a .dockerignore file: the last that matches holds."""
    verdict = True
    for line in IGNORE.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.lstrip("!").removeprefix("**/")
        parts = [path, *(str(parent) for parent in Path(path).parents), Path(path).name]
        if any(fnmatch.fnmatch(part, pattern) for part in parts if part != "."):
            verdict = line.startswith("!")
    return verdict


@pytest.mark.parametrize(
    "path", [".git/config", "deploy/.env", ".env", "services/.env", ".venv/bin/python", "tests/fakes.py", "services/__pycache__/x.pyc"]
)
def test_secrets_data_and_what_is_not_needed_stay_here(path: str) -> None:
    assert not is_sent(path)


def test_every_library_has_the_version_that_passed_the_tests() -> None:
    for name, run in runs():
        for command in re.findall(r"pip (?:install|wheel) [^&]*", run):
            assert "-c requirements.lock" in command or "--no-deps" in command, f"{name}: {command}"
            assert "--no-cache-dir" in command, f"{name}: {command}"


def test_the_lines_that_list_libraries_list_those_of_the_project() -> None:
    optional = PROJECT["optional-dependencies"]
    (extras,) = [rest.partition("=")[2].strip('"') for stage in stages() if stage.name == "libraries" for rest in stage.all("ARG")]
    wanted = {
        "libraries": PROJECT["dependencies"] + [each for extra in extras.split() for each in optional[extra]],
        "libraries-gpu": optional["torch"],
    }
    for name, run in runs():
        if "tomllib" in run:
            code = shlex.split(run.split("&&")[0].replace("$EXTRAS", extras))
            assert code[:2] == ["python", "-c"]
            given = subprocess.run([sys.executable, *code[1 : code.index(">")]], cwd=ROOT, capture_output=True, text=True, check=True)
            assert given.stdout.splitlines() == wanted.pop(name)
    assert wanted == {}


def test_the_weights_in_the_image_are_those_that_workers_need() -> None:
    (weights,) = [stage for stage in stages() if stage.name == "weights"]
    (given,) = weights.all("ARG")
    assert given == f'WEIGHTS="{" ".join(BASE_WEIGHTS)}"'
    (run,) = weights.all("RUN")
    commands = [shlex.split(each) for each in run.replace("$WEIGHTS", " ".join(BASE_WEIGHTS)).split("&&")]
    assert {wrong_with(command[1:]) for command in commands if command[0] == "sightline"} == {""}
    assert all(environment_of(target)["SIGHTLINE_CACHE"] in " ".join(lineage(target)[-1].all("COPY")) for target in TARGETS)


def test_a_word_that_nobody_knows_makes_the_vectors_of_all_known_ones() -> None:
    from pipeline.search.description import parse

    asked: list[str] = []
    (run,) = [run for stage, run in runs() if stage == "weights"]
    words = re.search(r"parse\('([^']*)'\)", run)
    assert words is not None
    parse(words[1], asked.append)
    assert asked, "every word is known: the layer would hold no vectors"


@pytest.mark.parametrize("target", TARGETS)
def test_the_entry_point_is_the_project_command_and_starts_something(target: str) -> None:
    (entry,) = json.loads(last(target, "ENTRYPOINT"))
    assert entry in PROJECT["scripts"]
    assert wrong_with(json.loads(last(target, "CMD"))) == ""


def test_the_health_check_tells_a_process_that_answers_from_one_that_does_not() -> None:
    _, _, command = last("cpu", "HEALTHCHECK").partition("CMD ")
    python, *rest = json.loads(command)
    assert python == "python"

    def check(url: str) -> int:
        return subprocess.run([sys.executable, *rest], env={"HEALTH_URL": url}, capture_output=True, check=False).returncode

    with HealthServer(lambda: (b"", "text/plain")) as server:
        server.register("broker", lambda: "not there yet")
        assert check(f"http://127.0.0.1:{server.port}/live") == 0, "who waits for the broker lives"
        assert check(f"http://127.0.0.1:{server.port}/nowhere") != 0
        gone = server.port
    assert check(f"http://127.0.0.1:{gone}/live") != 0
    assert environment_of("cpu")["HEALTH_URL"] == f"http://127.0.0.1:{Settings().server.port}/live"


def test_a_linter_finds_nothing() -> None:
    linter = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if linter is None:
        pytest.skip("hadolint is not installed")
    run = subprocess.run([linter, str(FILE)], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "")
