"""How each fetched weight becomes one ONNX file: what the manifest names as ``converter``. ``source`` is the folder of its members."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import onnx

from models.convert import tensorflow_js
from models.convert.release import release
from models.convert.translate import translate


def nanodet(source: Path, target: Path) -> None:
    """NanoDet with free batch and size; NCHW input, six outputs."""
    onnx.save(release(translate(tensorflow_js.read(source / "nanodet.json")), height_axis=2, width_axis=3), target)


def centernet(source: Path, target: Path) -> None:
    """CenterNet up to its heat map and sizes, with free batch and size; NHWC input. The decoding is ours (models/centernet.py)."""
    graph = tensorflow_js.read(source / "centernet.json", outputs=("tower_0/keypoints", "tower_0/wh"))
    onnx.save(release(translate(graph), height_axis=1, width_axis=2), target)


def blazeface(source: Path, target: Path) -> None:
    """BlazeFace-back, 256 x 256."""
    _plain(source / "blazeface.json", target)


def faceres(source: Path, target: Path) -> None:
    """FaceRes up to its 1024-d pooled vector, 224 x 224; its guesses at age and gender are left out."""
    _plain(source / "faceres.json", target, ("global_pooling/Mean",))


def _plain(source: Path, target: Path, outputs: Sequence[str] = ()) -> None:
    onnx.save(translate(tensorflow_js.read(source, outputs)), target)


def keep(source: Path, target: Path) -> None:
    """A single member as it is."""
    shutil.copyfile(next(path for path in source.iterdir() if path.is_file()), target)
