from __future__ import annotations

from pathlib import Path

from services.settings import load_settings


def test_the_example_settings_are_valid() -> None:
    settings = load_settings(Path(__file__).parents[2] / "deploy" / "sightline.example.toml", {})
    gate, yard = settings.camera_list()
    assert gate.sampling_hz == 10.0
    assert yard.sampling_hz == 5.0
    assert gate.zones["entrance"][0] == (100.0, 400.0)
    assert gate.is_live
