"""The exact bytes of every type that travels, in files that readers in other languages can be tried on too.

tests/services/golden/ holds one message of each type: TYPE.json, or TYPE.msgpack. They are never written anew: bytes that differ from them
are another format, and that raises wire.SCHEMA_VERSION.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
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
from tests.services.test_wire import same

FOLDER = Path(__file__).parent / "golden"

NOON_NS = 1_700_000_000_000_000_000
LATER_NS = NOON_NS + 40_000_000
TENTH = float(np.float32(0.1))  # a float32 has no 0.1: what travels is 0.10000000149011612
CROP = CropReference("nord/7.jpg", NOON_NS, (1.0, 2.0, 3.5, 4.25), 0.75)
BODY = Embedding("body", "osnet@1", np.array([0.5, -0.5, 0.5, -0.5], np.float32), 0.5)  # exact in 16 bits
FACE = Embedding("face", "faceres@2", np.array([0.6, 0.8], np.float32))
CAMERA = Camera(
    "hofeinfahrt-süd",
    "rtsp://door/1",
    5.0,
    {"gate": ((0.0, 1.0), (2.0, 3.0), (4.0, 5.0))},
    "Köln",
    NOON_NS,
    True,
    {"transport": "tcp"},
    "hand",
)
PROBES = (
    Probe("text", "red coat"),
    Probe("portrait", embeddings=(FACE,), weight=2.0),
    Probe("tracklet", tracklet_id="3a0d6d36cc429d91", is_negative=True),
)
ACCOUNT = CameraCoverage("nord", NOON_NS, LATER_NS, 70_000, 300, 200, 1, (Gap(NOON_NS, NOON_NS + 7, "camera refused"),))

VALUES: dict[str, Any] = {
    "alert": Alert(
        "a1", "w1", "3a0d6d36cc429d91", 2, "nord", NOON_NS, LATER_NS, 0.9, 0.7, {"face": 0.8, "body": TENTH}, ("red: yes",), (CROP,)
    ),
    "archive-job": ArchiveJob("0123456789abcdef01234567", 2, CAMERA, 600.0, 1200.5),
    "camera": CAMERA,
    "coverage": ACCOUNT,
    "decision": Decision("3a0d6d36cc429d91", "8fd33b0a57a1c0de", "different", "Änne", NOON_NS, "missing child"),
    "erasure": Erasure("3a0d6d36cc429d91", NOON_NS),
    "job-progress": JobProgress("0123456789abcdef01234567", 2, "failed", "host:7", 4, 'no "video"\n'),
    "query": Query("q1", PROBES, Filter(1, NOON_NS, ("nord",), ("gate",)), 5, 2.5, "Änne", "missing child", 2),
    "ranking": Ranking(
        "q1",
        (
            Match(
                *(1, "3a0d6d36cc429d91", "nord", NOON_NS, LATER_NS, 0.5, {"body": -0.25}, ("red: yes",), (CROP,)),
                (Step("", "face", 0.75, 0.0, 0.9), Step("77", "body", 0.5, 2400.0, 0.625)),
                "identity-77",
            ),
        ),
        Coverage((ACCOUNT,), ("osnet@1",), 7, ("one camera missing",)),
        0.125,
        True,
        (Sighting("identity-77", 0.5, (Stay("nord", NOON_NS, LATER_NS, ("3a0d6d36cc429d91",)),)),),
    ),
    "tracklet": Tracklet(
        "3a0d6d36cc429d91",
        300,
        "nord",
        NOON_NS,
        LATER_NS,
        np.array([NOON_NS, LATER_NS]),
        np.array([[1.25, 2, 3, 4], [2, 3, 4, 5.5]], np.float32),
        np.array([0.5, 0.0], np.float32),
        (BODY,),
        (Attribute("upper colour", "red", 0.9),),
        (CROP,),
        ("gate",),
        True,
        ("nanodet@1", "osnet@1"),
    ),
    "identity-event": IdentityEvent(
        "merged",
        "i5f0c9ad1b2c3d4e6",
        ("3a0d6d36cc429d91", "8fd33b0a57a1c0de"),
        NOON_NS,
        "i0123456789abcdef",
        Link(
            "3a0d6d36cc429d91",
            "8fd33b0a57a1c0de",
            0.9375,
            {"face": 0.71875, "body": TENTH},
            {"face": 2.5, "body": -0.25},
            40.5,
            "model",
            NOON_NS,
        ),
    ),
    "reembedding": Reembedding("3a0d6d36cc429d91", 300, "osnet@1", (BODY,)),
    "watch": Watch("w1", PROBES, 0.7, ("nord",), ("gate",), NOON_NS, LATER_NS, "Änne", "missing child", ("Bert",), False),
}


def golden(name: str) -> bytes:
    (file,) = FOLDER.glob(f"{name}.*")
    return file.read_bytes()


def test_every_travelling_type_has_its_golden_bytes_and_no_other_has() -> None:
    assert {wire.NAMES[type(value)]: value for value in VALUES.values()} == VALUES
    packed = {wire.NAMES[kind] for kind in wire.IN_MSGPACK}
    assert sorted(file.name for file in FOLDER.iterdir()) == sorted(
        f"{name}.{'msgpack' if name in packed else 'json'}" for name in wire.NAMES.values()
    )


@pytest.mark.parametrize("name", VALUES)
def test_a_value_is_written_as_its_golden_bytes(name: str) -> None:
    assert wire.encode(VALUES[name]) == golden(name)


@pytest.mark.parametrize("name", VALUES)
def test_golden_bytes_give_the_same_value_back(name: str) -> None:
    assert same(wire.decode(type(VALUES[name]), golden(name)), VALUES[name])


@pytest.mark.parametrize("name", VALUES)
def test_a_message_of_the_next_schema_version_is_refused_though_all_else_is_as_it_was(name: str) -> None:
    this, following = wire.SCHEMA_VERSION, wire.SCHEMA_VERSION + 1
    old, new = b"schema_version" + bytes([this]), b"schema_version" + bytes([following])
    if golden(name).startswith(b"{"):
        old, new = b'"schema_version":%d,' % this, b'"schema_version":%d,' % following
    assert golden(name).count(old) == 1
    with pytest.raises(SchemaError, match=f"schema_version {this} or lower, got {following}: a newer Sightline"):
        wire.decode(type(VALUES[name]), golden(name).replace(old, new))


def test_messages_from_before_there_were_paths_and_positions_are_still_read() -> None:
    ranking = json.loads(golden("ranking"))
    del ranking["sightings"], ranking["matches"][0]["path"], ranking["matches"][0]["identity_id"]
    old = wire.decode(Ranking, json.dumps(ranking).encode())
    assert (old.sightings, old.matches[0].path, old.matches[0].identity_id) == ((), (), "")
    camera = json.loads(golden("camera"))
    del camera["position"]
    assert wire.decode(Camera, json.dumps(camera).encode()).position is None
    query = json.loads(golden("query"))
    del query["steps"]
    assert wire.decode(Query, json.dumps(query).encode()).steps == Query("q", PROBES).steps


def test_a_tracklet_carries_its_arrays_as_raw_little_endian_bytes_and_its_vectors_in_16_bits() -> None:
    data = golden("tracklet")
    document = msgspec.msgpack.decode(data)
    assert document["embeddings"][0]["vector"] == {"dtype": "<f2", "shape": [4], "data": struct.pack("<4e", 0.5, -0.5, 0.5, -0.5)}
    assert document["at_ns"] == {"dtype": "<i8", "shape": [2], "data": struct.pack("<2q", NOON_NS, LATER_NS)}
    assert document["xyxy"] == {"dtype": "<f4", "shape": [2, 4], "data": struct.pack("<8f", 1.25, 2, 3, 4, 2, 3, 4, 5.5)}
    assert document["confidence"] == {"dtype": "<f4", "shape": [2], "data": struct.pack("<2f", 0.5, 0.0)}
    assert b"\xa4data\xc4\x08\x00\x38\x00\xb8\x00\x38\x00\xb8" in data  # a msgpack bin of 8 bytes


def test_a_probes_vector_travels_in_base64_and_keeps_every_bit() -> None:
    vector = json.loads(golden("query"))["probes"][1]["embeddings"][0]["vector"]
    assert vector == {"dtype": "<f4", "shape": [2], "data": "mpkZP83MTD8="}
