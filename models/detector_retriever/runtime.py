"""The detector-retriever on onnxruntime: people, their vectors and how well they fit descriptions, from one pass of the base.

Order of a frame: base -> boxes -> regions of these boxes from the same maps -> vectors. Descriptions are applied to the same maps and
vectors in numpy; what does not depend on a description is computed once a frame.
"""

from __future__ import annotations

import copy
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray

from models.detector_retriever.words import WEIGHTS, Attributes, RetrieverTextEncoder, Sentence, read_weights, unit
from models.nanodet import MEAN_BGR, STD_BGR, NanoDetDetector
from models.preprocess import open_session
from models.tiled_detector import Prepared
from pipeline.detect import merge
from pipeline.errors import BadInputError, MissingDependencyError, SettingsError, UnreadableMediaError
from pipeline.ports import Sought
from pipeline.types import BODY, TEXT, Attribute, Detections, Frame, Vectors

Float32 = NDArray[np.float32]
Uint8 = NDArray[np.uint8]

SEEN = 0.1  # calibrated confidence from which a box gets vectors; fainter ones get zeros
MAPS = {"fine": 64, "middle": 128, "coarse": 256}  # channels of the joined outputs of the base's first three stages
CELL_PX = 16
TEMPERATURE, MOST_ATTENTION = 0.5, 50.0  # as in conditioning.py
CANVAS_HEIGHT_PX, CANVAS_WIDTH_PX, CROP_HEIGHT_PX = 288, 128, 256  # a crop alone, as in training
BATCH = 16
REMEMBERED = 256  # crops whose vectors are kept


PEOPLE_GRAPH, CELLS_GRAPH = "detector_retriever_people.onnx", "detector_retriever_cells.onnx"


def with_maps(path: Path) -> bytes:
    """The NanoDet of the registry with its maps of stride 4, 8 and 16 as further outputs. Raises UnreadableMediaError for another."""
    model = onnx.load(path)
    kernels = {each.name: list(each.dims) for each in model.graph.initializer}
    widths: dict[str, int] = {}  # channels of what flows along the chain of convolutions and joins
    found: dict[str, str] = {}
    for node in model.graph.node:
        output = node.output[0]
        if node.op_type == "Conv":
            widths[output] = kernels[node.input[1]][0]
        elif node.op_type == "Concat":
            widths[output] = sum(widths.get(name, 0) for name in node.input)
            for name, channels in MAPS.items():  # a stage ends with the first join of its width
                if channels == widths[output]:
                    found.setdefault(name, output)
        elif node.input and node.input[0] in widths:
            widths[output] = widths[node.input[0]]
    if len(found) != len(MAPS):
        raise UnreadableMediaError(f"{path.name} must be NanoDet-g with stages of {', '.join(map(str, MAPS.values()))} channels")
    for name, output in found.items():
        model.graph.node.append(onnx.helper.make_node("Identity", [output], [name]))
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    data: bytes = model.SerializeToString()
    return data


class Looks(NamedTuple):
    """Body and text-aligned vectors (N, D) of length 1, part vectors (N, m, D)."""

    body: Float32
    text: Float32
    parts: Float32


class Network:
    """The sessions of base, people and cells; safe to share between threads. Raises SettingsError for a graph that cannot be read."""

    def __init__(self, base: Path, weights: Path, threads: int) -> None:
        self.base: Any = open_session(with_maps(base), threads)
        self.people: Any = _open_trained(weights.with_name(PEOPLE_GRAPH), threads)
        self.cells: Any = _open_trained(weights.with_name(CELLS_GRAPH), threads)
        self._outputs = [output.name for output in self.base.get_outputs()]
        self._input = self.base.get_inputs()[0].name

    def maps(self, pictures: Float32) -> tuple[list[Float32], dict[str, Float32]]:
        """One pass of the base over standardised BGR (B, 3, H, W): its detections, and the maps by name."""
        made = dict(zip(self._outputs, self.base.run(self._outputs, {self._input: pictures}), strict=True))
        return [made[name] for name in self._outputs if name not in MAPS], {name: made[name] for name in MAPS}

    def looks(self, maps: Mapping[str, Float32], pictures: Float32, boxes: Float32, picture: NDArray[np.int64]) -> Looks:
        """Vectors of N people: boxes (N, 4) in network pixels, picture (N,): which of the batch."""
        given = {"fine": maps["fine"], "middle": maps["middle"], "pictures": pictures, "boxes": boxes, "picture": picture}
        body, text, parts = self.people.run(["body", "text", "parts"], given)
        return Looks(unit(body), unit(text), parts)

    def grid(self, maps: Mapping[str, Float32]) -> Float32:
        """Cells of stride 16, (B, M, rows, columns)."""
        cells: Float32 = self.cells.run(["cells"], {"coarse": maps["coarse"], "middle": maps["middle"]})[0]
        return cells


