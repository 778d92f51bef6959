"""Every type that travels arrives as it left; damage and newer versions are told apart from it."""

from __future__ import annotations

import random
from dataclasses import fields, is_dataclass, replace
from typing import Any

import msgspec
import numpy as np
import pytest

from pipeline.archive import JobProgress
from pipeline.errors import SchemaError
from pipeline.types import (
    Alert,
    ArchiveJob,
    Attribute,
    Camera,
    CameraCoverage,
    Coverage,
    CropReference,
    Decision,
    Embedding,
    Erasure,
    Filter,
    Gap,
    IdentityEvent,
    Link,
    Match,
    Probe,
    Query,
    Ranking,
    Reembedding,
    Sighting,
    Stay,
    Step,
    Tracklet,
    Watch,
)
from services import wire

NOON_NS = 1_700_000_000_000_000_000
CROP = CropReference("north/7.jpg", NOON_NS, (1.0, 2.0, 3.5, 4.0), 0.75)
HALVES = Embedding("body", "osnet@1", np.array([0.5, -0.5, 0.5, -0.5], np.float32), 0.5)  # exact in 16 bits
FACE = Embedding("face", "faceres@2", np.array([0.6, 0.8], np.float32), 1.0)
CAMERA = Camera("north", "rtsp://door/1", 5.0, {"gate": ((0.0, 1.0), (2.0, 3.0), (4.0, 5.0))}, "site", NOON_NS, True, {"transport": "tcp"})
PROBES = (
    Probe("text", "red coat"),
    Probe("portrait", embeddings=(FACE,), weight=2.0),
    Probe("tracklet", tracklet_id="t1", is_negative=True),
)
ACCOUNT = CameraCoverage("north", 5, 15, 10, 8, 1, 1, (Gap(7, 9, "camera refused"),))
TRACKLET = Tracklet(
    "north-1",
    3,
    "north",
    NOON_NS,
    NOON_NS + 80_000_000,
    np.array([NOON_NS, NOON_NS + 40_000_000, NOON_NS + 80_000_000]),
    np.array([[1.25, 2, 3, 4], [2, 3, 4, 5.1], [3, 4, 5, 6]], np.float32),
    np.array([0.9, 0.0, 0.8], np.float32),
    (HALVES,),
    (Attribute("upper colour", "red", 0.9),),
    (CROP,),
    ("gate",),
    True,
    ("nanodet@1", "osnet@1"),
)
VALUES: list[Any] = [
    TRACKLET,
    ACCOUNT,
    CAMERA,
    Query("q1", PROBES, Filter(1, 2, ("north",), ("gate",)), 5, 2.5, "anna", "missing child"),
    Ranking(
        "q1",
        (Match(1, "t1", "north", 1, 2, 0.5, {"body": 0.25}, ("red: yes",), (CROP,), (Step("", "face", 0.7, 0.0, 0.9),), "p1"),),
        Coverage((ACCOUNT,), ("osnet@1",), 7, ("one camera missing",)),
        0.1,
        True,
        (Sighting("p1", 0.5, (Stay("north", 1, 2, ("t1",)),)),),
    ),
    Watch("w1", PROBES, 0.7, ("north",), ("gate",), 1, 2, "anna", "missing child", ("bert",), False),
    Alert("a1", "w1", "t1", 2, "north", 1, 2, 0.9, 0.7, {"face": 0.8}, ("red: yes",), (CROP,)),
    ArchiveJob("j1", 2, CAMERA, 600.0, 1200.0),
    Erasure("t1", NOON_NS),
    Decision("t1", "t2", "different", "anna", NOON_NS, "missing child"),
    IdentityEvent("grown", "i1", ("t2",), NOON_NS, "", Link("t1", "t2", 0.94, {"face": 0.71}, {"face": 2.9}, 40.0, "model", NOON_NS)),
    Reembedding("t1", 3, HALVES.space, (HALVES,)),
    JobProgress("j1", 2, "failed", "host:7", 4, "no video"),
]
NAMES = [type(value).__name__ for value in VALUES]


def same(left: Any, right: Any) -> bool:
    """Equal in type and every field, arrays bit by bit."""
    if is_dataclass(left):
        return type(left) is type(right) and all(same(getattr(left, f.name), getattr(right, f.name)) for f in fields(left))
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and bool((left == right).all())
    if isinstance(left, tuple):
        return isinstance(right, tuple) and len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


@pytest.mark.parametrize("value", VALUES, ids=NAMES)
def test_a_value_arrives_as_it_left(value: Any) -> None:
    assert same(wire.decode(type(value), wire.encode(value)), value)


@pytest.mark.parametrize("value", VALUES, ids=NAMES)
def test_the_schema_version_comes_first_and_the_type_second(value: Any) -> None:
    data = wire.encode(value)
    codec = msgspec.json if data.startswith(b"{") else msgspec.msgpack
    assert list(codec.decode(data))[:2] == ["schema_version", "type"]
    assert wire.schema_version(data) == wire.SCHEMA_VERSION


def test_every_travelling_type_is_tested_here() -> None:
    assert {type(value) for value in VALUES} == set(wire.NAMES)


def test_golden_bytes_of_an_alert() -> None:
    assert wire.encode(Alert("a", "w", "t", 1, "north", 2, 3, 0.5, 0.25, {"face": 0.5}, ("why",), (CROP,))) == (
        b'{"schema_version":1,"type":"alert","alert_id":"a","watch_id":"w","tracklet_id":"t","revision":1,"camera_id":"north",'
        b'"seen_at_ns":2,"raised_at_ns":3,"score":0.5,"threshold":0.25,"similarities":{"face":0.5},"why":["why"],'
        b'"crops":[{"key":"north/7.jpg","captured_at_ns":1700000000000000000,"box":[1.0,2.0,3.5,4.0],"quality":0.75}]}'
    )


