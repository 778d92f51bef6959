from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.errors import NotFoundError
from pipeline.types import Probe, Watch
from services import wire
from services.adapters.sqlite_broker import SqliteBroker
from services.settings import Settings, StorageSettings
from services.topics import WATCHES, create_all
from services.watches import read_watches, remove_watch, watches_in_force


def settings_in(folder: Path) -> Settings:
    return Settings(storage=StorageSettings(data_folder=folder))


def put(folder: Path, *watches: Watch) -> None:
    with closing(SqliteBroker(folder / "log.sqlite")) as broker:
        create_all(broker)
        for watch in watches:
            broker.produce(WATCHES, wire.encode(watch), key=watch.watch_id.encode())
        broker.flush()


def watch(name: str, **changes: object) -> Watch:
    return Watch(name, (Probe("text", text="red coat"),), 0.5, **changes)  # type: ignore[arg-type]


def test_expired_watches_are_not_in_force(tmp_path: Path) -> None:
    put(tmp_path, watch("old", expires_at_ns=1), watch("new", expires_at_ns=time.time_ns() + 10**12))
    assert [each.watch_id for each in watches_in_force(settings_in(tmp_path))] == ["new"]


def test_a_removed_watch_is_gone_and_leaves_a_record(tmp_path: Path) -> None:
    put(tmp_path, watch("a"), watch("b"))
    remove_watch(settings_in(tmp_path), "a", "operator", "found")
    with closing(SqliteBroker(tmp_path / "log.sqlite")) as broker:
        assert set(read_watches(broker)) == {"b"}
        assert sum(broker.end_offsets("audit").values()) == 1


def test_a_watch_that_is_not_there_cannot_be_removed(tmp_path: Path) -> None:
    put(tmp_path)
    with pytest.raises(NotFoundError, match="watch list"):
        remove_watch(settings_in(tmp_path), "nothing", "operator", "")
