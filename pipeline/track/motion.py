"""Where a person will be next: a constant-velocity filter with steps in seconds, and smoothing of a closed track's boxes.

Boxes are (centre x, centre y, width, height). All noise is measured in body heights, so that near and far people, and large and small
pictures, share one setting; steps are in seconds, so that variable and low frame rates need no other settings.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

ACCELERATION = 0.6  # body heights / s^2: people start, stop and turn within about a second
MEASUREMENT = 0.04  # body heights: how far a detector's box strays from frame to frame
START_VELOCITY = 0.6  # body heights / s: a brisk walk is 0.8
COAST_S = 1.5  # an unseen person keeps the velocity for about this long
SIZE_COAST_S = 0.3  # and the growth of the box for this long


def to_centre(xyxy: Float32 | Float64) -> Float64:
    """Corner boxes (N, 4) as centre x, centre y, width, height, float64 (N, 4)."""
    boxes = np.asarray(xyxy, np.float64)
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)


def to_corners(centre: Float64) -> Float32:
    """The inverse of ``to_centre``, float32 (N, 4); sides are at least one pixel."""
    half = np.maximum(centre[:, 2:], 1.0) / 2
    return np.concatenate([centre[:, :2] - half, centre[:, :2] + half], axis=1).astype(np.float32)


class Motion:
    """A Kalman filter per person. The four coordinates share one covariance, as their noise is the same in body heights.

    box: (4,) centre x, y, width, height at at_ns; velocity: (4,) per second.
    """

    __slots__ = ("_cross", "_variance", "_velocity_variance", "at_ns", "box", "velocity")

    def __init__(self, box: Float64, at_ns: int) -> None:
        self.box = box.copy()
        self.velocity = np.zeros(4)
        self.at_ns = at_ns
        self._variance = MEASUREMENT**2
        self._cross = 0.0
        self._velocity_variance = START_VELOCITY**2

    @property
    def spread(self) -> float:
        """Standard deviation of the position, in body heights."""
        return math.sqrt(self._variance)

    def at(self, at_ns: int) -> Float64:
        """The box expected at a time, (4,); velocity fades with the time unseen."""
        step_s = max((at_ns - self.at_ns) / 1e9, 0.0)
        reach = COAST_S * (1 - math.exp(-step_s / COAST_S))
        growth = SIZE_COAST_S * (1 - math.exp(-step_s / SIZE_COAST_S))
        expected: Float64 = self.box + self.velocity * np.array([reach, reach, growth, growth])
        np.maximum(expected[2:], 0.5 * self.box[2:], out=expected[2:])
        return expected

    def see(self, box: Float64, at_ns: int, trust: float) -> None:
        """Take in a seen box (4,); ``trust`` 0..1 makes unsure boxes count less."""
        step_s = max((at_ns - self.at_ns) / 1e9, 1e-3)
        expected = self.at(at_ns)
        noise = ACCELERATION**2
        variance = self._variance + 2 * step_s * self._cross + step_s**2 * self._velocity_variance + noise * step_s**3 / 3
        cross = self._cross + step_s * self._velocity_variance + noise * step_s**2 / 2
        velocity_variance = self._velocity_variance + noise * step_s
        total = variance + (MEASUREMENT / max(trust, 0.2)) ** 2
        gain, velocity_gain = variance / total, cross / total
        surprise = box - expected
        self.box = expected + gain * surprise
        self.velocity = self.velocity + velocity_gain * surprise
        self._variance = (1 - gain) * variance
        self._cross = (1 - gain) * cross
        self._velocity_variance = velocity_variance - velocity_gain * cross
        self.at_ns = at_ns


def bridge(first_ns: int, first: Float64, last_ns: int, last: Float64, times_ns: NDArray[np.int64]) -> Float64:
    """Boxes on the straight line between two seen ones, at ``times_ns`` (T,) between them: (T, 4)."""
    share = ((times_ns - first_ns) / max(last_ns - first_ns, 1))[:, None]  # (T, 1)
    line: Float64 = first[None, :] * (1 - share) + last[None, :] * share
    return line


def smooth(at_ns: NDArray[np.int64], boxes: Float64, weight: Float64, width_s: float) -> Float64:
    """Boxes (T, 4) smoothed over time by weighted local lines (Gaussian of ``width_s`` seconds); weight (T,) 0 is bridged.

    A line, not a mean: a mean would lag at both ends and cut corners. Widths and heights are smoothed over twice the time.
    """
    if len(at_ns) < 3 or width_s <= 0:
        return boxes
    seconds = (at_ns - at_ns[0]) / 1e9  # (T,)
    smoothed = np.empty_like(boxes)
    for index, now in enumerate(seconds):
        first, last = np.searchsorted(seconds, [now - 6 * width_s, now + 6 * width_s])
        offset = seconds[first:last] - now  # (K,)
        for columns, width in ((slice(0, 2), width_s), (slice(2, 4), 2 * width_s)):
            kernel = weight[first:last] * np.exp(-0.5 * (offset / width) ** 2)  # (K,)
            smoothed[index, columns] = _line_at_zero(offset, boxes[first:last, columns], kernel, width, boxes[index, columns])
    return smoothed


def _line_at_zero(offset: Float64, values: Float64, kernel: Float64, width: float, otherwise: Float64) -> Float64:
    """The weighted straight line through ``values`` (K, C), read at offset 0; its slope is held back where few points carry it."""
    total = kernel.sum()
    if total < 0.5:
        return otherwise
    centre = (kernel * offset).sum() / total
    mean = kernel @ values / total  # (C,)
    spread = (kernel * (offset - centre) ** 2).sum() + 0.05 * width**2
    slope = (kernel * (offset - centre)) @ values / spread  # (C,)
    at_zero: Float64 = mean - slope * centre
    return at_zero