def _open_trained(path: Path, threads: int) -> Any:
    try:
        return open_session(path, threads)
    except Exception as error:  # onnxruntime's own derive from nothing narrower
        raise SettingsError(f"the weights {path.name} must be a readable ONNX file: {error}; train them or reinstall") from error


@lru_cache(maxsize=4)
def network(base: Path, weights: Path = WEIGHTS, threads: int = 1) -> Network:
    """One network for the whole process, shared by what detects and what encodes crops."""
    return Network(base, weights, threads)


def torch_network(base: Path, weights: Path, device: str, half: bool = True) -> Any:
    """The network on torch (torch_runtime.TorchNetwork). Raises MissingDependencyError."""
    try:
        from models.detector_retriever.torch_runtime import TorchNetwork
    except ImportError:
        raise MissingDependencyError("torch", "torch") from None
    return TorchNetwork(base, weights, device, half)


class Asked(NamedTuple):
    """Q descriptions ready for any number of frames. whole: (Q, D); parts: per description (n, D) of length 1 and their inner products;
    gates: (Q, M); phrases: (Q, T, M); is_phrase: (Q, T)."""

    whole: Float32
    parts: tuple[Float32, ...]
    gates: Float32
    phrases: Float32
    is_phrase: NDArray[np.bool_]


class Conditioned:
    """The query-conditioned heads (conditioning.py) in numpy."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        prefix = "conditioning."
        self._w = {name.removeprefix(prefix): np.asarray(value, np.float32) for name, value in arrays.items() if name.startswith(prefix)}
        width = self._w["phrase.weight"].shape[0]
        self._kernels = np.ascontiguousarray(self._w["join.weight"].reshape(width, -1, width).transpose(1, 2, 0))  # (T, M in, M out)
        self.summands = np.asarray(arrays["summands"], np.float32)  # of cosine, parts, confidence, gates

    def ask(self, sentences: Sequence[Sentence]) -> Asked:
        """Gates (SDRPN eq. 1) and phrase vectors, once for all frames."""
        whole = np.stack([sentence.whole for sentence in sentences])
        hidden = np.maximum(self._linear("gate.0", whole), 0)
        gates = _sigmoid(self._linear("gate.2", hidden))  # (Q, M)
        clauses, is_clause = (np.stack(column) for column in zip(*((s.clauses, s.is_clause) for s in sentences), strict=True))
        phrases = self._linear("phrase", unit(clauses)) * is_clause[..., None]  # (Q, T, M)
        return Asked(whole, tuple(unit(sentence.parts) for sentence in sentences), gates, phrases, is_clause)

    def attention(self, cells: Float32, asked: Asked) -> Float32:
        """Softmax over the cells (S, M), times their number, damped: (Q, T, S)."""
        queries, phrases, width = asked.phrases.shape
        logits = (asked.phrases.reshape(-1, width) @ cells.T) / TEMPERATURE  # (Q * T, S)
        weight = np.exp(logits - logits.max(1, keepdims=True))
        weight *= len(cells) / weight.sum(1, keepdims=True)
        weight = weight.reshape(queries, phrases, -1) * asked.is_phrase[..., None]
        damped: Float32 = np.log1p(np.minimum(weight, MOST_ATTENTION) + 1e-6)
        return damped

    def scores(self, cells: Float32, weight: Float32, asked: Asked) -> tuple[Float32, Float32]:
        """Logits of confidence and gates at some cells (N, M) with their damped attention (Q, T, N): two times (Q, N)."""
        ready = cells[None] @ self._kernels  # (T, N, M)
        fused = np.einsum("qtn,tnm->qnm", weight, ready, optimize=True) + self._w["join.bias"]
        shared = np.maximum(self._linear("shared.2", np.maximum(self._linear("shared.0", fused), 0)), 0)
        confidence: Float32 = self._linear("confidence.2", np.maximum(self._linear("confidence.0", shared), 0))[..., 0]
        gated = (asked.gates * self._w["gated.weight"]) @ cells.T + self._w["gated.bias"]  # eq. 2
        return confidence, gated.astype(np.float32)

    def similarity(self, looks: Looks, cells: Float32, places: NDArray[np.intp], asked: Asked) -> Float32:
        """How well N people at cells ``places`` of a frame's cells (S, M) fit: query-free cosine plus the conditioned summands, (N, Q)."""
        summed = looks.text @ asked.whole.T  # (N, Q)
        _, parts, confidence, gates = self.summands
        if parts:
            summed = summed + parts * part_similarity(unit(looks.parts), asked.parts)
        if confidence or gates:
            scored, gated = self.scores(cells[places], self.attention(cells, asked)[:, :, places], asked)
            summed = summed + confidence * scored.T + gates * gated.T
        result: Float32 = summed.astype(np.float32)
        return result

    def heat(self, cells: Float32, asked: Asked) -> Float32:
        """The confidence of every cell, (Q, S) 0..1, the largest of a description 1 where any is worth looking at."""
        confidence = _sigmoid(self.scores(cells, self.attention(cells, asked), asked)[0])  # (Q, S)
        made: Float32 = (confidence / np.maximum(confidence.max(1, keepdims=True), 1e-3)).astype(np.float32)
        return made

    def _linear(self, name: str, x: Float32) -> Float32:
        made: Float32 = x @ self._w[f"{name}.weight"].T + self._w[f"{name}.bias"]
        return made


