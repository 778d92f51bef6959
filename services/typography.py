"""Text on pictures: measured, fitted, wrapped and drawn with OpenCV's built-in fonts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

ELLIPSIS = "…"
STAND_INS = str.maketrans("·…“”’–", '-~""\'-')  # for the stroke font, which is ASCII
LAST_LATIN = 0x2044  # beyond it the narrow font has few letters, and the one that covers Asia takes over


@dataclass(frozen=True, slots=True)
class Ink:
    """How text looks: size in pixels, weight 100 (thin) to 900 (black), BGR colour."""

    size_px: int
    weight: int
    colour: tuple[int, int, int]


class Pen:
    """Writes text. OpenCV 5 brings proportional fonts of its own; where an older one is installed, its stroke font is used."""

    def __init__(self) -> None:
        make: Any = getattr(cv2, "FontFace", None)
        self._sans: Any = make("sans") if make else None
        self._wide: Any = make("uni") if make else None

    def width(self, text: str, ink: Ink) -> int:
        """How wide the text is drawn, in pixels."""
        if not text:
            return 0
        if self._sans is None:
            size, _ = cv2.getTextSize(_plain(text), cv2.FONT_HERSHEY_SIMPLEX, ink.size_px / 30, _strokes(ink))
            return int(size[0])
        canvas = np.zeros((4, 4, 3), np.uint8)  # drawing off the canvas tells where the text would end, trailing spaces included
        end, _ = cv2.putText(canvas, text, (0, 0), ink.colour, self._face(text), ink.size_px, ink.weight, 0, (0, 1_000_000))
        return int(end[0])

    def write(self, page: NDArray[np.uint8], text: str, at: tuple[int, int], ink: Ink) -> int:
        """Draw on the base line that starts at ``at`` (x, y); gives the width drawn."""
        if not text:
            return 0
        if self._sans is None:
            cv2.putText(page, _plain(text), at, cv2.FONT_HERSHEY_SIMPLEX, ink.size_px / 30, ink.colour, _strokes(ink), cv2.LINE_AA)
            return self.width(text, ink)
        end, _ = cv2.putText(page, text, at, ink.colour, self._face(text), ink.size_px, ink.weight, 0, (0, 1_000_000))
        return int(end[0]) - at[0]

    def fit(self, text: str, room_px: int, ink: Ink) -> str:
        """The text, cut with an ellipsis where it is wider than ``room_px``."""
        if self.width(text, ink) <= room_px:
            return text
        low, high = 0, len(text)  # the longest beginning that fits
        while low < high:
            middle = (low + high + 1) // 2
            if self.width(text[:middle].rstrip() + ELLIPSIS, ink) <= room_px:
                low = middle
            else:
                high = middle - 1
        return text[:low].rstrip() + ELLIPSIS

    def wrap(self, text: str, room_px: int, ink: Ink, most: int) -> list[str]:
        """The text in at most ``most`` lines no wider than ``room_px``; the last one ends with an ellipsis where more was to come."""
        words = text.split(" ")
        lines: list[str] = []
        while words and len(lines) < most:
            if len(lines) == most - 1:
                lines.append(self.fit(" ".join(words).strip(), room_px, ink))
                break
            taken = 1
            while taken < len(words) and self.width(" ".join(words[: taken + 1]), ink) <= room_px:
                taken += 1
            lines.append(self.fit(" ".join(words[:taken]).strip(), room_px, ink))
            words = words[taken:]
            while words and words[0] in ("", "·"):  # a separator does not begin a line
                words.pop(0)
        return [line for line in lines if line]

    def _face(self, text: str) -> Any:
        return self._sans if max(map(ord, text)) <= LAST_LATIN else self._wide


def _plain(text: str) -> str:
    """The text in the letters that the stroke font has."""
    return text.translate(STAND_INS).encode("ascii", "replace").decode()


def _strokes(ink: Ink) -> int:
    return 2 if ink.weight >= 600 else 1
