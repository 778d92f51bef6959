"""Frees a translated model of its fixed batch, height and width, so that one network serves every frame size."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from models.convert.translate import shapes_of
from pipeline.errors import UnreadableMediaError


def release(model: onnx.ModelProto, height_axis: int, width_axis: int) -> onnx.ModelProto:
    """``model`` with free batch, height and width: fixed resize targets become scales, fixed reshapes keep their batch.

    Every size must stay a multiple of the network's largest stride. Raises UnreadableMediaError for a resize whose input has no known size.
    """
    shapes = shapes_of(model)
    graph = model.graph
    stored = {initializer.name: numpy_helper.to_array(initializer) for initializer in graph.initializer}
    for node in graph.node:
        if node.op_type == "Resize":
            before = shapes.get(node.input[0])
            if before is None or len(before) != 4 or not all(before):
                raise UnreadableMediaError(f"the size before {node.name or node.output[0]} must be known to free the model, got {before}")
            after = stored[node.input[3]]  # (batch, channels, height, width)
            scales = np.asarray([1.0, 1.0, after[2] / before[2], after[3] / before[3]], np.float32)
            name = f"{node.output[0]}_scales"
            graph.initializer.append(numpy_helper.from_array(scales, name))
            source = node.input[0]
            del node.input[:]
            node.input.extend([source, "", name])
        elif node.op_type == "Reshape" and node.input[1] in stored:
            shape = stored[node.input[1]].copy()
            if shape[0] == 1:
                shape[0] = 0  # as it comes
                name = f"{node.output[0]}_shape"
                graph.initializer.append(numpy_helper.from_array(shape, name))
                node.input[1] = name
    _free_input(graph.input[0], height_axis, width_axis)
    _drop_unused(graph)
    del graph.value_info[:]
    return model


def _free_input(value: onnx.ValueInfoProto, height_axis: int, width_axis: int) -> None:
    dimensions = value.type.tensor_type.shape.dim
    for axis, name in ((0, "batch"), (height_axis, "height"), (width_axis, "width")):
        dimensions[axis].Clear()
        dimensions[axis].dim_param = name


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [initializer for initializer in graph.initializer if initializer.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