def part_similarity(looks: Float32, texts: Sequence[Float32], heat: float = 9.0) -> Float32:
    """losses.part_similarity without torch: parts (N, m, D) of length 1 against each description's (n, D): (N, Q)."""
    inner = looks @ looks.transpose(0, 2, 1)  # (N, m, m)
    columns = []
    for text in texts:
        each = looks @ text.T  # (N, m, n)
        onto_text = _softmax(heat * each, 2)
        length = np.einsum("imn,nk,imk->im", onto_text, text @ text.T, onto_text, optimize=True)
        forth = ((onto_text * each).sum(2) / np.sqrt(np.maximum(length, 1e-6))).mean(1)
        onto_look = _softmax(heat * each, 1)
        length = np.einsum("imn,imk,ikn->in", onto_look, inner, onto_look, optimize=True)
        columns.append(forth + ((onto_look * each).sum(1) / np.sqrt(np.maximum(length, 1e-6))).mean(1))
    return np.stack(columns, 1).astype(np.float32) if columns else np.zeros((len(looks), 0), np.float32)


def _softmax(x: Float32, axis: int) -> Float32:
    raised = np.exp(x - x.max(axis, keepdims=True))
    made: Float32 = raised / raised.sum(axis, keepdims=True)
    return made


def _sigmoid(x: Float32) -> Float32:
    made: Float32 = (1 / (1 + np.exp(-np.clip(x, -30, 30)))).astype(np.float32)
    return made


