"""Capture decisions: sampling, time, gaps, waiting."""

from __future__ import annotations

import random
import threading
from itertools import pairwise

import pytest

from pipeline.capture import (
    Clock,
    CoverageAccount,
    Part,
    Sampler,
    is_late,
    start_of_file,
    time_in_name,
    time_of_metadata,
    without_credentials,
)
from pipeline.types import Gap

SECOND = 1_000_000_000
NOVEMBER = 1_795_233_600 * SECOND  # 2026-11-21T04:00:00Z


def times(rate_hz: float, seconds: float, jitter_s: float = 0.0, seed: int = 1) -> list[int]:
    rng = random.Random(seed)
    return [round((n / rate_hz + rng.uniform(-jitter_s, jitter_s)) * SECOND) for n in range(round(rate_hz * seconds))]


def kept(offsets: list[int], sampling_hz: float) -> list[int]:
    sampler = Sampler(sampling_hz)
    return [offset for offset in offsets if sampler.keep(offset)]


@pytest.mark.parametrize(("source_hz", "wished_hz"), [(25, 5), (25, 10), (30, 7), (29.97, 4), (60, 24), (12.5, 3)])
def test_the_wished_rate_is_kept_over_an_hour_without_drift(source_hz: float, wished_hz: float) -> None:
    assert len(kept(times(source_hz, 3600), wished_hz)) == pytest.approx(3600 * wished_hz, abs=2)


@pytest.mark.parametrize("source_hz", [25, 29.97, 10])
def test_rate_zero_keeps_every_frame(source_hz: float) -> None:
    assert kept(times(source_hz, 60), 0.0) == times(source_hz, 60)


@pytest.mark.parametrize("wished_hz", [25, 30, 100])
def test_a_source_no_faster_than_wished_loses_nothing_to_its_jitter(wished_hz: float) -> None:
    frames = times(25, 60, jitter_s=0.001)
    assert kept(frames, wished_hz) == frames


