"""Rankings as a picture for an operator: who, where, when, how sure, why, and what the answer rests on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.ports import MediaStore
from pipeline.types import CropReference, Match, Ranking
from services.crops import load
from services.typography import Ink, Pen

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]

# BGR
PAGE: Colour = (23, 18, 14)
CARD: Colour = (36, 29, 23)
HOLLOW: Colour = (27, 21, 17)
EDGE: Colour = (58, 48, 40)
BRIGHT: Colour = (242, 236, 230)
DIM: Colour = (172, 158, 146)
AMBER: Colour = (64, 190, 255)
GREEN: Colour = (134, 214, 104)
SLATE: Colour = (150, 134, 120)

COLUMNS = 5
MARGIN = 36
GAP = 16
CARD_WIDTH = 320
PADDING = 12
SHOT_WIDTH, SHOT_HEIGHT = 136, 280
CONTEXT_HEIGHT = 166
WHY_LINES, WHY_PITCH = 4, 19
CARD_HEIGHT = PADDING + SHOT_HEIGHT + 10 + CONTEXT_HEIGHT + 12 + WHY_LINES * WHY_PITCH + PADDING
PAGE_WIDTH = 2 * MARGIN + COLUMNS * CARD_WIDTH + (COLUMNS - 1) * GAP
MOST_WAYS = 3  # people whose way over the cameras is written out
MOST_STAYS = 12  # of a person, in one line
MOST_NOTES = 3

# The words are for people who do not read numbers first. They promise little: a score is made as if right and wrong were equally many.
WORDS: tuple[tuple[float, str, Colour], ...] = (
    (0.98, "very likely", GREEN),
    (0.90, "probably", GREEN),
    (0.50, "possibly", AMBER),
    (0.00, "weak likeness", SLATE),
)


@dataclass(frozen=True, slots=True)
class Place:
    """A rectangle on the page, in pixels."""

    x: int
    y: int
    width: int
    height: int


def contact_sheet(ranking: Ranking, media: MediaStore, title: str, subtitle: str = "", most: int = 10) -> Pixels:
    """One ranking as a page, BGR (H, W, 3): its first ``most`` matches in rows of five. subtitle: the window asked, in words."""
    return contact_page([(title, ranking)], media, [subtitle], most)


def contact_page(rankings: Sequence[tuple[str, Ranking]], media: MediaStore, subtitles: Sequence[str] = (), most: int = 10) -> Pixels:
    """Several titled rankings under each other, BGR (H, W, 3). A picture that the media store no longer keeps is left blank."""
    pen = Pen()
    subtitles = [*subtitles, *[""] * (len(rankings) - len(subtitles))]
    parts = [_section(pen, title, ranking, media, subtitle, most) for (title, ranking), subtitle in zip(rankings, subtitles, strict=True)]
    return np.vstack([_head(pen), *parts, _foot(pen)])


def score_in_words(score: float) -> str:
    """ "probably" for 0.8: what a score means to somebody who must decide."""
    return _words_of(score)[0]


def coverage_in_words(ranking: Ranking) -> str:
    """What a ranking rests on, in one line."""
    coverage = ranking.coverage
    cameras = len({account.camera_id for account in coverage.cameras})
    seen_s = sum(account.to_ns - account.from_ns for account in coverage.cameras) / 1e9
    missing_s = sum(account.gap_s for account in coverage.cameras)
    parts = [_counted(coverage.tracklets, "tracklet"), _counted(cameras, "camera"), f"{_span(seen_s)} of footage"]
    if missing_s >= 0.5:
        parts.append(f"{_span(missing_s)} of it not seen")
    parts += [", ".join(coverage.spaces)] if coverage.spaces else []
    return "searched " + "  ·  ".join([*parts, f"{ranking.elapsed_s:.2f} s"])


def sightings_in_words(ranking: Ranking) -> list[str]:
    """One line for each person with more than one stay, best first: where they were seen, in order of time."""
    told = []
    for sighting in ranking.sightings:
        if len(sighting.trajectory) > 1:
            way = " → ".join(f"{stay.camera_id} {_clock(stay.from_ns)}" for stay in sighting.trajectory[:MOST_STAYS])
            more = f" and {len(sighting.trajectory) - MOST_STAYS} more stays" if len(sighting.trajectory) > MOST_STAYS else ""
            name = sighting.identity_id or "one person"
            told.append(f"{score_in_words(sighting.score)} {name}: {way}{more}")
    return told


# ------------------------------------------------------------------------------------------------ parts of a page


def _head(pen: Pen) -> Pixels:
    page = _blank(64)
    width = pen.write(page, "SIGHTLINE", (MARGIN, 44), Ink(20, 800, BRIGHT))
    pen.write(page, "contact sheet", (MARGIN + width + 12, 44), Ink(20, 400, DIM))
    cv2.line(page, (MARGIN, 62), (PAGE_WIDTH - MARGIN, 62), EDGE, 1)
    return page


def _foot(pen: Pen) -> Pixels:
    page = _blank(56)
    pen.write(page, "Matches are suggestions ranked by likeness. A person decides.", (MARGIN, 24), Ink(14, 400, DIM))
    return page


def _section(pen: Pen, title: str, ranking: Ranking, media: MediaStore, subtitle: str, most: int) -> Pixels:
    shown = ranking.matches[:most]
    head = _section_head(pen, title, ranking, subtitle)
    if not shown:
        nobody = _blank(90)
        pen.write(nobody, "Nobody in this window.", (MARGIN, 48), Ink(18, 400, DIM))
        return np.vstack([head, nobody])
    rows = -(-len(shown) // COLUMNS)
    body = _blank(rows * (CARD_HEIGHT + GAP) + 12)
    for number, match in enumerate(shown):
        x = MARGIN + (number % COLUMNS) * (CARD_WIDTH + GAP)
        y = (number // COLUMNS) * (CARD_HEIGHT + GAP)
        _card(pen, body, Place(x, y, CARD_WIDTH, CARD_HEIGHT), match, media)
    return np.vstack([head, body])


def _section_head(pen: Pen, title: str, ranking: Ranking, subtitle: str) -> Pixels:
    room = PAGE_WIDTH - 2 * MARGIN
    titles = pen.wrap(title, room - 140, Ink(28, 700, BRIGHT), most=2)
    notes = [line for note in ranking.coverage.notes[:MOST_NOTES] for line in pen.wrap(f"note: {note}", room, Ink(15, 400, AMBER), most=2)]
    ways = [line for told in sightings_in_words(ranking)[:MOST_WAYS] for line in pen.wrap(told, room, Ink(15, 600, BRIGHT), most=2)]
    page = _blank(26 + 36 * len(titles) + (22 if subtitle else 0) + 24 + 21 * (len(ways) + len(notes)) + 14)
    y = 20
    for line in titles:
        y += 36
        end = pen.write(page, line, (MARGIN, y - 6), Ink(28, 700, BRIGHT))
    if ranking.is_partial:
        _badge(pen, page, "PARTIAL", (MARGIN + end + 16, y - 6))
    if subtitle:
        y += 22
        pen.write(page, pen.fit(subtitle, room, Ink(15, 400, BRIGHT)), (MARGIN, y), Ink(15, 400, BRIGHT))
    y += 23
    coverage = Ink(15, 400, DIM)
    pen.write(page, pen.fit(coverage_in_words(ranking), room, coverage), (MARGIN, y), coverage)
    for line in ways:
        y += 21
        pen.write(page, line, (MARGIN, y), Ink(15, 600, BRIGHT))
    for line in notes:
        y += 21
        pen.write(page, line, (MARGIN, y), Ink(15, 400, AMBER))
    return page


def _card(pen: Pen, page: Pixels, place: Place, match: Match, media: MediaStore) -> None:
    cv2.rectangle(page, (place.x, place.y), (place.x + place.width - 1, place.y + place.height - 1), CARD, cv2.FILLED)
    shot, context = best_shot(match.crops), context_of(match.crops)
    absent = "picture not kept" if match.crops else "heard, not seen"
    left, top = place.x + PADDING, place.y + PADDING
    inner = place.width - 2 * PADDING
    draw_picture(pen, page, Place(left, top, SHOT_WIDTH, SHOT_HEIGHT), load(media, shot.key) if shot else None, absent)
    beside = left + SHOT_WIDTH + 14
    _facts(pen, page, Place(beside, top, place.x + place.width - PADDING - beside, SHOT_HEIGHT), match)
    top += SHOT_HEIGHT + 10
    draw_picture(pen, page, Place(left, top, inner, CONTEXT_HEIGHT), load(media, context.key) if context else None, absent)
    top += CONTEXT_HEIGHT + 12
    ink = Ink(14, 400, DIM)
    for line in pen.wrap("  ·  ".join(match.why), inner, ink, most=WHY_LINES):
        top += WHY_PITCH
        pen.write(page, line, (left, top - 6), ink)
    cv2.rectangle(page, (place.x, place.y), (place.x + place.width - 1, place.y + place.height - 1), EDGE, 1)


def _facts(pen: Pen, page: Pixels, place: Place, match: Match) -> None:
    """Rank, how sure, where and when, in a column."""
    words, colour = _words_of(match.score)
    pen.write(page, str(match.rank), (place.x, place.y + 32), Ink(40, 800, BRIGHT))
    pen.write(page, words, (place.x, place.y + 72), Ink(18, 700, colour))
    pen.write(page, f"{match.score:.2f}", (place.x, place.y + 96), Ink(18, 400, BRIGHT))
    _bar(page, Place(place.x, place.y + 106, place.width, 5), match.score, colour)
    day, clock = time.strftime("%Y-%m-%d|%H:%M:%S", time.gmtime(match.started_at_ns // 1_000_000_000)).split("|")
    lasted_s = (match.ended_at_ns - match.started_at_ns) / 1e9
    y = place.y + 142
    for label, value in (("camera", match.camera_id), ("UTC", f"{day}\n{clock}"), ("in view" if match.crops else "heard", _span(lasted_s))):
        pen.write(page, label, (place.x, y), Ink(13, 400, DIM))
        for line in value.split("\n"):
            y += 19
            ink = Ink(16, 600, BRIGHT)
            pen.write(page, pen.fit(line, place.width, ink), (place.x, y), ink)
        y += 25


def draw_picture(pen: Pen, page: Pixels, place: Place, picture: Pixels | None, absent: str = "picture not kept") -> None:
    """The picture, as large as it fits, in the middle of its place; ``absent``: what stands there instead."""
    cv2.rectangle(page, (place.x, place.y), (place.x + place.width - 1, place.y + place.height - 1), HOLLOW, cv2.FILLED)
    if picture is None:
        lines = pen.wrap(absent, place.width - 16, Ink(14, 400, SLATE), most=2)
        for number, line in enumerate(lines):
            y = place.y + place.height // 2 + 19 * number
            pen.write(page, line, (place.x + (place.width - pen.width(line, Ink(14, 400, SLATE))) // 2, y), Ink(14, 400, SLATE))
        return
    scale = min(place.width / picture.shape[1], place.height / picture.shape[0])
    size = max(1, min(place.width, round(picture.shape[1] * scale))), max(1, min(place.height, round(picture.shape[0] * scale)))
    fitted = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    x, y = place.x + (place.width - size[0]) // 2, place.y + (place.height - size[1]) // 2
    page[y : y + size[1], x : x + size[0]] = fitted


def _bar(page: Pixels, place: Place, share: float, colour: Colour) -> None:
    cv2.rectangle(page, (place.x, place.y), (place.x + place.width - 1, place.y + place.height - 1), EDGE, cv2.FILLED)
    filled = round(place.width * min(max(share, 0.0), 1.0))
    if filled:
        cv2.rectangle(page, (place.x, place.y), (place.x + filled - 1, place.y + place.height - 1), colour, cv2.FILLED)


def _badge(pen: Pen, page: Pixels, text: str, at: tuple[int, int]) -> None:
    ink = Ink(14, 700, PAGE)
    x = min(at[0], PAGE_WIDTH - MARGIN - pen.width(text, ink) - 16)
    cv2.rectangle(page, (x, at[1] - 19), (x + pen.width(text, ink) + 16, at[1] + 4), AMBER, cv2.FILLED)
    pen.write(page, text, (x + 8, at[1] - 3), ink)


def best_shot(crops: Sequence[CropReference]) -> CropReference | None:
    """The best crop of a match, None where it has none."""
    return next((crop for crop in crops if not is_context(crop)), None)


def context_of(crops: Sequence[CropReference]) -> CropReference | None:
    """The picture of the whole frame of a match, None where none was kept."""
    return next((crop for crop in crops if is_context(crop)), None)


def is_context(crop: CropReference) -> bool:
    """Whether it shows the whole frame, not the person alone."""
    return crop.key.endswith("/context.jpg")


def _words_of(score: float) -> tuple[str, Colour]:
    return next((words, colour) for least, words, colour in WORDS if round(score, 2) >= least or least == 0.0)


def _clock(at_ns: int) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(at_ns // 1_000_000_000))


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _span(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _blank(height: int) -> Pixels:
    return np.full((height, PAGE_WIDTH, 3), PAGE, np.uint8)
