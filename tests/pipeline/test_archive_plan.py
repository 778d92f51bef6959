"""How footage is cut into jobs."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from pipeline.archive import Footage, job_key, plan_jobs
from pipeline.types import Camera


def footage(duration_s: float, uri: str = "a.mp4", fingerprint: str = "") -> Footage:
    return Footage(Camera("north", uri), duration_s, fingerprint)


def test_a_short_file_is_one_job_to_its_end() -> None:
    (job,) = plan_jobs([footage(599.0)])
    assert (job.shard, job.from_s, job.to_s) == (0, 0.0, 0.0)


def test_a_long_file_is_cut_every_ten_minutes_and_its_rest_joins_the_last() -> None:
    assert [(j.shard, j.from_s, j.to_s) for j in plan_jobs([footage(1850.0)])] == [(0, 0, 600), (1, 600, 1200), (2, 1200, 0)]
    assert len(plan_jobs([footage(1501.0)])) == 3
    assert len(plan_jobs([footage(1499.0)])) == 2


def test_a_file_of_unknown_length_is_one_job() -> None:
    assert [(j.from_s, j.to_s) for j in plan_jobs([footage(0.0)])] == [(0.0, 0.0)]


def test_shards_cover_every_moment_once() -> None:
    rng = random.Random(2)
    for _ in range(200):
        duration_s, shard_s = rng.uniform(0, 10_000), rng.uniform(1, 2000)
        jobs = plan_jobs([footage(duration_s)], shard_s)
        assert jobs[0].from_s == 0.0
        assert jobs[-1].to_s == 0.0
        assert all(left.to_s == right.from_s for left, right in pairwise(jobs))
        assert all(job.to_s - job.from_s == pytest.approx(shard_s) for job in jobs[:-1])
        assert duration_s - jobs[-1].from_s <= 1.5 * shard_s + 1e-6


def test_the_same_footage_gives_the_same_jobs_and_other_footage_others() -> None:
    pieces = [footage(1800.0), footage(1800.0, "b.mp4"), footage(1800.0, "b.mp4", "changed")]
    assert plan_jobs(pieces) == plan_jobs(pieces)
    assert len({job_key(job) for job in plan_jobs(pieces)}) == 9
    assert len({job.job_id for job in [*plan_jobs(pieces[:1]), *plan_jobs(pieces[:1], 300.0)]}) == 2


def test_impossible_plans_are_refused() -> None:
    with pytest.raises(ValueError, match="shard_s"):
        plan_jobs([footage(10.0)], 0)
    with pytest.raises(ValueError, match="duration_s"):
        footage(float("nan"))