def test_variable_frame_rate_is_sampled_by_time_not_by_count() -> None:
    slow_then_fast = [n * SECOND // 2 for n in range(20)] + [10 * SECOND + n * SECOND // 50 for n in range(500)]
    chosen = kept(slow_then_fast, 5.0)
    assert sum(offset < 10 * SECOND for offset in chosen) == 20  # 2 a second is less than wished: all
    assert sum(offset >= 10 * SECOND for offset in chosen) == 50  # 50 a second is more: 5


@pytest.mark.parametrize("wished_hz", [3.0, 7.0, 10.0])
def test_a_part_keeps_the_frames_the_whole_keeps(wished_hz: float) -> None:
    whole = times(25, 20, jitter_s=0.002)
    for cut in range(100, 400, 37):
        sampler = Sampler(wished_hz)
        sampler.keep(whole[cut - 1])  # one frame of history
        second = [offset for offset in whole[cut:] if sampler.keep(offset)]
        assert second == [offset for offset in kept(whole, wished_hz) if offset >= whole[cut]]


def test_neighbouring_parts_share_no_frame_and_lose_none() -> None:
    first, second = Part(0, 10.1), Part(10.1, 0)
    assert all(first.holds(offset) != second.holds(offset) for offset in times(29.97, 30))
    assert Part(0, 10).holds(-SECOND)  # a frame before the nominal start belongs to the first part
    with pytest.raises(ValueError, match="0 <= from_s < to_s"):
        Part(5, 5)


def test_a_file_counts_from_its_start_and_goes_on_where_its_time_jumps_back() -> None:
    clock = Clock(NOVEMBER)
    stamps = [clock.utc_ns(offset) for offset in (0, SECOND // 10, SECOND // 5, 0, SECOND // 10)]
    assert [stamp - NOVEMBER for stamp in stamps] == [0, SECOND // 10, SECOND // 5, 3 * SECOND // 10, 2 * SECOND // 5]


def test_a_damaged_time_does_not_throw_a_file_years_ahead() -> None:
    clock = Clock(NOVEMBER)
    stamps = [clock.utc_ns(offset) for offset in (0, SECOND // 10, 10**18, SECOND // 5, 3600 * SECOND)]
    assert [stamp - NOVEMBER for stamp in stamps[:4]] == [0, SECOND // 10, SECOND // 5, 3 * SECOND // 10]
    assert stamps[4] - NOVEMBER == pytest.approx(3600 * SECOND, abs=SECOND)  # an hour without motion is a pause, not damage


def test_a_frame_without_a_time_follows_one_interval_later() -> None:
    clock = Clock(NOVEMBER)
    assert [clock.utc_ns(offset) - NOVEMBER for offset in (None, SECOND // 10, None)] == [0, SECOND // 10, SECOND // 5]


def test_a_live_source_is_anchored_at_the_wall_clock_and_again_after_a_reconnect_or_a_loop() -> None:
    clock = Clock()
    assert clock.utc_ns(7 * SECOND, NOVEMBER) == NOVEMBER
    assert clock.utc_ns(8 * SECOND, NOVEMBER + 1_300_000_000) == NOVEMBER + SECOND  # network delay does not move time
    assert clock.utc_ns(0, NOVEMBER + 2 * SECOND) == NOVEMBER + 2 * SECOND  # the server looped
    clock.reconnected()
    assert clock.utc_ns(900 * SECOND, NOVEMBER + 9 * SECOND) == NOVEMBER + 9 * SECOND
    assert clock.utc_ns(999 * SECOND, NOVEMBER + 10 * SECOND) == NOVEMBER + 10 * SECOND  # its time ran away


def test_live_time_that_ran_ahead_waits_for_the_wall_clock_without_squeezing_frames() -> None:
    clock = Clock()
    stamps = [clock.utc_ns(n * SECOND // 25, NOVEMBER) for n in range(100)]  # four seconds of pictures arrive at once
    stamps += [clock.utc_ns((100 + n) * SECOND // 25, NOVEMBER + n * SECOND // 25) for n in range(500)]
    steps = [later - earlier for earlier, later in pairwise(stamps)]
    assert min(steps) >= SECOND // 50
    assert stamps[-1] - (NOVEMBER + 499 * SECOND // 25) <= 2.1 * SECOND


def test_live_time_never_goes_backwards_whatever_comes() -> None:
    rng, clock, now, last = random.Random(3), Clock(), NOVEMBER, 0
    for _ in range(5000):
        now += rng.randrange(0, 80_000_000)
        stamp = clock.utc_ns(rng.choice([None, rng.randrange(-(10**11), 10**11)]), now)
        assert stamp > last
        last = stamp


def test_a_frame_is_late_beyond_the_limit_only() -> None:
    assert not is_late(NOVEMBER, NOVEMBER + 2 * SECOND, 2.0)
    assert is_late(NOVEMBER, NOVEMBER + 2 * SECOND + 1, 2.0)


def test_the_account_adds_up_and_names_its_gaps() -> None:
    account = CoverageAccount("gate", gap_after_s=2.0)
    for number in range(10):
        account.saw(NOVEMBER + number * SECOND // 10)
        account.sampled()
    account.corrupt()
    account.away(0, "connection refused")
    account.away(0, "a later reason")
    account.saw(NOVEMBER + 5 * SECOND)
    account.dropped()
    account.saw(NOVEMBER + 9 * SECOND)
    account.corrupt(70)
    account.saw(NOVEMBER + 12 * SECOND)
    coverage = account.snapshot()
    assert (coverage.seen, coverage.sampled, coverage.dropped, coverage.corrupt) == (84, 10, 1, 71)
    last = NOVEMBER + 9 * SECOND // 10
    assert coverage.gaps == (
        Gap(last, NOVEMBER + 5 * SECOND, "connection refused"),
        Gap(NOVEMBER + 5 * SECOND, NOVEMBER + 9 * SECOND, "no frames in the source"),
        Gap(NOVEMBER + 9 * SECOND, NOVEMBER + 12 * SECOND, "corrupt frames"),
    )
    assert (coverage.from_ns, coverage.to_ns) == (NOVEMBER, NOVEMBER + 12 * SECOND)


def test_an_absence_that_lasts_is_a_gap_until_now() -> None:
    account = CoverageAccount("gate")
    account.began(NOVEMBER)
    account.away(0, "connection refused")
    assert account.snapshot(NOVEMBER + 7 * SECOND).gaps == (Gap(NOVEMBER, NOVEMBER + 7 * SECOND, "connection refused"),)
    assert account.snapshot(NOVEMBER + 7 * SECOND).gap_s == 7.0


def test_a_slow_camera_is_not_all_gaps() -> None:
    account = CoverageAccount("timelapse", gap_after_s=2.0)
    for number in range(50):
        account.saw(NOVEMBER + number * 10 * SECOND)
    assert len(account.snapshot().gaps) <= 1


def test_the_account_can_be_read_while_it_is_written() -> None:
    account = CoverageAccount("gate")

    def write() -> None:
        for number in range(2000):
            account.saw(NOVEMBER + number)
            account.sampled()

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert account.snapshot().seen <= 8000
    assert (account.snapshot().seen, account.snapshot().sampled) == (8000, 8000)


@pytest.mark.parametrize(
    ("name", "offset_s"),
    [
        ("gate_2026-11-21T04-00-00.mp4", 0),
        ("20261121_040000.mkv", 0),
        ("cam1-20261121T040007-part.mp4", 7),
        ("2026-11-21 04.01.00.avi", 60),
        ("NVR_ch2_20261121040010.dav.mp4", 10),
    ],
)
def test_file_names_carry_times(name: str, offset_s: int) -> None:
    assert time_in_name(name) == NOVEMBER + offset_s * SECOND


@pytest.mark.parametrize("name", ["towncentre_a.mp4", "12345678901234567890.mp4", "20269999_040000.mp4", "00000000_000000.mp4", ""])
def test_other_numbers_are_no_times(name: str) -> None:
    assert time_in_name(name) == 0


def test_the_start_of_a_file_is_told_then_metadata_then_name_then_modification() -> None:
    created, name, modified = "2026-11-21T04:00:00.000000Z", "20261121_050000.mp4", NOVEMBER + 7200 * SECOND
    assert start_of_file(5, created, name, modified, 60) == 5
    assert start_of_file(0, created, name, modified, 60) == NOVEMBER
    assert start_of_file(0, "1904-01-01T00:00:00Z", name, modified, 60) == NOVEMBER + 3600 * SECOND
    assert start_of_file(0, "", "gate.mp4", modified, 60) == NOVEMBER + 7140 * SECOND
    assert time_of_metadata("2026-11-21T05:00:00+01:00") == NOVEMBER
    assert time_of_metadata("yesterday") == 0


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("rtsp://anna:geheim@10.0.0.4:554/live/1", "rtsp://***@10.0.0.4:554/live/1"),
        ("rtsp://anna:ge@heim@gate/live", "rtsp://***@gate/live"),
        ("rtsp://anna:ge/heim@gate/live", "rtsp://***@gate/live"),
        ("http://gate/video.cgi?user=anna&pwd=geheim&fps=5", "http://gate/video.cgi?user=***&pwd=***&fps=5"),
        ("http://gate:80/a@b.mp4", "http://gate:80/a@b.mp4"),
        ("/footage/a@b.mp4", "/footage/a@b.mp4"),
    ],
)
def test_no_credentials_are_shown(uri: str, shown: str) -> None:
    assert without_credentials(uri) == shown
    assert "heim" not in without_credentials(uri)