class DetectorRetriever(NanoDetDetector):
    """Detector and Retriever: boxes with body and text-aligned vectors; descriptions looked for in the same pass; the embedded default."""

    name = "detector-retriever"
    usual_side = 512

    def __init__(
        self,
        path: Path,
        text: RetrieverTextEncoder | None = None,
        *,
        tiles: str = "auto",
        minimum_confidence: float = 0.001,
        side: int = 0,
        threads: int = 1,
        weights: Path = WEIGHTS,
        device: str = "cpu",
    ) -> None:
        """path: the registry's NanoDet; text: reads descriptions, needed for ``ask``; device: cpu (onnxruntime), or cuda (torch, bf16).

        Raises SettingsError when weights cannot be read, MissingDependencyError when torch is wanted and not there.
        """
        self._path, self._weights = path, weights
        self._network: Any = network(path, weights, threads) if device == "cpu" else torch_network(path, weights, device)
        self._tiles, self._side = tiles, side or self.usual_side
        self._raw_floor = self.calibration.raw(minimum_confidence)
        arrays = read_weights(weights)
        self.spaces = {BODY: str(arrays["body_space"]), TEXT: str(arrays["text_space"])}
        self._width = len(arrays["sentence_bias"])
        self._conditioned = Conditioned(arrays)
        self._text = text

    def on_cuda(self) -> DetectorRetriever:
        """A twin that runs on the GPU."""
        twin = copy.copy(self)
        twin._network = torch_network(self._path, self._weights, "cuda")
        return twin

    def forward_one(self, prepared: Prepared) -> list[Float32]:
        """The base alone, for benches."""
        found: list[Float32] = self._network.maps(prepared.tensor)[0]
        return found

    def detect_prepared(self, frames: Sequence[Frame], batches: Sequence[Prepared]) -> list[Detections]:
        """As TiledDetector, with vectors of every box of confidence SEEN or more (zeros for fainter ones)."""
        return [detections for detections, _, _ in self._pass(frames, batches)]

    def ask(self, descriptions: Sequence[str]) -> Asked:
        """Descriptions made ready for any number of frames. Raises BadInputError when one says nothing that can be seen."""
        if self._text is None:
            raise BadInputError("looking for descriptions needs a text encoder, this detector was made without one: give it text=")
        return self._conditioned.ask([self._text.read(description) for description in descriptions])

    def look_for(self, frames: Sequence[Frame], asked: Asked, with_heat: bool = False) -> list[Sought]:
        """People of each frame and how well they fit. heat: (Q, rows, columns) of stride 16 over the frame."""
        found = []
        for detections, looks, (cells, scale) in self._pass(frames, self.prepare(frames), is_asked=True):
            flat = cells.reshape(len(cells), -1).T  # (S, M)
            places = _centre_cells(detections.xyxy * scale, cells.shape[1], cells.shape[2])
            similarity = self._conditioned.similarity(looks, flat, places, asked)
            faint = detections.confidence < SEEN
            similarity[faint] = -1.0
            heat = self._conditioned.heat(flat, asked).reshape(-1, *cells.shape[1:]) if with_heat else None
            found.append(Sought(detections, similarity, heat))
        return found

    def _pass(
        self, frames: Sequence[Frame], batches: Sequence[Prepared], is_asked: bool = False
    ) -> list[tuple[Detections, Looks, tuple[Float32, float]]]:
        """Per frame: detections with vectors, their looks; if ``is_asked`` also cells (M, rows, columns) and network px per px."""
        boxes: list[list[Any]] = [[] for _ in frames]
        held = []
        for prepared in batches:
            outputs, maps = self._network.maps(prepared.tensor)
            wholes = []
            for row, (index, view, scale) in enumerate(prepared.rows):
                xyxy, raw = self.decode(outputs, row, prepared.size)
                xyxy = xyxy / scale + np.asarray([view.x1, view.y1, view.x1, view.y1], np.float32)
                boxes[index].append((view, xyxy.astype(np.float32), self.calibration.confidence(raw)))
                if (view.x1, view.y1, view.x2, view.y2) == (0, 0, frames[index].width, frames[index].height):
                    wholes.append((row, index, scale))
            held.append((prepared, maps, wholes))
        merged = [merge(views, frame.width, frame.height) for views, frame in zip(boxes, frames, strict=True)]
        result: list[Any] = [None] * len(frames)
        for prepared, maps, wholes in held:
            grid = self._network.grid(maps) if is_asked and wholes else None
            rows = [np.flatnonzero(merged[index].confidence >= SEEN) for _, index, _ in wholes]
            scaled = [merged[index].xyxy[own] * scale for own, (_, index, scale) in zip(rows, wholes, strict=True)]
            picture = np.repeat([row for row, _, _ in wholes], [len(own) for own in rows]).astype(np.int64)
            looks = self._looks(prepared, maps, np.concatenate(scaled) if scaled else np.zeros((0, 4), np.float32), picture)
            start = 0
            for own, (row, index, scale) in zip(rows, wholes, strict=True):
                mine = Looks(*(_spread(part[start : start + len(own)], own, len(merged[index])) for part in looks))
                start += len(own)
                vectors = {BODY: Vectors(self.spaces[BODY], mine.body), TEXT: Vectors(self.spaces[TEXT], mine.text)}
                detections = Detections(merged[index].xyxy, merged[index].confidence, vectors)
                # what letterboxing added on the right and below is no part of the frame
                cells = grid[row] if grid is not None else np.zeros((0, 0, 0), np.float32)
                result[index] = (detections, mine, (_inside(cells, frames[index], scale), scale))
        return result

    def _looks(self, prepared: Prepared, maps: Mapping[str, Float32], boxes: Float32, picture: NDArray[np.int64]) -> Looks:
        if not len(boxes):
            nobody = np.zeros((0, self._width), np.float32)
            return Looks(nobody, nobody, nobody[:, None])
        looks: Looks = self._network.looks(maps, prepared.tensor, boxes.astype(np.float32), picture)
        return looks


def _spread(values: Float32, rows: NDArray[np.intp], length: int) -> Float32:
    """Values at ``rows`` of an array of zeros, (length, ...)."""
    whole = np.zeros((length, *values.shape[1:]), np.float32)
    whole[rows] = values
    return whole


