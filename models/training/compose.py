"""Compose CCTV-like frames with known people: python -m models.training.compose --data DIR --out DIR --scenes 200.

Real person crops are cut out (GrabCut), set on people-free real backgrounds where their ground plane allows it, far ones first, and the
whole frame is then altered as a camera would: light, tint, blur, noise, JPEG. Serves the training of a one-stage detector-retriever and
`sightline evaluate full-frames`. Pictures made this way hold third-party data: keep them out of the repository.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInputError, NotFoundError, UnreadableMediaError

UInt8 = NDArray[np.uint8]
Float32 = NDArray[np.float32]
Polygon = tuple[tuple[float, float], ...]
Window = tuple[int, float, int, int]  # background, zoom (scene px per background px), left and top in background px

SAMPLED_FRAMES = 40  # of a clip, for the median
TALLEST_CUTOUT_PX, GRABCUT_HEIGHT_PX = 240, 112
LEAST_COVER, MOST_COVER = 0.20, 0.85  # of the box; outside of this GrabCut lost the person or took everything
RECTANGLE_SHARE = 0.2  # of people pasted with the picture around them, so that cut edges are no sign of a person
MOST_ZOOM, BACKGROUNDS_TRIED, WINDOWS_TRIED, GRID_PX = 1.6, 4, 6, 9
LEAST_ROOM = 0.6  # share of the smaller of two people's boxes that they may have in common
BLUE_GAIN = (1.53, 1.05, 0.69)  # B, G, R: asphalt of PETS view 6 against that of view 1, at equal luminance
WELL_VISIBLE = 0.3
LUMA = np.array([0.114, 0.587, 0.299], np.float32)  # of B, G, R


@dataclass(frozen=True)
class Ground:
    """How tall a person stands where: height_px = slope * (foot row - horizon), rows and heights in px of the background."""

    slope: float
    horizon: float

    def height_px(self, row: float | Float32) -> Float32:
        """Height of a person whose feet are on ``row``."""
        return np.asarray(self.slope * (np.asarray(row, np.float32) - self.horizon), np.float32)


@dataclass(frozen=True)
class Background:
    """A people-free picture, bgr uint8 (H, W, 3), its ground, and where feet may be.

    area: polygons of (x, y) as shares of width and height; a polygon inside another one is a hole (things that people would stand behind).
    """

    bgr: UInt8
    ground: Ground
    area: tuple[Polygon, ...] = (((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)),)
    name: str = ""


@dataclass(frozen=True)
class Cutout:
    """A person crop, bgra uint8 (h, w, 4): colours are those of the crop everywhere, alpha is the person. name: "person/a1.jpg"."""

    bgra: UInt8
    person: str
    camera: str
    name: str


@dataclass(frozen=True)
class Placed:
    """A person in a scene. xyxy: float32 (4,) px, the whole person cut at the frame; visible: share of the person's pixels that is seen."""

    person: str
    name: str
    xyxy: Float32
    visible: float


@dataclass(frozen=True)
class Scene:
    """A composed frame, bgr uint8 (height, width, 3), and who is in it, far ones first."""

    bgr: UInt8
    people: tuple[Placed, ...]


@dataclass(frozen=True)
class _Place:
    """What is known of one of our research cameras by looking at it."""

    name: str
    pictures: str  # a clip, or frames of one camera as a pattern
    area: tuple[Polygon, ...]
    ground: Ground | None = None  # None: fitted to the clip's MOT boxes
    frames: tuple[int, int] | None = None  # the stretch of the clip in which nobody stands still
    keep: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)  # left, top, right, bottom: the rest shows ghosts
    patch: tuple[int, int, int, int] | None = None  # x0, y0, x1, y1 px taken from the last picture, which is empty there
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)  # B, G, R of the camera, taken out of the picture


