"""A network as its file describes it, in TensorFlow's words: named nodes, constants, inputs, outputs. Tensors are NHWC."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UnreadableMediaError

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Node:
    """One operation. inputs: "name" or "name:2" for the third output of a node."""

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SourceGraph:
    """Nodes and constants by name; inputs: name -> shape; outputs: names."""

    nodes: Mapping[str, Node]
    constants: Mapping[str, Array]
    inputs: Mapping[str, tuple[int, ...]]
    outputs: tuple[str, ...]

    def ordered(self) -> Iterator[Node]:
        """The nodes that the outputs need, each after its inputs. Raises UnreadableMediaError when one is missing."""
        done: set[str] = set()
        waiting = [(name, False) for name in reversed(self.outputs)]
        while waiting:
            name, are_inputs_done = waiting.pop()
            if name in done or name in self.constants or name in self.inputs:
                continue
            if name not in self.nodes:
                raise UnreadableMediaError(f"graph must define every node it uses, got none called {name!r}: the file is damaged")
            node = self.nodes[name]
            if are_inputs_done:
                done.add(name)
                yield node
                continue
            waiting.append((name, True))
            waiting.extend((producer(reference), False) for reference in reversed(node.inputs))

    def constant(self, reference: str) -> Array | None:
        """The value behind ``reference`` when it does not depend on the inputs, else None."""
        name = producer(reference)
        if name in self.constants:
            return self.constants[name]
        node = self.nodes.get(name)
        if node is None or node.op not in ("Identity", "SparseToDense", "Add", "AddV2"):
            return None
        values = [self.constant(source) for source in node.inputs]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        if node.op == "SparseToDense":
            return _sparse_to_dense(known)
        return known[0] if node.op == "Identity" else np.asarray(known[0] + known[1])


def producer(reference: str) -> str:
    """The name of the node behind "name:2"."""
    return reference.partition(":")[0]


def _sparse_to_dense(values: Sequence[Array]) -> Array:
    positions, shape, filling, default = values[:4]
    dense = np.full(tuple(int(length) for length in shape), default, np.asarray(filling).dtype)
    dense[tuple(np.atleast_2d(positions.T).astype(int))] = filling
    return dense
