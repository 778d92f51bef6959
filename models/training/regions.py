"""What the frozen base makes of every crop and of composed scenes, kept in a folder so that training passes the base once.

views/N_{fine,middle,pixels}.npy: regions of every crop, as it is (view 0) or altered, float16 and uint8, one row per crop name.
scenes_{fine,middle,pixels}.npy: regions of the people of composed scenes, boxes jittered as a detector's; scenes_{coarse,halved}.npy: the
maps of stride 16 (the middle map halved); people.npy: scene, crop row, box and visible share of each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from models.detector_retriever.base import Base
from models.detector_retriever.network import COLUMNS, PIXEL_COLUMNS, PIXEL_ROWS, ROWS, Regions, regions_of
from models.detector_retriever.runtime import CANVAS_HEIGHT_PX, CANVAS_WIDTH_PX, CROP_HEIGHT_PX, on_canvas
from models.detector_retriever.words import unit
from models.nanodet import MEAN_BGR, STD_BGR
from models.preprocess import open_session
from models.training.compose import Composer, backgrounds, cutouts
from pipeline.errors import NotFoundError, UnreadableMediaError

Say = Callable[[str], None]
Uint8 = NDArray[np.uint8]

SCENE_WIDTH_PX, SCENE_HEIGHT_PX, SCENE_PEOPLE = 640, 480, 12
TALLEST_PX = (120.0, 230.0, 300.0)  # of a scene's people, drawn per scene: near and far cameras
JITTER = 0.04  # of a box's sides
BATCH = 16


def crop_names(persons: Path) -> list[str]:
    """PERSON/<camera><n>.jpg of every crop, sorted; raises NotFoundError when there is none."""
    names = sorted(str(path.relative_to(persons)) for path in persons.glob("*/*.jpg"))
    if not names:
        raise NotFoundError(f"{persons} must hold a folder of crops per person, found none")
    return names


def tensor_of(pictures: Sequence[Uint8]) -> torch.Tensor:
    """BGR pictures of one size, standardised: (B, 3, H, W)."""
    stacked = (np.stack(pictures).astype(np.float32) - MEAN_BGR) / STD_BGR
    return torch.from_numpy(stacked.transpose(0, 3, 1, 2).copy()).contiguous(memory_format=torch.channels_last)


def altered(picture: Uint8, random: np.random.Generator) -> Uint8:
    """As another camera and detector might have given it: other light and tint, a looser or tighter box, mirrored, less sharp."""
    height, width = picture.shape[:2]
    border = cv2.copyMakeBorder(picture, height // 8, height // 8, width // 6, width // 6, cv2.BORDER_REPLICATE)
    top, bottom = random.integers(0, height // 6, 2)
    left, right = random.integers(0, width // 4, 2)
    shot: Any = border[top : len(border) - bottom, left : border.shape[1] - right]
    if random.random() < 0.5:
        shot = shot[:, ::-1]
    if random.random() < 0.5:
        shrink = random.uniform(0.35, 0.9)
        small = cv2.resize(np.ascontiguousarray(shot), None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        shot = cv2.resize(small, (shot.shape[1], shot.shape[0]), interpolation=cv2.INTER_LINEAR)
    light = (np.asarray(shot, np.float32) / 255) ** random.uniform(0.75, 1.3) * random.uniform(0.85, 1.15)
    tinted: Uint8 = np.clip(light * random.uniform(0.92, 1.08, 3) * 255, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(tinted)


@dataclass(frozen=True)
class Stored:
    """Regions on disk; rows are read when they are asked for."""

    fine: NDArray[np.float16]
    middle: NDArray[np.float16]
    pixels: Uint8

    @classmethod
    def open(cls, prefix: Path, rows: int | None = None) -> Stored:
        """Read, or with ``rows`` make, the files that begin with ``prefix``."""
        shapes = {"fine": (64, ROWS, COLUMNS), "middle": (128, ROWS, COLUMNS), "pixels": (3, PIXEL_ROWS, PIXEL_COLUMNS)}
        opened: dict[str, Any] = {}
        for name, shape in shapes.items():
            path, kind = prefix.with_name(f"{prefix.name}_{name}.npy"), np.uint8 if name == "pixels" else np.float16
            opened[name] = np.load(path, mmap_mode="r") if rows is None else np.lib.format.open_memmap(path, "w+", kind, (rows, *shape))
        return cls(**opened)

    def write(self, start: int, regions: Regions) -> None:
        """Keep regions from row ``start`` on."""
        rows = slice(start, start + len(regions.fine))
        self.fine[rows], self.middle[rows] = regions.fine.half().numpy(), regions.middle.half().numpy()
        bgr = regions.pixels.permute(0, 2, 3, 1).numpy() * STD_BGR + MEAN_BGR  # (N, 48, 16, 3)
        self.pixels[rows] = np.clip(np.round(bgr), 0, 255).astype(np.uint8).transpose(0, 3, 1, 2)


def gather(stored: Sequence[Stored], which: Sequence[int], rows: Sequence[int], device: str = "cpu") -> Regions:
    """Row ``rows[i]`` of ``stored[which[i]]``: regions of N people."""
    fine, middle, pixels = (
        torch.from_numpy(np.stack([getattr(stored[source], name)[row] for source, row in zip(which, rows, strict=True)]))
        for name in ("fine", "middle", "pixels")
    )
    mean, spread = (torch.from_numpy(values).view(1, 3, 1, 1) for values in (MEAN_BGR, STD_BGR))
    standard = (pixels.float() - mean) / spread
    fine, middle = (x.to(device).float().contiguous(memory_format=torch.channels_last) for x in (fine, middle))
    return Regions(fine, middle, standard.to(device))


def make_views(data: Path, folder: Path, base: Base, count: int, seed: int, say: Say) -> None:
    """Regions of every crop as it is and ``count - 1`` times altered; those that are there already are kept."""
    names = crop_names(data / "persons")
    (folder / "views").mkdir(parents=True, exist_ok=True)
    for view in range(count):
        done = folder / "views" / f"{view}.done"
        if done.exists():
            continue
        random = np.random.default_rng([seed, view])
        stored = Stored.open(folder / "views" / str(view), len(names))
        for start in range(0, len(names), BATCH):
            drawn = [_drawn(data / "persons" / name, random if view else None) for name in names[start : start + BATCH]]
            boxes = torch.tensor([[row, *box] for row, (_, box) in enumerate(drawn)], dtype=torch.float32)
            pictures = tensor_of([canvas for canvas, _ in drawn])
            fine, middle = _low_maps(base, pictures)
            stored.write(start, regions_of(fine, middle, pictures, boxes))
        done.touch()
        say(f"view {view + 1} of {count}: {len(names)} crops")


def _read(path: Path) -> Uint8:
    picture = cv2.imread(str(path))
    if picture is None:
        raise UnreadableMediaError(f"{path} must be a picture that can be decoded")
    return np.asarray(picture, np.uint8)


def _drawn(path: Path, random: np.random.Generator | None) -> tuple[Uint8, tuple[int, int, int, int]]:
    bgr = _read(path)
    if random is None:
        return on_canvas(bgr, CROP_HEIGHT_PX)
    bgr, height = altered(bgr, random), int(random.uniform(96, CROP_HEIGHT_PX + 1))
    width = min(max(round(height * bgr.shape[1] / bgr.shape[0]), 24), CANVAS_WIDTH_PX)
    top, left = int(random.integers(0, CANVAS_HEIGHT_PX - height + 1)), int(random.integers(0, CANVAS_WIDTH_PX - width + 1))
    return on_canvas(bgr, height, top, left)


@torch.no_grad()  # type: ignore[untyped-decorator]
def _low_maps(base: Base, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = functional.max_pool2d(base.stem(pictures), 3, 2, 1)
    fine = base.stages[0](x)
    return fine, base.stages[1](fine)


def make_scenes(data: Path, folder: Path, base: Base, rounds: int, held_out: set[str], seed: int, say: Say) -> None:
    """Scenes in which every crop stands ``rounds`` times; people held out stand in scenes of their own. Kept when already there."""
    done = folder / "scenes.done"
    if done.exists():
        return
    names = crop_names(data / "persons")
    row_of = {name: row for row, name in enumerate(names)}
    cuts = cutouts(data, names, folder / "masks.npz")
    places, random = backgrounds(data), np.random.default_rng([seed, 1])
    plans: list[tuple[Composer, list[str]]] = []
    for is_held in (False, True):
        own = [cut for cut in cuts if (cut.person in held_out) == is_held]
        if own:
            composer = Composer(places, own, seed + is_held)
            plans += [(composer, group) for group in _groups([cut.name for cut in own], rounds, random)]
    total = sum(len(group) for _, group in plans)
    stored = Stored.open(folder / "scenes", total)
    grid = SCENE_HEIGHT_PX // 16, SCENE_WIDTH_PX // 16
    coarse = np.lib.format.open_memmap(folder / "scenes_coarse.npy", "w+", np.float16, (len(plans), 256, *grid))
    halved = np.lib.format.open_memmap(folder / "scenes_halved.npy", "w+", np.float16, (len(plans), 128, *grid))
    people: list[tuple[float, ...]] = []
    for scene, (composer, group) in enumerate(plans):
        made = composer.scene(SCENE_WIDTH_PX, SCENE_HEIGHT_PX, len(group), (36.0, float(random.choice(TALLEST_PX))), group)
        placed = [each for each in made.people if each.xyxy[2] - each.xyxy[0] >= 6 and each.xyxy[3] - each.xyxy[1] >= 24]
        boxes = np.stack([_jittered(each.xyxy, random) for each in placed])
        pictures = tensor_of([made.bgr])
        with torch.no_grad():
            fine, middle = _low_maps(base, pictures)
            coarse[scene] = base.stages[2](middle)[0].half().numpy()
            halved[scene] = functional.avg_pool2d(middle, 2)[0].half().numpy()
        numbered = torch.from_numpy(np.pad(boxes, ((0, 0), (1, 0))).astype(np.float32))
        stored.write(len(people), regions_of(fine, middle, pictures, numbered))
        people += [(scene, row_of[each.name], *each.xyxy.tolist(), each.visible) for each in placed]
        if scene % 200 == 0:
            say(f"scene {scene + 1} of {len(plans)}")
    np.save(folder / "people.npy", np.array(people, np.float64))
    done.touch()


def make_teacher(data: Path, folder: Path, path: Path) -> None:
    """What a re-identification network says of every crop: teacher.npy, float32 (N, D) of length 1. path: ONNX, (B, 3, 256, 128) RGB."""
    if (folder / "teacher.npy").exists():
        return
    session: Any = open_session(path)
    given, mean, spread = session.get_inputs()[0].name, np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    vectors = []
    for name in crop_names(data / "persons"):
        rgb = cv2.resize(_read(data / "persons" / name), (128, 256))[..., ::-1] / 255.0
        vectors.append(session.run(None, {given: ((rgb - mean) / spread).astype(np.float32).transpose(2, 0, 1)[None]})[0][0])
    np.save(folder / "teacher.npy", unit(np.stack(vectors)))


def _groups(names: Sequence[str], rounds: int, random: np.random.Generator) -> list[list[str]]:
    """Every name ``rounds`` times, in groups of SCENE_PEOPLE different people."""
    groups = []
    for _ in range(rounds):
        left = [names[index] for index in random.permutation(len(names))]
        while len(left) >= SCENE_PEOPLE // 2:
            group: dict[str, str] = {}
            rest = []
            for name in left:
                is_taken = name.split("/")[0] not in group and len(group) < SCENE_PEOPLE
                group.update({name.split("/")[0]: name}) if is_taken else rest.append(name)
            left = rest
            if len(group) < SCENE_PEOPLE // 2:
                break
            groups.append(list(group.values()))
    return groups


def _jittered(box: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float64]:
    """A box as a detector would have drawn it."""
    sides = np.tile(box[2:] - box[:2], 2)
    moved: NDArray[np.float64] = np.clip(box + random.normal(0, JITTER, 4) * sides, 0, [SCENE_WIDTH_PX, SCENE_HEIGHT_PX] * 2)
    return moved


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