# Not used: crossing.mp4 (people stand still all through it).
PLACES = (
    _Place(
        "pets_view001",
        "video/pets_view001_a.mp4",
        (((0, 0.33), (0.55, 0.36), (0.8, 0.26), (0.9, 0.19), (0.93, 0.19), (0.88, 0.34), (1, 0.5), (1, 1), (0, 1)),),
    ),
    _Place(
        "pets_view006",
        "video/pets_view006_a.mp4",
        (((0, 0.42), (0.45, 0.37), (0.75, 0.28), (0.86, 0.26), (0.84, 0.36), (1, 0.45), (1, 1), (0, 1)),),
        Ground(1.0, 81.0),
        gain=BLUE_GAIN,
    ),
    _Place(
        "towncentre",
        "video/towncentre_a.mp4",
        (
            (
                (0, 0.49),
                (0.27, 0.31),
                (0.49, 0.15),
                (0.85, 0.03),
                (0.97, 0),
                (0.97, 0.17),
                (0.9, 0.27),
                (0.87, 0.4),
                (1, 0.4),
                (1, 1),
                (0, 1),
            ),
            ((0.35, 0.2), (0.5, 0.15), (0.5, 0.31), (0.38, 0.39)),
            ((0.755, 0.5), (0.84, 0.5), (0.84, 0.74), (0.755, 0.74)),
        ),
        keep=(0.0, 0.0, 0.854, 1.0),
    ),
    _Place(
        "one_by_one",
        "video/one_by_one.mp4",
        (((0, 0.7), (0.45, 0.7), (0.45, 0.8), (0.7, 0.8), (0.7, 0.72), (1, 0.72), (1, 1), (0, 1)),),
        Ground(0.77, -107.0),
        frames=(705, 735),
    ),
    _Place(
        "c1s1",
        "frames/c1s1_*.jpg",
        (((0, 0.88), (0.17, 0.765), (0.55, 0.557), (0.62, 0.5), (0.73, 0.447), (0.8, 0.44), (1, 0.465), (1, 1), (0, 1)),),
        Ground(0.92, 408.0),
    ),
    _Place(
        "c3s1",
        "frames/c3s1_*.jpg",
        (((0.31, 0.6), (0.3, 0.545), (0.33, 0.5), (0.47, 0.515), (0.64, 0.55), (1, 0.58), (1, 1), (0.08, 1)),),
        Ground(1.0, 354.0),
        patch=(630, 330, 730, 460),
    ),
)


# ---- backgrounds


def backgrounds(data: Path) -> list[Background]:
    """People-free backgrounds of the research folder: the median over time of each camera of PLACES that is there.

    Raises NotFoundError when none is there, UnreadableMediaError for a clip or picture that does not decode.
    """
    found = [_background(data, place) for place in PLACES if sorted(data.glob(place.pictures))]
    if not found:
        raise NotFoundError(f"no background found: {data} must hold one of {', '.join(place.pictures for place in PLACES)}")
    return found


def _background(data: Path, place: _Place) -> Background:
    paths = sorted(data.glob(place.pictures))
    pictures = _frames(paths[0], place.frames) if paths[0].suffix == ".mp4" else [_picture(path) for path in paths]
    bgr = np.median(np.stack(pictures), axis=0).astype(np.uint8)  # (H, W, 3)
    if place.patch:
        x0, y0, x1, y1 = place.patch
        bgr[y0:y1, x0:x1] = pictures[-1][y0:y1, x0:x1]
    ground = place.ground or fit_ground(paths[0].with_suffix(".txt"), bgr.shape[1], bgr.shape[0])
    height, width = bgr.shape[:2]
    left, top, right, bottom = (round(share * size) for share, size in zip(place.keep, (width, height) * 2, strict=True))
    bgr = np.clip(bgr[top:bottom, left:right] / np.array(place.gain, np.float32), 0, 255).astype(np.uint8)
    return Background(np.ascontiguousarray(bgr), Ground(ground.slope, ground.horizon - top), place.area, place.name)


def _picture(path: Path) -> UInt8:
    bgr = cv2.imread(str(path))
    if bgr is None:
        raise UnreadableMediaError(f"{path} must be a picture that OpenCV reads")
    return np.asarray(bgr, np.uint8)


def _frames(path: Path, stretch: tuple[int, int] | None) -> list[UInt8]:
    """Up to SAMPLED_FRAMES frames, spread over the clip or over frames ``stretch`` of it."""
    capture = cv2.VideoCapture(str(path))
    first, last = stretch or (0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) - 1)
    wanted = set(np.linspace(first, last, SAMPLED_FRAMES).astype(int).tolist())
    frames: list[UInt8] = []
    for index in range(last + 1):
        if not capture.grab():
            break
        if index in wanted:
            frames.append(np.asarray(capture.retrieve()[1], np.uint8))
    capture.release()
    if not frames:
        raise UnreadableMediaError(f"{path} must be a clip that OpenCV decodes")
    return frames


def fit_ground(boxes: Path, width: int, height: int) -> Ground:
    """Ground of a camera from MOT boxes (frame, id, left, top, width, height in px) that do not touch the frame's edge.

    A line of height against foot row, fitted again ten times to the four fifths of the boxes that lie next to it (the others are bent,
    cut or children). Raises BadInputError for fewer than 10 boxes.
    """
    left, top, wide, tall = np.loadtxt(boxes, delimiter=",", usecols=(2, 3, 4, 5), ndmin=2).T
    foot = top + tall
    whole = (left > 2) & (top > 2) & (left + wide < width - 2) & (foot < height - 2)
    if whole.sum() < 10:
        raise BadInputError(f"{boxes} must hold at least 10 boxes inside the frame, got {whole.sum()}: give the ground by hand")
    foot, tall = foot[whole], tall[whole]
    slope, offset = np.polyfit(foot, tall, 1)
    for _ in range(10):
        away = np.abs(tall - slope * foot - offset)
        near = away <= np.quantile(away, 0.8)
        slope, offset = np.polyfit(foot[near], tall[near], 1)
    return Ground(float(slope), float(-offset / slope))


