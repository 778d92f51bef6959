"""How long tracklets are kept."""

import pytest

from pipeline.index.retention import NS_PER_DAY, Expiry, expiries

NOW_NS = 100 * NS_PER_DAY


def test_each_camera_is_kept_for_its_own_days_and_the_others_for_the_default() -> None:
    wanted = [Expiry(70 * NS_PER_DAY, ("gate", "hall")), Expiry(round(99.5 * NS_PER_DAY), ("till",))]
    assert expiries(NOW_NS, ["till", "hall", "gate", "gate"], 30, {"till": 0.5}) == wanted


def test_zero_days_means_for_ever() -> None:
    assert expiries(NOW_NS, ["gate", "hall"], 0, {"hall": 100}) == [Expiry(0, ("hall",))]


def test_negative_days_are_refused() -> None:
    with pytest.raises(ValueError, match=r"camera 'gate' must be 0 \(for ever\) or more days, got -1"):
        expiries(NOW_NS, ["gate"], -1)
