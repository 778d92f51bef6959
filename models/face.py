"""Faces and their vectors: found, aligned, described; a gate leaves out those too small, blurred or turned away to tell anything.

MobileFaceNet (Chen et al., 2018), FaceRes, or any ONNX model of insightface's layout. FaceRes is used for its pooled vector alone: its
guesses at age and gender are never computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from models.blazeface import BlazeFace
from models.preprocess import cut_out, open_session
from pipeline.calibration import Logistic
from pipeline.errors import SettingsError
from pipeline.ports import Face
from pipeline.types import FACE, Embedding

Float32 = NDArray[np.float32]
Pixels = NDArray[np.uint8]

MOBILEFACENET, FACERES = "mobilefacenet@1", "faceres@1"
# Fitted on 18,726 pairs of 40 crops of 8 actors at full size and 64, 48, 32, 26 px: midpoints 0.46 and 0.51, slopes 41 and 40. Eight
# people in one good light are an easy set: the slopes are halved, the midpoints put up to where about 1 % of other people pass.
CURVES: Mapping[str, Logistic] = {MOBILEFACENET: Logistic(0.48, 20.0), FACERES: Logistic(0.54, 20.0)}

ALIGNED_SIDE = 112
# ArcFace's template (Deng et al., 2019), its two corners of the mouth taken as one: eyes, nose tip, mouth, in pixels of 112 x 112.
TEMPLATE = np.asarray([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [56.1396, 92.2848]], np.float64)
FACERES_SIDE = 224
MEAN_BGR = np.asarray([103.9, 116.8, 123.7], np.float32)
MARGIN = 0.6  # FaceRes tells people apart best when the crop shows the hair and chin too: AUC .95 at 0, .98 at .3, .994 at .6

LEAST_CONFIDENCE, SURE_CONFIDENCE = 0.52, 0.77  # sleeves and watches are found at .5 to .6, 19 of 20 faces above .77
LEAST_SIDE_PX = 24.0  # below this the vector is confident nonsense
HOPELESS = 0.7  # of that: so small a face is not looked at again, which might find it a little larger
FULL_SIDE_PX = 80.0
LEAST_SHARPNESS = 25.0  # variance of the Laplacian at 64 x 64
FULL_SHARPNESS = 200.0
MOST_FLATNESS = 0.35  # 333 photographs, also squeezed and enlarged: at most .25; cartoons .36 to .74
LEAST_QUALITY = 0.2
SHARPNESS_SIDE = 64


class FaceVectors(Protocol):
    """A face of a picture to a vector: of length 1, in ``space``."""

    @property
    def space(self) -> str: ...

    def vector(self, bgr: Pixels, box: Float32, points: Float32) -> Float32:
        """float32 (D,) of the face at ``box`` (4,) with key points (6, 2) as BlazeFace gives them."""
        ...


class MobileFaceNet:
    """192 numbers of an aligned face, the mean of it and its mirror image. model: as models/convert/recipes.py writes it."""

    space = MOBILEFACENET

    def __init__(self, model: Path, threads: int = 1) -> None:
        self._session = open_session(model, threads)
        self._input = self._session.get_inputs()[0].name

    def vector(self, bgr: Pixels, box: Float32, points: Float32) -> Float32:
        """See FaceVectors."""
        rgb = (aligned(bgr, points)[..., ::-1].astype(np.float32) - 127.5) / 128  # (112, 112, 3)
        both: Float32 = self._session.run(None, {self._input: np.stack([rgb, rgb[:, ::-1]])})[0]  # (2, 192)
        return _unit((both / np.maximum(np.linalg.norm(both, axis=1, keepdims=True), 1e-9)).sum(axis=0))


class FaceRes:
    """1024 numbers of a face with hair and chin. model: as models/convert/recipes.py writes it."""

    space = FACERES

    def __init__(self, model: Path, threads: int = 1) -> None:
        self._session = open_session(model, threads)
        self._input = self._session.get_inputs()[0].name

    def vector(self, bgr: Pixels, box: Float32, points: Float32) -> Float32:
        """See FaceVectors."""
        prepared = square_crop(bgr, box, FACERES_SIDE, MARGIN).astype(np.float32)[None] - MEAN_BGR  # (1, 224, 224, 3)
        return _unit(self._session.run(None, {self._input: prepared})[0][0])


class OwnFaceModel:
    """An ONNX file of insightface's layout: (1, 3, 112, 112) RGB (x - 127.5) / 127.5, aligned to ArcFace's template, to D numbers.

    Its space is the file's name and the first 8 digits of its sha256: another file is another space. Raises SettingsError for a file
    that is missing, is no ONNX model or takes something else.
    """

    def __init__(self, model: Path, threads: int = 1) -> None:
        if not model.is_file():
            raise SettingsError(f"embed.face_model must be mobilefacenet, faceres or an .onnx file, got {model}, which is not there")
        content = model.read_bytes()
        self.space = f"{model.stem}@{hashlib.sha256(content).hexdigest()[:8]}"
        try:
            self._session = open_session(content, threads)
        except Exception as error:  # onnxruntime has no common class of its own for what does not load
            raise SettingsError(f"embed.face_model must be an ONNX model, {model} does not load: {str(error).splitlines()[0]}") from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or not _fits(inputs[0].shape):
            raise SettingsError(
                f"embed.face_model must take (1, 3, {ALIGNED_SIDE}, {ALIGNED_SIDE}), {model.name} takes {[each.shape for each in inputs]}"
            )
        self._input = inputs[0].name
        tried = np.asarray(self._session.run(None, {self._input: np.zeros((1, 3, ALIGNED_SIDE, ALIGNED_SIDE), np.float32)})[0])
        if tried.ndim != 2 or tried.shape[0] != 1 or tried.shape[1] < 2:
            raise SettingsError(f"embed.face_model must give (1, D), {model.name} gives {tried.shape}")

    def vector(self, bgr: Pixels, box: Float32, points: Float32) -> Float32:
        """See FaceVectors."""
        rgb = (aligned(bgr, points)[..., ::-1].astype(np.float32) - 127.5) / 127.5
        return _unit(self._session.run(None, {self._input: np.ascontiguousarray(rgb.transpose(2, 0, 1))[None]})[0][0])


def _fits(shape: list[Any]) -> bool:
    """Whether an input takes one aligned face, its free lengths (names, None) being anything."""
    wanted = (1, 3, ALIGNED_SIDE, ALIGNED_SIDE)
    return len(shape) == 4 and all(not isinstance(length, int) or length == want for length, want in zip(shape, wanted, strict=True))


def _unit(vector: Float32) -> Float32:
    made: Float32 = (vector / max(float(np.linalg.norm(vector)), 1e-9)).astype(np.float32)
    return made


class GatedFaceEncoder:
    """The FaceEncoder port: BlazeFace finds, the gate chooses, ``vectors`` describes.

    is_gated: False, for measuring, lets all through; may_be_tight: False, for pictures with room around a head, saves a second search.
    """

    def __init__(self, detector: BlazeFace, vectors: FaceVectors, is_gated: bool = True, may_be_tight: bool = True) -> None:
        self._detector, self._vectors, self._is_gated, self._may_be_tight = detector, vectors, is_gated, may_be_tight
        self.space = vectors.space

    def faces(self, bgr: Pixels) -> list[Face]:
        """The faces of a BGR picture (h, w, 3), best quality first; the embedding is None where the gate closed."""
        hopeless_px = HOPELESS * LEAST_SIDE_PX if self._is_gated else 0.0
        found = self._detector.find(bgr, hopeless_px, self._may_be_tight)
        faces = []
        for box, points, sure in zip(found.boxes, found.points, found.confidence, strict=True):
            quality, flaw = face_quality(box, points, square_crop(bgr, box, SHARPNESS_SIDE), float(sure))
            embedding = None
            if not flaw or not self._is_gated:
                vector = self._vectors.vector(bgr, box, points)
                embedding = Embedding(FACE, self.space, vector, quality) if np.isfinite(vector).all() and vector.any() else None
            faces.append(Face(box, float(sure), quality, embedding, flaw))
        return sorted(faces, key=lambda face: -face.quality)


def similarity_transform(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The turn, scale and shift, (2, 3), that bring points ``source`` (N, 2) nearest to ``target`` (N, 2) (Umeyama, 1991); no mirroring."""
    centre, goal = source.mean(axis=0), target.mean(axis=0)
    from_centre, from_goal = source - centre, target - goal
    left, strength, right = np.linalg.svd(from_goal.T @ from_centre / len(source))
    signs = np.asarray([1.0, np.sign(np.linalg.det(left @ right)) or 1.0])
    turn = left @ np.diag(signs) @ right
    scale = float((strength * signs).sum() / max(from_centre.var(axis=0).sum(), 1e-9))
    return np.concatenate([scale * turn, (goal - scale * turn @ centre)[:, None]], axis=1)