# ---- people


def cutout(picture: UInt8) -> UInt8:
    """Mask of the person in a tight crop: uint8 (h, w), 255 the person, with a soft edge. picture: bgr uint8 (h, w, 3).

    GrabCut with a prior of head, torso and legs; where that keeps less than LEAST_COVER or more than MOST_COVER of the box, the soft prior
    itself. Raises BadInputError for a picture of another shape. Sets OpenCV's random seed, so that a crop always gives the same mask.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or min(picture.shape[:2]) < 8:
        raise BadInputError(f"a crop must be uint8 (h, w, 3) of at least 8 x 8 px, got {picture.shape}: give the BGR picture of one person")
    tall, wide = picture.shape[:2]
    scale = min(1.0, GRABCUT_HEIGHT_PX / tall)
    small = cv2.resize(picture, (max(8, round(wide * scale)), max(8, round(tall * scale))), interpolation=cv2.INTER_AREA)
    height, width = small.shape[:2]
    labels = _prior(height, width)
    cv2.setRNGSeed(1)
    smooth = cv2.bilateralFilter(small, 5, 30, 3)
    cv2.grabCut(smooth, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), 2, cv2.GC_INIT_WITH_MASK)
    mask = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8) * 255
    mask = _largest_parts(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)))
    cover = float((mask > 0).mean())
    if not LEAST_COVER <= cover <= MOST_COVER:
        mask = cv2.GaussianBlur(_body(height, width, 1.15) * np.uint8(255), (0, 0), width / 24)
    else:
        mask = _with_lost_rows(mask)
        mask = cv2.GaussianBlur(cv2.erode(mask, np.ones((2, 2), np.uint8)), (0, 0), 0.8)
    return np.asarray(cv2.resize(mask, (wide, tall), interpolation=cv2.INTER_LINEAR), np.uint8)


def _body(height: int, width: int, size: float) -> UInt8:
    """Head, torso and legs as ellipses: uint8 (h, w) of 0 and 1."""
    body = np.zeros((height, width), np.uint8)
    for x, y, across, along in ((0.5, 0.11, 0.17, 0.09), (0.5, 0.34, 0.31, 0.2), (0.5, 0.7, 0.26, 0.28)):
        axes = (max(1, round(across * width * size)), max(1, round(along * height * size)))
        cv2.ellipse(body, (round(x * width), round(y * height)), axes, 0, 0, 360, 1, -1)
    return body


def _prior(height: int, width: int) -> UInt8:
    """What GrabCut starts from: the edge is background, a core of head, torso and legs is person, between them "probably" either."""
    labels = np.full((height, width), cv2.GC_PR_BGD, np.uint8)
    labels[_body(height, width, 1.0) > 0] = cv2.GC_PR_FGD
    core = np.zeros_like(labels)
    for y, across, along in ((0.1, 0.08, 0.05), (0.34, 0.15, 0.18), (0.62, 0.12, 0.16)):
        cv2.ellipse(core, (width // 2, round(y * height)), (max(1, round(across * width)), max(1, round(along * height))), 0, 0, 360, 1, -1)
    labels[core > 0] = cv2.GC_FGD
    margin = max(1, width // 30)
    labels[:, :margin] = labels[:, -margin:] = labels[:1] = labels[-1:] = cv2.GC_BGD
    head = round(0.18 * height)  # nobody's head is in the corners
    labels[:head, : round(0.12 * width)] = labels[:head, width - round(0.12 * width) :] = cv2.GC_BGD
    return labels


def _with_lost_rows(mask: UInt8) -> UInt8:
    """Head and legs of the prior in the rows where GrabCut found (nearly) nothing, under the middle of what it found: nobody floats."""
    height, width = mask.shape
    least = 0.12 * width
    found = np.count_nonzero(mask, axis=1) >= least  # (h,)
    lost = ~found & (np.arange(height) > 0.04 * height) & (np.arange(height) < 0.97 * height)
    if not lost.any() or not found.any():
        return mask
    middle = np.flatnonzero(mask.any(0)).mean()
    body = np.roll(_body(height, width, 0.9), round(np.clip(middle - width / 2, -0.15 * width, 0.15 * width)), axis=1)
    filled = mask.copy()
    filled[lost] |= body[lost] * np.uint8(255)
    return np.asarray(cv2.medianBlur(filled, 5), np.uint8)


def _largest_parts(mask: UInt8) -> UInt8:
    """The largest connected part and every part of at least a tenth of it, holes of less than 2 % of the box filled."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    if count <= 1:
        return mask
    sizes = stats[:, cv2.CC_STAT_AREA].copy()
    sizes[0] = 0
    kept = np.isin(parts, np.flatnonzero(sizes >= 0.1 * sizes.max())) & (parts > 0)
    holes, parts, stats, _ = cv2.connectedComponentsWithStats((~kept).astype(np.uint8), connectivity=4)
    small = [index for index in range(1, holes) if stats[index, cv2.CC_STAT_AREA] < 0.02 * mask.size]
    return np.where(kept | np.isin(parts, small), 255, 0).astype(np.uint8)


