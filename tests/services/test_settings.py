from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import SettingsError
from services.settings import describe, load_settings


def write(folder: Path, text: str) -> Path:
    path = folder / "sightline.toml"
    path.write_text(text)
    return path


def test_without_a_file_the_defaults_are_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings(environment={}).detect.model == "detector-retriever"


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "[detect]\nbatch_size = 8\nthreads = 2\n")
    settings = load_settings(file, {"SIGHTLINE_DETECT__BATCH_SIZE": "16"})
    assert (settings.detect.batch_size, settings.detect.threads) == (16, 2)


def test_an_unknown_key_is_refused_with_the_allowed_ones(tmp_path: Path) -> None:
    file = write(tmp_path, "[detect]\nbatchsize = 8\n")
    with pytest.raises(SettingsError, match=r"unknown setting detect\.batchsize; allowed here: .*batch_size"):
        load_settings(file, {})


def test_an_unknown_variable_of_the_environment_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"unknown setting detct"):
        load_settings(write(tmp_path, ""), {"SIGHTLINE_DETCT__THREADS": "2"})


def test_a_value_out_of_range_is_refused_with_key_value_and_range(tmp_path: Path) -> None:
    file = write(tmp_path, "[detect]\nbatch_size = 0\n")
    with pytest.raises(SettingsError, match=r"detect\.batch_size = 0: .*greater than or equal to 1"):
        load_settings(file, {})


def test_a_missing_settings_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nothing\.toml must exist"):
        load_settings(tmp_path / "nothing.toml", {})


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="must be TOML"):
        load_settings(write(tmp_path, "detect: {"), {})


def test_secrets_are_masked_where_settings_are_shown(tmp_path: Path) -> None:
    file = write(tmp_path, '[[cameras]]\ncamera_id = "gate"\nuri = "rtsp://bob:tuna@host/1"\n')
    shown = str(describe(load_settings(file, {})))
    assert "tuna" not in shown
    assert "rtsp://***@host/1" in shown


@pytest.mark.parametrize(
    "camera",
    [
        'camera_id = "gate"\nsampling_hz = "rtsp://bob:tuna@host/1"',  # the address in the wrong place
        'uri = "rtsp://bob:tuna@host/1"',  # no name: the whole table is the wrong value
    ],
)
def test_a_secret_is_not_echoed_by_an_error_beside_it(tmp_path: Path, camera: str) -> None:
    with pytest.raises(SettingsError, match="cameras") as caught:
        load_settings(write(tmp_path, f"[[cameras]]\n{camera}\n"), {})
    assert "tuna" not in str(caught.value)


def test_every_setting_has_a_description(tmp_path: Path) -> None:
    assert [key for key, _, text in describe(load_settings(write(tmp_path, ""), {})) if not text] == []
