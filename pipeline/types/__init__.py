"""The types that travel: frozen, checked on entry, arrays read-only. Time is int nanoseconds UTC (``_ns``)."""

from pipeline.types.alert import Alert
from pipeline.types.archive import ArchiveJob
from pipeline.types.coverage import CameraCoverage, Coverage, Gap
from pipeline.types.detection import Detections, Vectors
from pipeline.types.embedding import BODY, FACE, MODALITIES, TEXT, VOICE, Embedding, Reembedding
from pipeline.types.erasure import Erasure
from pipeline.types.frame import Camera, Frame, Sound
from pipeline.types.identity import Decision, Identity, IdentityEvent, Link
from pipeline.types.query import Filter, Probe, Query
from pipeline.types.ranking import Match, Ranking, Sighting, Stay, Step
from pipeline.types.tracklet import Attribute, CropReference, Tracklet
from pipeline.types.watch import Watch

__all__ = [
    "BODY",
    "FACE",
    "MODALITIES",
    "TEXT",
    "VOICE",
    "Alert",
    "ArchiveJob",
    "Attribute",
    "Camera",
    "CameraCoverage",
    "Coverage",
    "CropReference",
    "Decision",
    "Detections",
    "Embedding",
    "Erasure",
    "Filter",
    "Frame",
    "Gap",
    "Identity",
    "IdentityEvent",
    "Link",
    "Match",
    "Probe",
    "Query",
    "Ranking",
    "Reembedding",
    "Sighting",
    "Sound",
    "Stay",
    "Step",
    "Tracklet",
    "Vectors",
    "Watch",
]