def aligned(bgr: Pixels, points: Float32) -> Pixels:
    """The face with key points (6, 2) upright on ArcFace's template, (112, 112, 3)."""
    return cut_out(bgr, similarity_transform(points[:4].astype(np.float64), TEMPLATE), ALIGNED_SIDE)


def square_crop(bgr: Pixels, box: Float32, side: int, margin: float = 0.0) -> Pixels:
    """The square around a face box, grown by ``margin`` and scaled to ``side``; what lies outside the picture repeats its edge."""
    centre = (box[:2] + box[2:]) / 2
    half = max(float(max(box[2] - box[0], box[3] - box[1])) / 2 * (1 + margin), 0.5)
    scale = side / (2 * half)
    return cut_out(bgr, np.asarray([[scale, 0, -(centre[0] - half) * scale], [0, scale, -(centre[1] - half) * scale]], np.float64), side)


def face_quality(box: Float32, points: Float32, crop: Pixels, confidence: float = 1.0) -> tuple[float, str]:
    """0..1 from size, sharpness, pose and how sure the detector is, and what the worst of them is where a vector would tell nothing.

    box: (4,); points: (6, 2); crop: the face alone, BGR (64, 64, 3).
    """
    side = float(min(box[2] - box[0], box[3] - box[1]))
    if side < LEAST_SIDE_PX:
        return 0.0, f"too small: {side:.0f} px, {LEAST_SIDE_PX:.0f} needed"
    sharpness = float(cv2.Laplacian(cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY), cv2.CV_32F).var())
    if sharpness < LEAST_SHARPNESS:
        return 0.0, "blurred"
    if flatness(crop) > MOST_FLATNESS:
        return 0.0, "drawn, not photographed"
    factors = {
        "perhaps no face": float(np.clip((confidence - LEAST_CONFIDENCE) / (SURE_CONFIDENCE - LEAST_CONFIDENCE), 0.0, 1.0)),
        "turned away": frontality(points),
        "too small": 0.3 + 0.7 * min(1.0, (side - LEAST_SIDE_PX) / (FULL_SIDE_PX - LEAST_SIDE_PX)),
        "blurred": min(1.0, 0.5 + 0.5 * sharpness / FULL_SHARPNESS),
    }
    quality = float(np.prod(list(factors.values())))
    return quality, min(factors, key=lambda name: factors[name]) if quality < LEAST_QUALITY else ""