def cutouts(data: Path, names: Sequence[str], cache: Path | None = None) -> list[Cutout]:
    """Cut-outs of the crops ``names`` ("person/a1.jpg", under data/persons), at most TALLEST_CUTOUT_PX tall, in that order.

    cache: an .npz that keeps masks between runs; made or completed here. About 20 ms a crop without it, 1 ms with it.
    """
    known = _read_masks(cache)
    before = len(known)
    found = []
    for name in names:
        picture = _picture(data / "persons" / name)
        scale = min(1.0, TALLEST_CUTOUT_PX / picture.shape[0])
        if scale < 1:
            size = max(8, round(picture.shape[1] * scale)), TALLEST_CUTOUT_PX
            picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
        if name not in known:
            known[name] = np.asarray(cv2.imencode(".png", cutout(picture))[1], np.uint8).ravel()
        mask = np.asarray(cv2.imdecode(known[name], cv2.IMREAD_GRAYSCALE), np.uint8)
        found.append(Cutout(np.dstack([picture, mask]), name.split("/")[0], name.split("/")[1][0], name))
    if cache and len(known) > before:
        cache.parent.mkdir(parents=True, exist_ok=True)
        ends = np.cumsum([mask.size for mask in known.values()])
        np.savez(cache, names=np.array(list(known)), ends=ends, masks=np.concatenate(list(known.values())))
    return found


def _read_masks(cache: Path | None) -> dict[str, UInt8]:
    """Masks of a cache as PNG bytes; the PNGs lie end to end in one array."""
    if cache is None or not cache.exists():
        return {}
    with np.load(cache) as stored:
        pieces = np.split(stored["masks"], stored["ends"][:-1])
        return dict(zip(stored["names"].tolist(), pieces, strict=True))


# ---- scenes


