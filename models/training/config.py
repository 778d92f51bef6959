"""The recipe of the detector-retriever: what detector_retriever.toml may hold, with the defaults."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pipeline.errors import SettingsError

RECIPE = Path(__file__).with_name("detector_retriever.toml")


@dataclass(frozen=True)
class DataConfig:
    crop_views: int = 3
    scene_rounds: int = 3
    share_as_it_is: float = 0.45
    share_altered: float = 0.25
    held_out_people: int = 152
    held_out_seed: int = 0


@dataclass(frozen=True)
class PeopleConfig:
    steps: int = 1500
    pairs: int = 64
    learning_rate: float = 5e-4
    trunk_learning_rate: float = 3e-4
    weight_decay: float = 0.1
    dropout: float = 0.5
    late_stage: bool = True
    checkpoint_every: int = 100
    examine_every: int = 500


@dataclass(frozen=True)
class LossConfig:
    contrast: float = 1.0
    reidentification: float = 1.0
    oim: float = 0.3
    cmpm: float = 0.5
    cmpc: float = 0.05
    cross_scale: float = 0.1
    attributes: float = 1.0
    teacher: float = 1.0


@dataclass(frozen=True)
class ConditioningConfig:
    steps: int = 350
    scenes: int = 16
    queries: int = 8
    learning_rate: float = 2e-3
    confidence: float = 1.0
    gates: float = 1.0
    label: float = 0.3
    rebuild: float = 0.1
    offset: float = 0.1


@dataclass(frozen=True)
class Config:
    """The recipe; every key of the TOML file."""

    seed: int = 0
    threads: int = 1
    device: str = "auto"
    precision: str = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    people: PeopleConfig = field(default_factory=PeopleConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)


def read_config(path: Path | None, changes: Sequence[str] = ()) -> Config:
    """The recipe of a TOML file (None: the defaults) with ``changes`` such as "losses.oim=0". Raises SettingsError for an unknown key."""
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text("utf-8")) if path else {}
        for change in changes:
            key, _, value = change.partition("=")
            section, _, name = key.rpartition(".")
            target = values.setdefault(section, {}) if section else values
            target[name] = tomllib.loads(f"value = {value}")["value"]
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"the recipe must be a readable TOML file, changes KEY=VALUE: {error}") from error
    made: dict[str, Any] = {}
    for name, kind in {"data": DataConfig, "people": PeopleConfig, "losses": LossConfig, "conditioning": ConditioningConfig}.items():
        made[name] = _section(name, kind, values.pop(name, {}))
    result = _section("", Config, {**values, **made})
    assert isinstance(result, Config)
    return result


def _section(name: str, kind: type[Any], values: Mapping[str, Any]) -> Any:
    allowed = {each.name: each for each in fields(kind)}
    for key in values:
        if key not in allowed:
            raise SettingsError(f"unknown key {f'{name}.' if name else ''}{key} in the recipe; allowed here: {', '.join(allowed)}")
    return kind(**values)