def test_golden_bytes_of_a_tracklet() -> None:
    small = Tracklet("t", 1, "n", 0, 1, np.array([0]), np.array([[0, 0, 1, 1]], np.float32), np.array([0.5], np.float32), (HALVES,))
    assert wire.encode(small).hex() == GOLDEN_TRACKLET
    assert same(wire.decode(Tracklet, bytes.fromhex(GOLDEN_TRACKLET)), small)


def test_vectors_travel_in_16_bits_unless_every_bit_is_asked_for() -> None:
    vector = np.random.default_rng(1).normal(size=512).astype(np.float32)
    embedding = Embedding("body", "osnet@1", vector)
    tracklet = Tracklet("t", 1, "n", 0, 0, np.zeros(0), np.zeros((0, 4)), np.zeros(0), (embedding,))
    half, whole = wire.encode(tracklet), wire.encode(tracklet, "<f4")
    assert len(whole) - len(half) == 1024
    assert same(wire.decode(Tracklet, whole).embeddings[0], embedding)
    arrived = wire.decode(Tracklet, half).embeddings[0]
    assert arrived.similarity(embedding) == pytest.approx(1.0, abs=1e-4)


def test_arrived_arrays_are_read_only() -> None:
    arrived = wire.decode(Tracklet, wire.encode(TRACKLET))
    assert not any(a.flags.writeable for a in (arrived.at_ns, arrived.xyxy, arrived.confidence, arrived.embeddings[0].vector))


@pytest.mark.parametrize("value", VALUES, ids=NAMES)
def test_a_newer_schema_is_named_as_such(value: Any) -> None:
    data = wire.encode(value)
    codec: Any = msgspec.json if data.startswith(b"{") else msgspec.msgpack
    newer = codec.encode({"schema_version": 9, "type": codec.decode(data)["type"], "all": "different"})
    with pytest.raises(SchemaError, match=r"got 9.*newer Sightline"):
        wire.decode(type(value), newer)


def test_a_field_that_was_added_later_is_skipped() -> None:
    document = msgspec.json.decode(wire.encode(CAMERA)) | {"colour": "black"}
    assert same(wire.decode(Camera, msgspec.json.encode(document)), CAMERA)


def test_a_cameras_position_travels() -> None:
    placed = replace(CAMERA, position=(12.5, -3.0))
    assert same(wire.decode(Camera, wire.encode(placed)), placed)


def test_another_type_is_refused() -> None:
    with pytest.raises(SchemaError, match="watch"):
        wire.decode(Watch, wire.encode(CAMERA))


@pytest.mark.parametrize("data", [None, b"", b"{", b"null", b"[]", b"\xc1", b"\x00" * 50, b'{"schema_version":"1"}', b"[" * 5000])
@pytest.mark.parametrize("kind", [Tracklet, Query])
def test_bytes_that_are_no_message_are_a_schema_error(kind: type[Any], data: bytes | None) -> None:
    with pytest.raises(SchemaError):
        wire.decode(kind, data)


@pytest.mark.parametrize("value", VALUES, ids=NAMES)
def test_damaged_bytes_are_a_schema_error_or_a_whole_value_and_nothing_else(value: Any) -> None:
    rng = random.Random(5)
    data = wire.encode(value)
    refused = 0
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        if rng.random() < 0.3:
            damaged = damaged[: rng.randrange(len(damaged))]
        try:
            wire.decode(type(value), bytes(damaged))
        except SchemaError:
            refused += 1
    assert refused > 100
    for end in range(0, len(data), max(1, len(data) // 40)):
        with pytest.raises(SchemaError):
            wire.decode(type(value), data[:end])


def test_an_array_whose_shape_lies_is_refused() -> None:
    document = msgspec.msgpack.decode(wire.encode(TRACKLET))
    for shape in ([3, 5], [2**40, 2**40], [-3, -4], ["3", 4], [3.0, 4]):
        document["xyxy"]["shape"] = shape
        with pytest.raises(SchemaError):
            wire.decode(Tracklet, msgspec.msgpack.encode(document))


def test_only_travelling_types_are_encoded() -> None:
    with pytest.raises(TypeError, match="Tracklet"):
        wire.encode({"a": 1})


GOLDEN_TRACKLET = (
    "de0010ae736368656d615f76657273696f6e01a474797065a8747261636b6c6574ab747261636b6c65745f6964a174a87265766973696f6e01a96361"
    "6d6572615f6964a16ead737461727465645f61745f6e7300ab656e6465645f61745f6e7301a561745f6e7383a56474797065a33c6938a57368617065"
    "9101a464617461c4080000000000000000a47879787983a56474797065a33c6634a57368617065920104a464617461c4100000000000000000000080"
    "3f0000803faa636f6e666964656e636583a56474797065a33c6634a573686170659101a464617461c4040000003faa656d62656464696e67739184a8"
    "6d6f64616c697479a4626f6479a57370616365a76f736e65744031a6766563746f7283a56474797065a33c6632a573686170659104a464617461c408"
    "003800b8003800b8a77175616c697479cb3fe0000000000000aa6174747269627574657390a563726f707390a57a6f6e657390a969735f636c6f7365"
    "64c2ae6d6f64656c5f76657273696f6e7390"
)