def _inside(cells: Float32, frame: Frame, scale: float) -> Float32:
    """The cells (M, rows, columns) that show the frame."""
    if not cells.size:
        return cells
    return cells[:, : max(1, -(-round(frame.height * scale) // CELL_PX)), : max(1, -(-round(frame.width * scale) // CELL_PX))]


def _centre_cells(xyxy: Float32, rows: int, columns: int) -> NDArray[np.intp]:
    """The cell that holds the centre of each box (N, 4) in network pixels: indices (N,)."""
    x = np.clip((xyxy[:, 0] + xyxy[:, 2]) / 2 // CELL_PX, 0, columns - 1)
    y = np.clip((xyxy[:, 1] + xyxy[:, 3]) / 2 // CELL_PX, 0, rows - 1)
    return (y * columns + x).astype(np.intp)


class RetrieverLooks:
    """LookEncoder: crops alone through the same network, for pictures that a user gives and for crops of other detectors."""

    def __init__(self, path: Path, threads: int = 1, weights: Path = WEIGHTS) -> None:
        """path: the registry's NanoDet. Raises SettingsError when ``weights`` cannot be read."""
        arrays = read_weights(weights)
        self.spaces = {BODY: str(arrays["body_space"]), TEXT: str(arrays["text_space"])}
        self._network = network(path, weights, threads)
        self._attributes = Attributes(arrays)
        self._width = len(arrays["sentence_bias"])
        self._remembered: OrderedDict[bytes, tuple[Float32, Float32]] = OrderedDict()
        self._lock = threading.Lock()

    def encode(self, crops: Sequence[Uint8]) -> dict[str, Vectors]:
        """BGR uint8 (h, w, 3) crops of any size -> vectors by modality, body and text-aligned. Raises BadInputError for another shape."""
        keys = [_key(crop) for crop in crops]
        with self._lock:
            found = {key: self._remembered[key] for key in keys if key in self._remembered}
        missing = {key: crop for key, crop in zip(keys, crops, strict=True) if key not in found}
        wanted = list(missing)
        for start in range(0, len(wanted), BATCH):
            block = wanted[start : start + BATCH]
            looks = self._looks([missing[key] for key in block])
            found.update({key: (looks.body[row], looks.text[row]) for row, key in enumerate(block)})
        with self._lock:
            self._remembered.update({key: found[key] for key in wanted})
            while len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
        columns = [np.stack([found[key][place] for key in keys]) if keys else np.zeros((0, self._width), np.float32) for place in (0, 1)]
        return {modality: Vectors(self.spaces[modality], column) for modality, column in zip((BODY, TEXT), columns, strict=True)}

    def attributes(self, vectors: Float32, quality: Sequence[float]) -> tuple[Attribute, ...]:
        """The plain attributes of one person from text-aligned vectors (K, D), weighted by quality, most certain first."""
        return self._attributes.of(vectors, quality)

    def _looks(self, crops: Sequence[Uint8]) -> Looks:
        placed = [on_canvas(crop) for crop in crops]
        pictures = (np.stack([canvas for canvas, _ in placed]).astype(np.float32) - MEAN_BGR) / STD_BGR
        tensor = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
        _, maps = self._network.maps(tensor)
        boxes = np.array([box for _, box in placed], np.float32)
        return self._network.looks(maps, tensor, boxes, np.arange(len(placed), dtype=np.int64))


def on_canvas(
    picture: Uint8, height: int = CROP_HEIGHT_PX, top: int | None = None, left: int | None = None
) -> tuple[Uint8, tuple[int, int, int, int]]:
    """A crop scaled to ``height`` px on a canvas of its own edge pixels, in the middle unless placed; and its box there, xyxy."""
    width = min(max(round(height * picture.shape[1] / picture.shape[0]), 24), CANVAS_WIDTH_PX)
    scaled = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if height < picture.shape[0] else cv2.INTER_LINEAR)
    top = (CANVAS_HEIGHT_PX - height) // 2 if top is None else top
    left = (CANVAS_WIDTH_PX - width) // 2 if left is None else left
    below, right = CANVAS_HEIGHT_PX - height - top, CANVAS_WIDTH_PX - width - left
    canvas: Any = cv2.copyMakeBorder(scaled, top, below, left, right, cv2.BORDER_REPLICATE)
    return canvas, (left, top, left + width, top + height)


def _key(crop: Uint8) -> bytes:
    if crop.ndim != 3 or crop.shape[2] != 3 or crop.dtype != np.uint8 or 0 in crop.shape:
        raise BadInputError(f"a crop must be BGR uint8 (h, w, 3) with h, w > 0, got {crop.dtype} {crop.shape}")
    return hashlib.blake2b(np.ascontiguousarray(crop).data, digest_size=16, salt=crop.shape[0].to_bytes(8, "big")).digest()
