"""MobileNetV2 from its checkpoint, the features of a crop, and body vectors."""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from models import convert_mobilenet
from models.body import LookFeatures, MobileNetBodyEncoder, colour_features
from pipeline.errors import BadInputError, SettingsError, UnreadableMediaError

# ------------------------------------------------------------------------------------- the checkpoint


Painter = Callable[..., np.ndarray]


def raw_pickle(*lines: bytes) -> bytes:
    """A protocol 0 pickle from its lines."""
    return b"".join(line + b"\n" for line in lines[:-1]) + lines[-1]


def checkpoint(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """A file as torch wrote before it used zip archives, for float arrays."""
    body = io.BytesIO()
    for value in (convert_mobilenet.MAGIC, 1001, {"little_endian": True}):
        pickle.dump(value, body, protocol=2)
    state = [b"\x80\x02}"]
    for index, (name, array) in enumerate(arrays.items()):
        strides = tuple(step // array.itemsize for step in array.strides)
        storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text(str(index)) + _text("cpu") + _number(array.size) + b"NtQ"
        tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + _number(0) + _tuple(array.shape) + _tuple(strides) + b"\x89}tR"
        state.append(_text(name) + tensor + b"s")
    body.write(b"".join(state) + b".")
    pickle.dump([str(index) for index in range(len(arrays))], body, protocol=2)
    for array in arrays.values():
        body.write(struct.pack("<q", array.size) + array.astype("<f4").tobytes())
    path.write_bytes(body.getvalue())
    return path


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _tuple(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(_number(value) for value in values) + b"t"


def mobilenet_state() -> dict[str, np.ndarray]:
    """Random weights of the right shapes."""
    random = np.random.default_rng(1)
    state: OrderedDict[str, np.ndarray] = OrderedDict()

    def layer(name: str, norm: str, out: int, into: int, size: int) -> None:
        state[f"{name}.weight"] = random.normal(0, (into * size * size) ** -0.5, (out, into, size, size)).astype(np.float32)
        for part, value in (("weight", 1.1), ("bias", 0.1), ("running_mean", 0.05), ("running_var", 0.9)):
            state[f"{norm}.{part}"] = np.full(out, value, np.float32)

    layer("features.0.0", "features.0.1", 32, 3, 3)
    channels, index = 32, 1
    for expand, width, times, _ in convert_mobilenet.BLOCKS:
        for _ in range(times):
            name, step, hidden = f"features.{index}.conv", 0, channels * expand
            if expand > 1:
                layer(f"{name}.0", f"{name}.1", hidden, channels, 1)
                step = 3
            layer(f"{name}.{step}", f"{name}.{step + 1}", hidden, 1, 3)
            layer(f"{name}.{step + 3}", f"{name}.{step + 4}", width, hidden, 1)
            channels, index = width, index + 1
    layer("features.18.0", "features.18.1", 1280, 320, 1)
    return state


def test_a_checkpoint_becomes_a_network_with_two_maps(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "weights.pt", mobilenet_state())
    convert_mobilenet.convert(source, tmp_path / "made.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "made.onnx"), providers=["CPUExecutionProvider"])
    last, mid = session.run(["map", "mid"], {"rgb": np.full((2, 3, 256, 128), 90, np.float32)})
    assert last.shape == (2, 1280, 8, 4)
    assert mid.shape == (2, 96, 16, 8)
    assert np.isfinite(last).all()
    assert 0 <= last.min() < last.max() <= 6


def test_arrays_are_read_as_they_were_written(tmp_path: Path) -> None:
    wanted = np.arange(12, dtype=np.float32).reshape(3, 4)
    read = convert_mobilenet.read_checkpoint(checkpoint(tmp_path / "weights.pt", {"a": wanted}))
    np.testing.assert_array_equal(read["a"], wanted)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    tampered = tmp_path / "tampered.pt"
    tampered.write_bytes(raw_pickle(b"cos", b"system", b"(Vecho harm", b"tR."))
    with pytest.raises(UnreadableMediaError, match="do not use this file"):
        convert_mobilenet.read_checkpoint(tampered)


@pytest.mark.parametrize("content", [b"", b"no pickle at all", pickle.dumps(7)])
def test_another_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    wrong = tmp_path / "wrong.pt"
    wrong.write_bytes(content)
    with pytest.raises(UnreadableMediaError, match=r"wrong\.pt"):
        convert_mobilenet.convert(wrong, tmp_path / "never.onnx")


def test_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableMediaError, match="MobileNetV2"):
        convert_mobilenet.convert(checkpoint(tmp_path / "other.pt", {"a": np.zeros(3, np.float32)}), tmp_path / "never.onnx")


# ---------------------------------------------------------------------------------------- the vectors


def test_body_vectors_have_length_one_and_know_the_same_crop(small_network: Path, noise_person: Painter) -> None:
    encoder = MobileNetBodyEncoder(small_network)
    vectors = encoder.encode([noise_person(1), noise_person(2), noise_person(1, 300, 110)])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors.shape[1] <= 512
    assert "@" in encoder.space
    np.testing.assert_array_equal(encoder.encode([noise_person(2)])[0], encoder.encode([noise_person(2)])[0])
    assert encoder.encode([]).shape == (0, vectors.shape[1])


def test_a_batch_gives_what_single_crops_give(small_network: Path, noise_person: Painter) -> None:
    network = small_network
    crops = [noise_person(seed) for seed in range(20)]
    together = LookFeatures(network).of(crops)
    alone = [LookFeatures(network).of([crop]) for crop in crops]
    np.testing.assert_allclose(together[0], np.concatenate([stripes for stripes, _ in alone]), atol=1e-5)
    np.testing.assert_array_equal(together[1], np.concatenate([colours for _, colours in alone]))


def test_the_network_runs_once_for_two_encoders(small_network: Path, noise_person: Painter) -> None:
    features = LookFeatures(small_network)
    first = features.of([noise_person(3)])
    features._session = None  # would fail now if it were asked
    np.testing.assert_array_equal(features.of([noise_person(3)])[0], first[0])


@pytest.mark.parametrize("crop", [np.zeros((0, 5, 3), np.uint8), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_what_is_no_crop_is_refused(crop: np.ndarray, small_network: Path) -> None:
    with pytest.raises(BadInputError, match="BGR uint8"):
        LookFeatures(small_network).of([crop])


def test_a_crop_of_one_pixel_works(small_network: Path) -> None:
    assert np.isfinite(MobileNetBodyEncoder(small_network).encode([np.zeros((1, 1, 3), np.uint8)])).all()


def test_missing_weights_are_named(tmp_path: Path, small_network: Path) -> None:
    with pytest.raises(SettingsError, match=r"gone\.npz"):
        MobileNetBodyEncoder(small_network, weights=tmp_path / "gone.npz")


def test_colour_features_are_finite(noise_person: Painter) -> None:
    assert colour_features(noise_person(4)).shape == (408,)
    assert np.isfinite(colour_features(noise_person(4))).all()