class Composer:
    """Makes scenes from backgrounds and cut-outs; the same seed and calls give the same scenes."""

    def __init__(self, backgrounds: Sequence[Background], cutouts: Sequence[Cutout], seed: int = 0) -> None:
        if not backgrounds or not cutouts:
            raise BadInputError(f"a composer needs a background and a cut-out, got {len(backgrounds)} and {len(cutouts)}")
        self._random = np.random.default_rng(seed)
        self._backgrounds = list(backgrounds)
        self._feet = [_feet(background) for background in backgrounds]
        self._cutouts = {cut.name: cut for cut in cutouts}
        self._boxes = {cut.name: _box(cut.bgra[..., 3]) for cut in cutouts}
        self.names_of: dict[str, list[str]] = defaultdict(list)
        for cut in cutouts:
            self.names_of[cut.person].append(cut.name)
        self._noise = np.random.default_rng(0).normal(0, 32, 1 << 21).astype(np.int16)  # 32 steps to a standard deviation

    def scene(
        self,
        width: int,
        height: int,
        people: int,
        scale_range: tuple[float, float] = (50.0, 300.0),
        names: Sequence[str] | None = None,
    ) -> Scene:
        """A frame of width x height px with ``people`` different people, each scale_range px tall as far as the background allows.

        names: the crops to use, ``people`` of them; by default drawn at random. Raises NotFoundError for a crop the composer does not
        have, BadInputError when there are too few people or names.
        """
        chosen = self._choose(people, names)
        for _ in range(BACKGROUNDS_TRIED):
            window, feet, tall = self._window(width, height, scale_range)
            order, crowded = self._stand(chosen, feet, tall)
            if crowded <= people / 4:
                break
        canvas, ground = self._view(window, width, height)
        owner = np.full((height, width), -1, np.int16)  # whose pixel it is
        sizes, boxes = [], []
        mirror_all = self._random.random() < 0.5
        if mirror_all:
            canvas = np.asarray(cv2.flip(canvas, 1), np.uint8)
        for index, (name, x, y, person_px) in enumerate(order):
            x = width - x if mirror_all else x
            size, box = self._paste(canvas, owner, index, name, (x, y, person_px), ground)
            sizes.append(size)
            boxes.append(box)
        seen = np.bincount(owner.ravel() + 1, minlength=len(order) + 1)[1:]
        placed = tuple(
            Placed(name.split("/")[0], name, box, round(min(1.0, float(pixels / max(1.0, size))), 3))
            for (name, *_), box, pixels, size in zip(order, boxes, seen, sizes, strict=True)
        )
        return Scene(self._alter(canvas), placed)

    def _choose(self, people: int, names: Sequence[str] | None) -> list[str]:
        if names is None:
            if people > len(self.names_of):
                raise BadInputError(f"a scene of {people} needs as many different people, the composer has {len(self.names_of)}")
            persons = self._random.choice(sorted(self.names_of), people, replace=False)
            return [str(self._random.choice(self.names_of[str(person)])) for person in persons]
        if len(names) != people:
            raise BadInputError(f"names must be as many as people, got {len(names)} and {people}")
        if missing := [name for name in names if name not in self._cutouts]:
            raise NotFoundError(f"no cut-out named {missing[0]!r}: give it to the composer")
        return list(names)

    def _window(self, width: int, height: int, scale_range: tuple[float, float]) -> tuple[Window, Float32, Float32]:
        """A part of a background with room for people of the wanted heights.

        Gives the window, places for feet float32 (N, 2) and heights float32 (N,), both in px of the scene, in random order.
        """
        lowest, highest = scale_range
        index = int(self._random.integers(len(self._backgrounds)))
        background, feet = self._backgrounds[index], self._feet[index]
        rows, columns = background.bgr.shape[:2]
        least = max(width / columns, height / rows)
        best: tuple[float, Window, Float32, Float32] | None = None
        for _ in range(WINDOWS_TRIED):
            x, y = feet[self._random.integers(len(feet))]
            wanted = np.exp(self._random.uniform(np.log(lowest), np.log(highest)))
            zoom = float(np.clip(wanted / background.ground.height_px(y), least, max(least, MOST_ZOOM)))
            left = int(np.clip(x - self._random.uniform(0.2, 0.8) * width / zoom, 0, columns - width / zoom))
            top = int(np.clip(y - self._random.uniform(0.5, 1.0) * height / zoom, 0, rows - height / zoom))
            spots = ((feet - (left, top)) * zoom).astype(np.float32)
            tall = background.ground.height_px(feet[:, 1]) * zoom
            inside = (spots[:, 0] > 0) & (spots[:, 0] < width) & (spots[:, 1] < height + 0.2 * tall) & (spots[:, 1] > 0.95 * tall)
            fits = inside & (tall >= lowest) & (tall <= highest)
            room = min(float(fits.sum()) * GRID_PX**2 * zoom**2 / (width * height), 0.35) * self._random.uniform(0.7, 1)
            use = fits if fits.sum() > 10 else inside
            if use.any() and (best is None or room > best[0]):
                best = room, (index, zoom, left, top), spots[use], np.clip(tall[use], lowest, highest)
        if best is None:  # no ground in view: anywhere in the lower part
            spots = (self._random.uniform((0, 0.5), (1, 1), (200, 2)) * (width, height)).astype(np.float32)
            best = 0.0, (index, least, 0, 0), spots, np.full(200, min(highest, max(lowest, height / 3)), np.float32)
        _, window, spots, tall = best
        shuffled = self._random.permutation(len(spots))[:600]
        jitter = self._random.uniform(-0.5, 0.5, (len(shuffled), 2)) * GRID_PX * window[1]
        heights = tall[shuffled] * self._random.normal(1, 0.05, len(shuffled)).clip(0.88, 1.12)
        return window, (spots[shuffled] + jitter).astype(np.float32), heights.astype(np.float32)

    def _view(self, window: Window, width: int, height: int) -> tuple[UInt8, float]:
        """The background seen through the window (height, width, 3), and its mean luminance where people stand."""
        index, zoom, left, top = window
        bgr = self._backgrounds[index].bgr
        part = bgr[top : top + max(1, round(height / zoom)), left : left + max(1, round(width / zoom))]
        canvas = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA if zoom < 0.6 else cv2.INTER_LINEAR)
        return np.asarray(canvas, np.uint8), float(canvas[height // 3 :: 8, ::8].reshape(-1, 3).mean(0) @ LUMA)

    def _stand(self, names: Sequence[str], feet: Float32, tall: Float32) -> tuple[list[tuple[str, float, float, float]], int]:
        """Who stands where, (name, foot x, foot y, height) in px of the scene, far ones first; and how many stand closer than wished."""
        candidates = np.stack([feet[:, 0] - 0.18 * tall, feet[:, 1] - tall, feet[:, 0] + 0.18 * tall, feet[:, 1]], axis=1)  # (N, 4)
        worst = np.zeros(len(feet), np.float32)  # the largest share a candidate has in common with anybody who stands already
        order, crowded = [], 0
        for name in names:
            wished = self._random.choice((0.05, 0.3, LEAST_ROOM), p=(0.5, 0.3, 0.2))
            free = np.flatnonzero(worst <= wished)
            if not len(free):
                free = np.flatnonzero(worst <= LEAST_ROOM)
            crowded += not len(free)
            spot = int(free[0]) if len(free) else int(worst.argmin())
            worst = np.maximum(worst, _shared(candidates, candidates[spot]))
            order.append((name, float(feet[spot, 0]), float(feet[spot, 1]), float(tall[spot])))
        return sorted(order, key=lambda one: one[2]), crowded

    def _paste(
        self, canvas: UInt8, owner: NDArray[np.int16], index: int, name: str, place: tuple[float, float, float], ground: float
    ) -> tuple[float, Float32]:
        """Draw one person. Gives the pixels the person would have unhidden, and the box cut at the frame, float32 (4,)."""
        x, y, tall = place
        bgra = self._cutouts[name].bgra
        left, top, right, bottom = self._boxes[name]
        if self._random.random() < 0.5:
            bgra = cv2.flip(bgra, 1)
            left, right = bgra.shape[1] - right, bgra.shape[1] - left
        scale = tall / (bottom - top)
        width, height = max(2, round(bgra.shape[1] * scale)), max(4, round(bgra.shape[0] * scale))
        drawn = cv2.resize(bgra, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        x0, y0 = round(x - (left + right) / 2 * scale), round(y - bottom * scale)
        rows, columns = canvas.shape[:2]
        box = np.array([x0 + left * scale, y0 + top * scale, x0 + right * scale, y0 + bottom * scale], np.float32)
        box = box.clip(0, np.array([columns, rows, columns, rows], np.float32))
        is_person = drawn[..., 3] > 127  # (h, w)
        total = float(np.count_nonzero(is_person))
        cut_left, cut_top = max(0, -x0), max(0, -y0)
        cut_right, cut_bottom = min(width, columns - x0), min(height, rows - y0)
        if cut_right <= cut_left or cut_bottom <= cut_top:
            return total, box
        drawn = drawn[cut_top:cut_bottom, cut_left:cut_right]
        is_person = is_person[cut_top:cut_bottom, cut_left:cut_right]
        if self._random.random() < RECTANGLE_SHARE:
            alpha = np.full(drawn.shape[:2], 255, np.uint8)
        else:
            alpha = drawn[..., 3]
            self._shade(canvas, (x, y, tall))
        where = (slice(y0 + cut_top, y0 + cut_bottom), slice(x0 + cut_left, x0 + cut_right))
        colours = self._light(drawn, is_person, ground)
        weight = cv2.merge([alpha] * 3)
        under = canvas[where]
        near = cv2.multiply(colours, weight, scale=1 / 255)
        far = cv2.multiply(under, cv2.bitwise_not(weight), scale=1 / 255)
        canvas[where] = cv2.add(near, far)
        owner[where][alpha > 127] = -1  # a rectangle also hides what is beside its person
        owner[where][is_person] = index
        return total, box

    def _light(self, bgra: UInt8, is_person: NDArray[np.bool_], ground: float) -> UInt8:
        """The person's colours in the light of the place: brightness goes part of the way to that of the ground, a little is chance."""
        own = float(np.array(cv2.mean(bgra, is_person.astype(np.uint8))[:3], np.float32) @ LUMA) if is_person.any() else ground
        gain = float(np.clip((max(ground, 20) * 0.75 / max(own, 20)) ** 0.3, 0.75, 1.35) * self._random.uniform(0.9, 1.1))
        gains = gain * self._random.normal(1, 0.02, 3)
        table = np.clip(np.arange(256)[:, None] * gains + self._random.uniform(-6, 10), 0, 255).astype(np.uint8)  # (256, 3)
        return np.asarray(cv2.LUT(cv2.cvtColor(bgra, cv2.COLOR_BGRA2BGR), table[None]), np.uint8)

    def _shade(self, canvas: UInt8, place: tuple[float, float, float]) -> None:
        """Darken the ground under the feet."""
        x, y, tall = place
        half, flat = max(2, int(0.2 * tall)), max(1, int(0.045 * tall))
        shade = np.zeros((4 * flat + 1, 2 * half + 1), np.float32)
        cv2.ellipse(shade, (half, 2 * flat), (int(half * 0.7), flat), 0, 0, 360, float(self._random.uniform(0.15, 0.5)), -1)
        shade = 1 - cv2.blur(shade, (half // 2 * 2 + 1, flat * 2 + 1))
        x0, y0 = int(x) - half, int(y) - 2 * flat - flat // 2
        left, top = max(0, -x0), max(0, -y0)
        part = canvas[max(0, y0) : max(0, y0 + shade.shape[0]), max(0, x0) : max(0, x0 + shade.shape[1])]
        if part.size:
            part[:] = part * shade[top : top + part.shape[0], left : left + part.shape[1], None]

    def _alter(self, bgr: UInt8) -> UInt8:
        """The whole frame as another camera would show it: light, tint, blur, noise, JPEG."""
        random = self._random
        gamma, gain, lift = np.exp(random.normal(0, 0.18)), random.uniform(0.85, 1.15), random.uniform(-8, 8)
        tint = random.normal(1, 0.04, 3)
        if random.random() < 0.15:
            tint = tint * np.array(BLUE_GAIN) ** random.uniform(0.5, 1.1)
        levels = (np.arange(256, dtype=np.float64) / 255) ** gamma * 255 * gain + lift
        bgr = cv2.LUT(bgr, np.clip(levels[:, None] * tint, 0, 255).astype(np.uint8)[None])
        kind = random.random()
        if kind < 0.35:
            bgr = cv2.GaussianBlur(bgr, (5, 5), random.uniform(0.4, 1.3))
        elif kind < 0.45:
            kernel = np.zeros((5, 5), np.float32)
            cv2.line(kernel, (0, int(random.integers(5))), (4, int(random.integers(5))), 1.0)
            bgr = cv2.filter2D(bgr, -1, kernel / kernel.sum())
        if random.random() < 0.7:
            start = int(random.integers(max(1, len(self._noise) - bgr.size)))
            noise = np.resize(self._noise[start : start + bgr.size], bgr.shape)
            strength = random.uniform(1, 7) / 32
            bgr = cv2.addWeighted(bgr, 1.0, noise, strength, 0.0, dtype=cv2.CV_8U)
        quality = int(random.integers(35, 91))
        encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)


def _feet(background: Background) -> Float32:
    """A grid of places for feet, float32 (N, 2) px, where a person is at least 8 px tall."""
    height, width = background.bgr.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    polygons = [np.round(np.array(polygon) * (width, height)).astype(np.int32) for polygon in background.area]
    cv2.fillPoly(mask, polygons, 1)  # even-odd: a polygon within another is a hole
    ys, xs = np.mgrid[0:height:GRID_PX, 0:width:GRID_PX]
    allowed = (mask[::GRID_PX, ::GRID_PX] > 0) & (background.ground.height_px(ys) >= 8)
    if not allowed.any():
        raise BadInputError(f"background {background.name!r} must have ground with people of at least 8 px: check its area and its ground")
    return np.stack([xs[allowed], ys[allowed]], axis=1).astype(np.float32)


def _box(alpha: UInt8) -> tuple[int, int, int, int]:
    """Left, top, right, bottom px of the person in the crop. A mask that misses head or feet does not make the person shorter."""
    height, width = alpha.shape
    rows, columns = np.flatnonzero((alpha > 127).any(1)), np.flatnonzero((alpha > 127).any(0))
    if not len(rows):
        return 0, 0, width, height
    top = int(rows[0]) if rows[0] < 0.12 * height else round(0.03 * height)
    bottom = int(rows[-1]) + 1 if rows[-1] > 0.88 * height else round(0.97 * height)
    return int(columns[0]), top, int(columns[-1]) + 1, bottom


def _shared(boxes: Float32, box: Float32) -> Float32:
    """Area that each of ``boxes`` (N, 4) shares with ``box`` (4,), as a share of the smaller of the two, float32 (N,)."""
    wide = np.minimum(boxes[:, 2], box[2]) - np.maximum(boxes[:, 0], box[0])
    tall = np.minimum(boxes[:, 3], box[3]) - np.maximum(boxes[:, 1], box[1])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    own = (box[2] - box[0]) * (box[3] - box[1])
    return np.asarray(wide.clip(0) * tall.clip(0) / np.minimum(areas, own), np.float32)


# ---- a folder of scenes


def write_scenes(
    folder: Path, composer: Composer, people: Sequence[str], count: int, width: int, height: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Write ``count`` scenes of ``people`` as 000001.jpg, ... and truth.jsonl; gives the lines of truth.jsonl.

    A line: {"file": "000001.jpg", "people": [{"person": "...", "xyxy": [x0, y0, x1, y1], "visible": 0.93}, ...]}, boxes in px. Everybody is
    well visible in at least two scenes, from another crop each time where there is one. Raises NotFoundError for a person of whom the
    composer has no cut-out, BadInputError when two scenes each would take more than 40 people a scene.
    """
    if missing := [person for person in people if person not in composer.names_of]:
        raise NotFoundError(f"no cut-out of {missing[0]!r}: give the composer crops of everybody")
    needed = 2.3 * len(people) / max(1, count)  # some will be hidden
    if not people or needed > 40:
        raise BadInputError(f"scenes must be enough to show everybody twice, got {count} for {len(people)} people: raise the count")
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    seen: Counter[str] = Counter()
    drawn: Counter[str] = Counter()
    first = {person: int(random.integers(len(composer.names_of[person]))) for person in people}
    lines: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        size = int(random.integers(max(3, round(0.6 * needed)), max(10, round(1.6 * needed)) + 1))
        size = min(len(people), max(size, -(-sum(max(0, 2 - seen[person]) for person in people) // (count - number + 1))))
        chance = random.random(len(people))
        chosen = [people[index] for index in sorted(range(len(people)), key=lambda index: (seen[people[index]], chance[index]))[:size]]
        names = []
        for person in chosen:
            own = _by_camera(composer.names_of[person])
            names.append(own[(first[person] + drawn[person]) % len(own)])
            drawn[person] += 1
        scene = composer.scene(width, height, size, (0.11 * height, 0.75 * height), names)
        seen.update(placed.person for placed in scene.people if placed.visible >= WELL_VISIBLE)
        file = f"{number:06d}.jpg"
        if not cv2.imwrite(str(folder / file), scene.bgr, [cv2.IMWRITE_JPEG_QUALITY, 92]):
            raise BadInputError(f"{folder / file} cannot be written: check the folder")
        shown = [
            {"person": placed.person, "xyxy": [round(float(value), 1) for value in placed.xyxy], "visible": placed.visible}
            for placed in scene.people
        ]
        lines.append({"file": file, "people": shown})
    _write_lines(folder / "truth.jsonl", lines)
    return lines


def _by_camera(names: Sequence[str]) -> list[str]:
    """Crops so that cameras take turns: a1, b3, a2, b4."""
    turn: Counter[str] = Counter()
    keyed = []
    for name in sorted(names):
        camera = name.split("/")[1][0]
        keyed.append((turn[camera], camera, name))
        turn[camera] += 1
    return [name for _, _, name in sorted(keyed)]


def descriptions(data: Path) -> dict[str, list[str]]:
    """What people wrote about each person of the research folder, and what a model wrote where that is not doubtful."""
    captions: dict[str, list[str]] = defaultdict(list)
    for line in _read_lines(data / "captions.jsonl"):
        captions[line["person"]].append(line["caption"])
    for line in _read_lines(data / "captions_written.jsonl"):
        if not line["doubtful"]:
            captions[line["person"]].extend(line["captions"])
    return dict(captions)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()] if path.exists() else []


def _write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a folder of scenes with truth.jsonl and described.jsonl ({"person", "captions"}), print what is in it as JSON."""
    parser = argparse.ArgumentParser(prog="python -m models.training.compose", description="Compose CCTV-like frames with known people.")
    parser.add_argument("--data", type=Path, required=True, help="folder with persons/, video/, frames/, captions.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder for the frames; never the repository")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--width", type=int, default=960, help="px")
    parser.add_argument("--height", type=int, default=540, help="px")
    parser.add_argument("--people", type=Path, help="file with one person id a line; default: everybody who is described")
    parser.add_argument("--cache", type=Path, help=".npz that keeps the masks between runs")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    captions = descriptions(chosen.data)
    people = sorted(captions)
    if chosen.people:
        people = list(dict.fromkeys(line.strip() for line in chosen.people.read_text("utf-8").splitlines() if line.strip()))
    crops = [sorted((chosen.data / "persons" / person).glob("*.jpg")) for person in people]
    if missing := [person for person, own in zip(people, crops, strict=True) if not own]:
        raise NotFoundError(f"no crops of {missing[0]!r} under {chosen.data / 'persons'}: correct --people or --data")
    names = [f"{path.parent.name}/{path.name}" for own in crops for path in own]
    composer = Composer(backgrounds(chosen.data), cutouts(chosen.data, names, chosen.cache), chosen.seed)
    lines = write_scenes(chosen.out, composer, people, chosen.scenes, chosen.width, chosen.height, chosen.seed)
    _write_lines(chosen.out / "described.jsonl", [{"person": person, "captions": captions.get(person, [])} for person in people])
    boxes = [shown for line in lines for shown in line["people"]]
    often = Counter(shown["person"] for shown in boxes if shown["visible"] >= WELL_VISIBLE)
    fewest = min(often[person] for person in people)
    print(json.dumps({"scenes": len(lines), "people": len(people), "boxes": len(boxes), "fewest good views of a person": fewest}))


if __name__ == "__main__":
    main()
