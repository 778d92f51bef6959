"""The trained parts as files: two ONNX graphs (people, cells), an npz for what numpy runs, and the torch state. Weights are float16.

The graphs are written node by node, so that they do not depend on an exporter's version; a test compares them with torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from models.detector_retriever.base import LEAK, Convolution, CspStage
from models.detector_retriever.conditioning import Conditioning
from models.detector_retriever.network import (
    ATTRIBUTE_SCALE,
    COLOUR_STRIPES,
    COLUMNS,
    PIXEL_COLUMNS,
    PIXEL_ROWS,
    ROWS,
    STRIPES,
    IdNet,
    WordNet,
)
from models.detector_retriever.words import Vocabulary
from pipeline.search.description import Term

Array = NDArray[Any]
OPSET, IR_VERSION = 18, 9


class Graph:
    """Nodes and float16 weights of a graph while it grows."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, values: torch.Tensor | Array, is_exact: bool = False) -> str:
        """A constant; float16 in the file and float32 in use, unless it must be exact."""
        array = values.detach().cpu().float().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
        name = f"w{len(self.weights)}"
        if is_exact or array.dtype.kind != "f":
            self.weights.append(numpy_helper.from_array(array, name))
            return name
        self.weights.append(numpy_helper.from_array(array.astype(np.float16), f"{name}_half"))
        return self.node("Cast", [f"{name}_half"], to=TensorProto.FLOAT)

    def node(self, operator: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        output = output or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def convolution(self, source: str, module: nn.Conv2d, output: str = "") -> str:
        inputs, pads = [source, self.weight(module.weight), self.weight(module.bias)], [*module.padding] * 2
        size, strides = list(module.kernel_size), list(module.stride)
        return self.node("Conv", inputs, output, kernel_shape=size, strides=strides, pads=pads, group=module.groups)

    def layer(self, source: str, module: Convolution) -> str:
        made = self.convolution(source, module.convolution)
        return self.node("LeakyRelu", [made], alpha=LEAK) if module.is_activated else made

    def stage(self, source: str, module: CspStage) -> str:
        entered = self.layer(source, module.enter)
        x = entered
        for block in module.blocks:
            first = self.layer(x, block.first)
            x = self.node("Concat", [self.layer(first, block.second), first], axis=1)
        return self.node("Concat", [self.layer(x, module.leave), entered], axis=1)

    def linear(self, source: str, weight: torch.Tensor, bias: torch.Tensor, output: str = "") -> str:
        """source (N, F) times weight (F, D) plus bias (D,)."""
        return self.node("Gemm", [source, self.weight(weight), self.weight(bias, is_exact=True)], output)

    def pooled_rows(self, source: str, rows: int, parts: int) -> str:
        """(N, C, rows, 1) -> (N, C, parts, 1), the mean of equal parts."""
        return self.node("AveragePool", [source], kernel_shape=[rows // parts, 1], strides=[rows // parts, 1])

    def flat(self, source: str) -> str:
        return self.node("Flatten", [source], axis=1)

    def save(self, path: Path, name: str, inputs: Mapping[str, tuple[int, list[Any]]], outputs: Mapping[str, list[Any]]) -> None:
        ins = [helper.make_tensor_value_info(key, kind, shape) for key, (kind, shape) in inputs.items()]
        outs = [helper.make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in outputs.items()]
        graph = helper.make_graph(self.nodes, name, ins, outs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        onnx.save(model, path)


def export_people(net: IdNet, path: Path) -> None:
    """The ID-Net: maps, pictures, boxes (N, 4) and their place in the batch -> body, text (N, 256), parts (N, 6, 256), not normalised."""
    graph = Graph()

    def region(maps: str, rows: int, columns: int, scale: float) -> str:
        inputs, size = [maps, "boxes", "picture"], {"output_height": rows, "output_width": columns}
        return graph.node("RoiAlign", inputs, "", **size, sampling_ratio=2, spatial_scale=scale, mode="avg")

    fine, middle = region("fine", ROWS, COLUMNS, 1 / 4), region("middle", ROWS, COLUMNS, 1 / 8)
    pixels = region("pictures", PIXEL_ROWS, PIXEL_COLUMNS, 1.0)
    early = graph.stage(graph.node("Add", [middle, graph.layer(fine, net.fuse)]), net.early)  # (N, 256, 12, 4)
    late = early if net.late is None else graph.stage(early, net.late)  # (N, 512, 6, 2)
    last = graph.weight(np.array([3], np.int64))
    rows = graph.node("ReduceMean", [early, last], keepdims=1)  # (N, 256, 12, 1)
    colours = graph.node("Softmax", [graph.convolution(pixels, net.colours)], axis=1)  # (N, 48, 48, 16)
    weighed = graph.node("ReduceSum", [graph.node("Mul", [colours, graph.weight(net.columns)]), last], keepdims=1)  # (N, 48, 48, 1)
    histogram = graph.node("Add", [graph.pooled_rows(weighed, PIXEL_ROWS, COLOUR_STRIPES), graph.weight(np.float32(1e-4), is_exact=True)])
    whole = graph.node("GlobalAveragePool", [late])
    joined = graph.node(
        "Concat",
        [
            graph.flat(whole),
            graph.flat(graph.node("GlobalMaxPool", [late])),
            graph.flat(graph.pooled_rows(rows, ROWS // 2, STRIPES)),
            graph.flat(graph.node("Sqrt", [histogram])),
        ],
        axis=1,
    )  # (N, F)
    scale = net.norm.weight / torch.sqrt(net.norm.running_var + net.norm.eps)  # the batch norm goes into the linear maps
    shift = net.norm.bias - net.norm.running_mean * scale
    for name, linear in (("body", net.body), ("text", net.text)):
        weight = linear.weight.T * scale[:, None]
        graph.linear(joined, weight, linear.bias + shift @ linear.weight.T, name)
    scales = [graph.flat(whole)]
    for parts in (2, 3):
        pooled = graph.node("Squeeze", [graph.pooled_rows(rows, ROWS // 2, parts), last])  # (N, 256, parts)
        scales += [graph.node("Gather", [pooled, graph.weight(np.array(place, np.int64))], axis=2) for place in range(parts)]
    made = [graph.linear(scale, part.weight.T, part.bias) for scale, part in zip(scales, net.parts, strict=True)]
    one = graph.weight(np.array([1], np.int64))
    graph.node("Concat", [graph.node("Unsqueeze", [each, one]) for each in made], "parts", axis=1)
    maps: dict[str, tuple[int, list[Any]]] = {
        "fine": (TensorProto.FLOAT, ["batch", 64, "h4", "w4"]),
        "middle": (TensorProto.FLOAT, ["batch", 128, "h8", "w8"]),
        "pictures": (TensorProto.FLOAT, ["batch", 3, "h", "w"]),
        "boxes": (TensorProto.FLOAT, ["people", 4]),
        "picture": (TensorProto.INT64, ["people"]),
    }
    width = net.body.out_features
    graph.save(path, "people", maps, {"body": ["people", width], "text": ["people", width], "parts": ["people", len(net.parts), width]})


def export_cells(net: Conditioning, path: Path) -> None:
    """The grid of the query-conditioned heads: maps of stride 16 and 8 -> cells (B, M, H/16, W/16)."""
    graph = Graph()
    halved = graph.node("AveragePool", ["middle"], kernel_shape=[2, 2], strides=[2, 2])
    summed = graph.node("Add", [graph.convolution("coarse", net.coarse), graph.convolution(halved, net.middle)])
    active = graph.node("LeakyRelu", [summed], alpha=0.1)
    graph.node("Add", [active, graph.convolution(active, net.mix)], "cells")
    maps: dict[str, tuple[int, list[Any]]] = {
        "coarse": (TensorProto.FLOAT, ["batch", 256, "h16", "w16"]),
        "middle": (TensorProto.FLOAT, ["batch", 128, "h8", "w8"]),
    }
    graph.save(path, "cells", maps, {"cells": ["batch", net.coarse.out_channels, "h16", "w16"]})


def word_arrays(net: WordNet, vocabulary: Vocabulary) -> dict[str, Array]:
    """What WordReader reads."""
    kernel = net.convolution.weight.detach().cpu().numpy()  # (H, E, 3)
    arrays: dict[str, Array] = {
        "word_vectors": _half(net.words.weight),
        "convolution": kernel.transpose(2, 1, 0).reshape(-1, kernel.shape[0]).astype(np.float16),
        "convolution_bias": _half(net.convolution.bias),
        "term_vectors": _half(net.terms.weight.T),
    }
    for name, linear in (("sentence", net.sentence), ("clause", net.clause), ("word", net.word)):
        arrays |= {f"{name}_weight": _half(linear.weight.T), f"{name}_bias": _half(linear.bias)}
    arrays["word_vectors"][0] = 0
    return {**arrays, "words": np.array(list(vocabulary.words)), "terms": term_names(list(vocabulary.terms))}


def attribute_arrays(net: IdNet, terms: list[Term]) -> dict[str, Array]:
    """What words.Attributes reads, without the calibration."""
    weight = net.attributes.weight.T * ATTRIBUTE_SCALE
    return {"attribute_weight": _half(weight), "attribute_bias": _half(net.attributes.bias), "attribute_terms": term_names(terms)}


def conditioning_arrays(net: Conditioning) -> dict[str, Array]:
    """What runtime.Conditioned reads: the layers behind the grid, by their names in torch."""
    used = ("gate.", "gated.", "phrase.", "join.", "shared.", "confidence.")
    return {f"conditioning.{name}": _half(value) for name, value in net.state_dict().items() if name.startswith(used)}


def term_names(terms: list[Term]) -> Array:
    """Terms as they are stored."""
    return np.array(["|".join(term) for term in terms])


def _half(values: torch.Tensor) -> Array:
    array: Array = values.detach().cpu().float().numpy()
    return array.astype(np.float16)