def flatness(crop: Pixels) -> float:
    """0..1: how much of a crop (h, w, 3) is of one colour with its neighbours: up to a quarter of photographs, a third and more of drawings
    with filled shapes. A shaded drawing, or a photograph of one, passes as a face."""
    square = np.ones((3, 3), np.uint8)
    span = cv2.dilate(crop, square).astype(np.int16) - cv2.erode(crop, square)
    return float((span.max(axis=2) <= 2).mean())


def frontality(points: Float32) -> float:
    """0..1: how much a face looks at the camera, from its key points (6, 2). A head that only leans to a shoulder loses nothing."""
    eyes, nose, mouth = points[:2].astype(np.float64), points[2].astype(np.float64), points[3].astype(np.float64)
    across = eyes[1] - eyes[0]
    wide = float(np.linalg.norm(across))
    if wide < 1e-6:
        return 0.0
    right = across / wide
    down = np.asarray([-right[1], right[0]])
    middle = eyes.mean(axis=0)
    tall = float((mouth - middle) @ down)  # eyes to mouth: about 1.1 times the distance of the eyes
    if tall <= 0.2 * wide:
        return 0.0
    turned = abs(float((nose - middle) @ right)) / max(wide, 0.6 * tall)  # 0 ahead, 0.5 when the nose stands under one eye
    nodded = abs(float((nose - middle) @ down) / tall - 0.55)
    return max(0.0, 1.0 - turned) * max(0.0, 1.0 - max(0.0, nodded - 0.12) / 0.4)
