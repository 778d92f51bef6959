"""CenterNet: people as points on a stride-4 heat map (Zhou, Wang, Kraehenbuehl: Objects as Points, 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from models.tiled_detector import Calibration, Float32, TiledDetector

STRIDE = 4
PERSON = 0


class CenterNetDetector(TiledDetector):
    """CenterNet-MobileNetV3 512; its scores lie far below NanoDet's, which the calibration evens out."""

    name = "centernet-512"
    usual_side = 512
    calibration = Calibration(slope=3.3, offset=1.2)

    def tensor(self, pictures: Sequence[NDArray[np.uint8]]) -> Float32:
        """(B, height, width, 3), RGB 0..255."""
        return np.ascontiguousarray(np.stack(pictures)[..., ::-1], np.float32)

    def decode(self, outputs: Sequence[Float32], row: int, size: tuple[int, int]) -> tuple[Float32, Float32]:
        heat, sides = sorted((output[row] for output in outputs), key=lambda output: -output.shape[-1])  # (h, w, 80), (h, w, 4)
        people = heat[..., PERSON]
        peaks = (people == maximum_filter(people, size=3)) & (people > self._raw_floor)
        y, x = np.nonzero(peaks)
        centres = np.stack([x, y, x, y], axis=1).astype(np.float32) * STRIDE  # (N, 4)
        return (centres + sides[y, x] * (-1, -1, 1, 1)).astype(np.float32), people[y, x]
