"""The search bench at a small size gives every figure and keeps recall."""

from pathlib import Path

import pytest

from pipeline.errors import BadInputError
from services.bench_search import bench_search


def test_the_bench_reports_recall_latency_and_opening_and_cleans_up(tmp_path: Path) -> None:
    folder = tmp_path / "bench"
    report = bench_search(6000, 32, folder, probes=3, segment_size=2500, top_k=20)
    assert not folder.exists()
    assert set(report["filters"]) == {"camera 0.1 %", "camera 10 %", "time 0.1 %", "time 10 %", "all 100 %"}
    assert report["filters"]["time 10 %"]["passing"] == 600
    assert all(result["recall"] >= 0.98 for result in report["filters"].values())
    assert all(result["ratio_to_bare_flat"] > 0 for result in report["filters"].values())
    assert report["opening"]["open_and_first_answer_s"] > 0


def test_a_folder_that_is_there_is_never_removed(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="must not exist yet"):
        bench_search(10, 8, tmp_path)
    assert tmp_path.exists()
