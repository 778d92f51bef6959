"""What the command line, the settings and the topics know, for the tests of the texts in deploy/."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
import yaml  # type: ignore[import-untyped]

from pipeline.errors import SettingsError
from services.alert import alert_worker
from services.archive import archive_worker
from services.cameras import GROUP as INGEST
from services.cli.app import app
from services.index import index_worker
from services.query import query_worker
from services.settings import RESERVED, Settings, load_settings
from services.supervisor import WORKERS
from services.topics import CAMERAS, TOPICS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"

PARTITIONS = {spec.name: spec.partitions for spec in TOPICS}
NOTHING: Any = None  # workers are made to be asked their names: nothing is run


def _groups() -> dict[str, tuple[str, ...]]:
    workers = [make(NOTHING, NOTHING) for make in (index_worker, query_worker, alert_worker, archive_worker)]
    return {worker.name: worker._topics for worker in workers} | {INGEST: (CAMERAS,)}


GROUPS = _groups()  # consumer group -> topics it reads


# --------------------------------------------------------------------------------------------- the command line


def wrong_with(command: Sequence[str]) -> str:
    """Why ``sightline COMMAND`` would be refused before it did anything; "" when it would not be."""
    at: Any = typer.main.get_command(app)
    path: list[str] = []
    words = list(command)
    while True:
        options = {
            name: parameter for parameter in at.params for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("-")
        }
        below = getattr(at, "commands", {})
        arguments = []
        while words:
            word = words.pop(0)
            name, _, value = word.partition("=")
            if not word.startswith("-") or word == "-":
                arguments.append(word)
                if below:
                    break
            elif name == "--help":
                return ""
            elif name not in options:
                return f"`sightline {' '.join(path)}` has no option {name}"
            elif not options[name].is_flag and not value:
                if not words:
                    return f"{name} must have a value"
                words.pop(0)
        if not below or (not arguments and at.invoke_without_command):
            return _wrong_arguments(" ".join(path), at, arguments)
        if not arguments:
            return f"`sightline {' '.join(path)}` needs a command"
        path.append(arguments[0])
        if arguments[0] not in below:
            return f"there is no command `sightline {' '.join(path)}`"
        at = below[arguments[0]]


def _wrong_arguments(path: str, command: Any, arguments: Sequence[str]) -> str:
    declared = [parameter for parameter in command.params if not any(name.startswith("-") for name in parameter.opts)]
    needed = [parameter for parameter in declared if parameter.required]
    if len(arguments) < len(needed):
        return f"`sightline {path}` needs {', '.join(parameter.name for parameter in needed)}"
    if len(arguments) > len(declared) and not any(parameter.nargs == -1 for parameter in declared):
        return f"`sightline {path}` takes fewer arguments, got {' '.join(arguments)}"
    if path == "worker" and arguments[0] not in (*WORKERS, "archive"):
        return f"there is no worker {arguments[0]}"
    return ""


def option(command: Sequence[str], name: str) -> str:
    """The value of an option in a command; "" when it is not given."""
    return command[command.index(name) + 1] if name in command else ""


# --------------------------------------------------------------------------------------------------- settings


def settings_of(environment: Mapping[str, str], file: Path | None = None) -> Settings:
    """The settings that a process with this environment would have; raises SettingsError for a key that is none."""
    return load_settings(file, {name: value for name, value in environment.items() if name != "SIGHTLINE_SETTINGS"})


def is_setting(name: str) -> bool:
    """Whether SIGHTLINE_SECTION__KEY is read by anybody."""
    if name in RESERVED:
        return True
    try:
        settings_of({name: "\0"})  # a value that no key takes for another's: only unknown keys are told apart
    except SettingsError as error:
        return "unknown setting" not in str(error)
    return True


def setting_keys() -> set[str]:
    """Every key as ``section.key``."""
    keys = set()
    for section, field in Settings.model_fields.items():
        kind: Any = field.annotation
        keys |= {f"{section}.{key}" for key in getattr(kind, "model_fields", {})}
    return keys


# ------------------------------------------------------------------------------------------------------ texts


def documents(path: Path) -> list[dict[str, Any]]:
    """The YAML documents of a file."""
    return [each for each in yaml.safe_load_all(path.read_text("utf-8")) if each]


def interpolated(value: Any, environment: Mapping[str, str]) -> Any:
    """Compose's ``${NAME:-default}`` and ``${NAME:?why}`` in every text of ``value``; raises KeyError for one that must be set."""
    if isinstance(value, dict):
        return {key: interpolated(each, environment) for key, each in value.items()}
    if isinstance(value, list):
        return [interpolated(each, environment) for each in value]
    if not isinstance(value, str):
        return value

    def filled(match: re.Match[str]) -> str:
        name, operator, rest = match["name"], match["operator"] or "", match["rest"] or ""
        given = environment.get(name, "")
        if not given and operator == ":?":
            raise KeyError(f"{name}: {rest}")
        return given or rest

    return re.sub(r"\$\{(?P<name>\w+)(?:(?P<operator>:[-?])(?P<rest>[^}]*))?\}", filled, value)


def variables(text: str) -> dict[str, str]:
    """The variables that a compose file asks for, with how: ``:-`` (has a default) or ``:?`` (must be set)."""
    return {match[1]: match[2] for match in re.finditer(r"\$\{(\w+)(:[-?])", text)}


def is_pinned(image: str) -> bool:
    """Whether an image names one version: a digest, or a tag with a number in it."""
    if "@sha256:" in image:
        return True
    tag = image.rpartition("/")[2].partition(":")[2]
    return bool(re.search(r"\d", tag)) and tag != "latest"


def missing(path: str) -> bool:
    """Whether a path of the repository is absent."""
    return not (ROOT / path).exists()


def commands_in(shell: str) -> Iterator[list[str]]:
    """Every command in lines of shell, in its words; what it is piped into is the next, where it is sent to is left out."""
    lexer = shlex.shlex(re.sub(r"(^|\s)#.*", "", shell.replace("\\\n", " "), flags=re.M), posix=True, punctuation_chars="|;&()<>\n")
    lexer.whitespace, lexer.commenters, lexer.whitespace_split = " \t", "", True
    command: list[str] | None = []
    for word in [*lexer, "\n"]:
        is_end = set(word) <= set("|;&()<>\n{}")
        if is_end and command and not word.startswith("("):  # that would be the name of a function
            yield command
        if is_end:
            command = [] if set(word) & set("|;&({\n") else None  # None: a word follows that begins no command
        elif word in ("for", "do", "done"):
            command = [] if word == "do" else None
        elif command is not None:
            command.append(word)


def ours_in(shell: str) -> Iterator[list[str]]:
    """Every ``sightline ...`` in lines of shell, without its first word."""
    yield from (command[1:] for command in commands_in(shell) if command[0] == "sightline")
