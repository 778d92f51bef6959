from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import numpy as np

from pipeline.types import CropReference, Embedding, Filter, Tracklet
from services.adapters.disk_media import DiskMedia
from services.adapters.faiss_gallery import FaissGallery
from services.retention import DAY_NS, expire_tracklets, keep_retention
from services.settings import IndexSettings, Settings, StorageSettings


def tracklet(name: str, days_ago: float) -> Tracklet:
    at = time.time_ns() - int(days_ago * DAY_NS)
    crop = CropReference(f"gate/{name}.jpg", at, (0.0, 0.0, 4.0, 8.0), 0.5)
    body = Embedding("body", "test@1", np.ones(16, np.float32))
    return Tracklet(name, 1, "gate", at, at, np.asarray([at]), np.zeros((1, 4)), np.ones(1), (body,), crops=(crop,), is_closed=True)


def settings_with(folder: Path, days: float) -> Settings:
    settings = Settings(storage=StorageSettings(data_folder=folder), index=IndexSettings(retention_days=days))
    media = DiskMedia(folder / "crops")
    with closing(FaissGallery(folder / "index")) as gallery:
        gallery.upsert([tracklet("old", 40), tracklet("new", 1)])
    for name in ("old", "new"):
        media.put(f"gate/{name}.jpg", b"picture")
    return settings


def left(folder: Path) -> tuple[list[str], list[str]]:
    with closing(FaissGallery(folder / "index", read_only=True)) as gallery:
        ids = [each.tracklet_id for each in gallery.scan(Filter())]
    return ids, sorted(path.stem for path in (folder / "crops").rglob("*.jpg"))


def test_expire_removes_the_old_and_their_crops(tmp_path: Path) -> None:
    assert expire_tracklets(settings_with(tmp_path, 30), 0, "operator") == 1
    assert left(tmp_path) == (["new"], ["new"])


def test_the_index_worker_keeps_the_retention_while_it_runs(tmp_path: Path) -> None:
    settings = settings_with(tmp_path, 30)
    with closing(FaissGallery(tmp_path / "index")) as gallery, keep_retention(settings, gallery, every_s=0.05):
        ends_at = time.monotonic() + 5
        while gallery.statistics().tracklets > 1 and time.monotonic() < ends_at:
            time.sleep(0.02)
    assert left(tmp_path) == (["new"], ["new"])


def test_without_a_retention_nothing_is_removed(tmp_path: Path) -> None:
    settings = settings_with(tmp_path, 0)
    assert expire_tracklets(settings, 0, "operator") == 0
    with closing(FaissGallery(tmp_path / "index")) as gallery, keep_retention(settings, gallery, every_s=0.01):
        time.sleep(0.05)
    assert left(tmp_path)[0] == ["old", "new"]
