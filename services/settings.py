"""Settings: one TOML file, overridden by the environment; unknown keys are refused, secrets are masked.

Order of precedence: environment (``SIGHTLINE_DETECT__BATCH_SIZE=8``), the file (``--settings``, ``SIGHTLINE_SETTINGS``, else
``sightline.toml`` in the current folder), the defaults below. Every setting has its title, unit and reason here and nowhere else.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from pipeline.capture import without_credentials
from pipeline.errors import SettingsError
from pipeline.types import Camera
from pipeline.voice import MICROPHONE_ZONE

PREFIX = "SIGHTLINE_"
RESERVED = {"SIGHTLINE_SETTINGS", "SIGHTLINE_CACHE", "SIGHTLINE_SHARED_DATA", "SIGHTLINE_PURPOSE", "SIGHTLINE_KILLS"}  # read elsewhere


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class StorageSettings(Section):
    data_folder: Path = Field(Path("sightline-data"), description="Folder of the index, the log and the crops.")
    crops_folder: Path | None = Field(
        None, description="Folder of the crops, a mount shared by all machines where there are several; default: crops in data_folder."
    )
    cache_folder: Path = Field(
        default_factory=lambda: Path(os.environ.get("SIGHTLINE_CACHE", Path.home() / ".cache" / "sightline")),
        description="Folder of converted model weights; can be deleted at any time.",
    )


class BrokerSettings(Section):
    kind: Literal["embedded", "kafka"] = Field(
        "embedded", description="embedded: one file, one machine, no server; kafka: workers on any number of machines."
    )
    bootstrap_servers: str = Field("127.0.0.1:9092", min_length=1, description="host:port of some Kafka brokers, comma between them.")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field("PLAINTEXT", description="As the listener asks.")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field("SCRAM-SHA-512", description="With SASL_*.")
    sasl_username: str = Field("", description="With SASL_*.")
    sasl_password: SecretStr = Field(SecretStr(""), description="With SASL_*; better in the environment than in the file.")
    ssl_ca_file: Path | None = Field(None, description="PEM of the authority to trust with *SSL; default: the system's.")
    ssl_certificate_file: Path | None = Field(None, description="PEM of our own certificate, where the broker asks for one.")
    ssl_key_file: Path | None = Field(None, description="PEM of its key.")
    ssl_check_hostname: bool = Field(True, description="Whether the broker's certificate must name its host.")
    replication_factor: int = Field(
        1, ge=1, le=9, description="Copies of each topic that `sightline topics create` asks for; 3 in earnest."
    )
    session_timeout_s: float = Field(
        10.0, ge=0.5, le=300, description="A worker not heard of for so long loses its partitions to others; Kafka wants 6 or more."
    )


class CaptureSettings(Section):
    sampling_hz: float = Field(0.0, ge=0, le=240, description="Wished frames a second for every camera that names none; 0 = all.")
    queue_frames: int = Field(8, ge=1, le=512, description="Frames held per camera between capture and detection; bounds memory.")
    late_s: float = Field(2.0, gt=0, le=60, description="A live frame this much behind the newest is dropped and counted.")
    hardware: str = Field("auto", description="Hardware decoding: auto, off, or a PyAV device name such as cuda or vaapi.")
    give_up_after_s: float = Field(0.0, ge=0, description="Seconds without a picture after which a live camera is given up; 0 = never.")


class DetectSettings(Section):
    model: Literal["detector-retriever", "nanodet", "centernet", "ultralytics"] = Field(
        "detector-retriever",
        description="Person detector; the first finds what nanodet finds and can give people's vectors too (embed.vectors).",
    )
    weights: Path | None = Field(None, description="Own weights file, for ultralytics models.")
    side: int = Field(
        0, ge=0, le=4096, description="Network pixels of the longer side of a frame, 0 = the network's usual; not of ultralytics models."
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="cuda: the detector-retriever on a GPU through torch (extra torch).")
    batch_size: int = Field(4, ge=1, le=64, description="Most frames of all cameras in one forward pass.")
    batch_wait_s: float = Field(0.02, ge=0, le=1, description="How long a batch waits for more frames; live only.")
    minimum_confidence: float = Field(0.02, gt=0, lt=1, description="Calibrated; a faint box below it does not even carry a track on.")
    tiles: Literal["off", "on"] = Field("off", description="Also look at 2 x 2 tiles: finds smaller people, takes 3 times as long.")
    threads: int = Field(1, ge=1, le=64, description="Threads of one forward pass; more cameras gain more from more processes.")


class TrackSettings(Section):
    confirm_after_s: float = Field(0.8, ge=0, le=10, description="A person seen this long is a tracklet; shorter ones are ghosts.")
    lost_after_s: float = Field(3.0, gt=0, le=60, description="A track unseen for this long is closed.")


class EmbedSettings(Section):
    best_shots: int = Field(4, ge=1, le=16, description="Crops kept and embedded per tracklet.")
    vectors: Literal["crops", "frame"] = Field(
        "crops",
        description="Where the vectors of best shots come from: their crops at full size, or the detector-retriever's pass over the frame.",
    )
    faces: bool = Field(True, description="Look for faces of the people seen.")
    face_model: str = Field(
        "mobilefacenet",
        min_length=1,
        description="What makes vectors of faces: mobilefacenet, faceres, or an .onnx file of insightface's layout (1 x 3 x 112 x 112).",
    )
    keep_context: bool = Field(True, description="Keep one small picture of the whole frame per tracklet, for the operator.")


class VoiceSettings(Section):
    enabled: bool = Field(True, description="Listen to cameras that have sound; where recording speech is not allowed: false.")
    lips: bool = Field(True, description="Read lips, to tell who of the people in view speaks; wants 8 frames a second or more.")
    single_visible: bool = Field(
        False,
        description="Take whoever is alone in view, lips unread, for the speaker; wrong whenever somebody out of view speaks.",
    )


class IndexSettings(Section):
    segment_tracklets: int = Field(131_072, ge=100, le=5_000_000, description="Tracklets per sealed segment of the index.")
    group: str = Field(
        "index",
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9._-]+$",
        description="Consumer group of this copy of the index; each machine that keeps a copy of its own names another.",
    )
    device: Literal["cpu", "gpu"] = Field("cpu", description="gpu: whole sealed segments are searched on a GPU (faiss-gpu, extra gpu).")
    retention_days: float = Field(30.0, ge=0, description="People in footage older than this are really removed; 0 = never.")


class LinkSettings(Section):
    enabled: bool = Field(True, description="Whether the index worker links tracklets into identities.")
    accept: float = Field(
        0.9, ge=0.5, le=0.999, description="Probability, as if right and wrong were equally likely, from which two tracklets are linked."
    )
    body_horizon_h: float = Field(8.0, gt=0, le=72, description="Clothes link nobody over more hours than this.")
    body_half_life_h: float = Field(4.0, gt=0, le=72, description="After so many hours clothes tell half as much.")
    top_speed_m_s: float = Field(
        8.0, ge=0, le=100, description="Nobody goes faster between cameras whose position is given; 0 = no such limit."
    )


class SearchSettings(Section):
    top_k: int = Field(20, ge=1, le=1000, description="Matches of a ranking unless the search says otherwise.")
    deadline_s: float = Field(10.0, gt=0, le=600, description="After this the answer is partial and says so.")


class AlertSettings(Section):
    threshold: float = Field(0.5, ge=0, le=1, description="Score at which a watch alerts unless it says otherwise.")


class ArchiveSettings(Section):
    workers: int = Field(2, ge=1, le=64, description="Processes of `sightline archive` on this machine.")
    shard_s: float = Field(600.0, ge=1, description="Length of one job in seconds of footage.")


class ServerSettings(Section):
    host: str = Field("127.0.0.1", description="Address of /metrics, /live and /ready.")
    port: int = Field(
        9640, ge=0, le=65535, description="Port of /metrics, /live and /ready of `up`; the next four: index, query, alert, ingest; 0 = any."
    )


class ApiClientSettings(Section):
    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$", description="Who asks, in the audit log.")
    token_sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False, description="sha256 of its token, as `sightline api token` prints it.")
    roles: tuple[Literal["search", "watch", "read"], ...] = Field(
        min_length=1, description="search: searches; watch: watches; read: alerts, cameras, crops and metrics."
    )


class ApiSettings(Section):
    host: str = Field("127.0.0.1", description="Address of `sightline api`; other than loopback only with clients.")
    port: int = Field(8080, ge=0, le=65535, description="Port of `sightline api`; 0 = any.")
    most_waiting: int = Field(
        64, ge=1, le=512, description="Searches that may wait at once, here and on the topic; beyond, programs are asked to come again."
    )
    tls_certificate_file: Path | None = Field(None, description="PEM of the server's certificate; default: no TLS.")
    tls_key_file: Path | None = Field(None, description="PEM of its key.")
    clients: list[ApiClientSettings] = Field(default_factory=list, description="Programs that may ask; none: this machine alone.")

    @field_validator("clients")
    @classmethod
    def _are_told_apart(cls, clients: list[ApiClientSettings]) -> list[ApiClientSettings]:
        if len({each.name for each in clients}) < len(clients) or len({each.token_sha256 for each in clients}) < len(clients):
            raise ValueError("every client must have a name and a token of its own")
        return clients


class TracingSettings(Section):
    endpoint: str = Field("", description="OTLP/HTTP address for OpenTelemetry traces, http://collector:4318; empty = none.")
    sample_ratio: float = Field(1.0, ge=0, le=1, description="Share of traces that is kept.")


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level written.")
    format: Literal["text", "json"] = Field("text", description="json for machines, text for people.")


class AccessSettings(Section):
    require_purpose: bool = Field(True, description="Every search and watch must say why; the answer is kept in the audit log.")


class CameraSettings(Section):
    camera_id: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")] = Field(
        description="Short name; letters, digits, dot, dash."
    )
    uri: str = Field(min_length=1, description="File, folder, rtsp://, http:// or webcam device.")
    sampling_hz: float | None = Field(None, ge=0, le=240, description="Wished frames a second; 0 = all.")
    zones: dict[str, list[tuple[float, float]]] = Field(default_factory=dict, description="Name -> polygon corners in pixels.")
    microphone_zone: str = Field("", description="Which of its zones its microphone hears: who stands there alone is the speaker.")
    site: str = ""
    position: tuple[float, float] | None = Field(None, description="Metres east and north of any point of the site, for travel times.")
    live: bool = Field(True, description="Late frames are dropped and counted; false for footage.")

    @model_validator(mode="after")
    def _hears_a_zone_of_its_own(self) -> CameraSettings:
        if self.microphone_zone and self.microphone_zone not in self.zones:
            raise ValueError(f"microphone_zone must be one of the camera's zones ({', '.join(self.zones) or 'it has none'})")
        return self


class Settings(Section):
    storage: StorageSettings = Field(default_factory=StorageSettings)
    broker: BrokerSettings = Field(default_factory=BrokerSettings)
    capture: CaptureSettings = Field(default_factory=CaptureSettings)
    detect: DetectSettings = Field(default_factory=DetectSettings)
    track: TrackSettings = Field(default_factory=TrackSettings)
    embed: EmbedSettings = Field(default_factory=EmbedSettings)
    voice: VoiceSettings = Field(default_factory=VoiceSettings)
    index: IndexSettings = Field(default_factory=IndexSettings)
    link: LinkSettings = Field(default_factory=LinkSettings)
    search: SearchSettings = Field(default_factory=SearchSettings)
    alert: AlertSettings = Field(default_factory=AlertSettings)
    archive: ArchiveSettings = Field(default_factory=ArchiveSettings)
    server: ServerSettings = Field(default_factory=ServerSettings)
    api: ApiSettings = Field(default_factory=ApiSettings)
    tracing: TracingSettings = Field(default_factory=TracingSettings)
    logs: LogSettings = Field(default_factory=LogSettings)
    access: AccessSettings = Field(default_factory=AccessSettings)
    cameras: list[CameraSettings] = Field(default_factory=list)

    def camera_list(self) -> list[Camera]:
        """The cameras of the file as core types."""
        return [_camera_of(each, self.capture.sampling_hz, "settings") for each in self.cameras]


def _camera_of(each: CameraSettings, usual_hz: float, origin: str) -> Camera:
    return Camera(
        camera_id=each.camera_id,
        uri=_whole_path(each.uri),
        sampling_hz=usual_hz if each.sampling_hz is None else each.sampling_hz,
        zones={name: tuple(corners) for name, corners in each.zones.items()},
        site=each.site,
        is_live=each.live,
        origin=origin,
        options={MICROPHONE_ZONE: each.microphone_zone} if each.microphone_zone else {},
        position=each.position,
    )


def named_camera(settings: Settings, **values: Any) -> Camera:
    """A camera that a person names, checked as one of the settings file is; raises SettingsError."""
    try:
        return _camera_of(CameraSettings.model_validate(values), settings.capture.sampling_hz, "")
    except ValidationError as error:
        problems: list[dict[str, Any]] = [dict(problem) for problem in error.errors()]
        raise SettingsError("; ".join(_explain({**each, "loc": ("cameras", *list(each["loc"]))}) for each in problems)) from None


def _whole_path(uri: str) -> str:
    """A file named from here, for workers that stand elsewhere; anything else as it is."""
    return str(Path(uri).absolute()) if "://" not in uri and not Path(uri).is_absolute() and Path(uri).exists() else uri


def load_settings(file: Path | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """The settings in force. Raises SettingsError with the key, the value and what is allowed."""
    environment = os.environ if environment is None else environment
    values = _read_file(file, environment)
    for keys, value in _from_environment(environment):
        section = values
        for key in keys[:-1]:
            below = section.setdefault(key, {})
            if not isinstance(below, dict):
                raise SettingsError(f"{PREFIX}{'__'.join(keys).upper()}: {key!r} is a value, not a section")
            section = below
        section[keys[-1]] = value
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(dict(problem)) for problem in error.errors())) from None


def _read_file(file: Path | None, environment: Mapping[str, str]) -> dict[str, Any]:
    named = file or (Path(environment["SIGHTLINE_SETTINGS"]) if environment.get("SIGHTLINE_SETTINGS") else None)
    path = named or Path("sightline.toml")
    if not path.is_file():
        if named:
            raise SettingsError(f"settings file {path} must exist; create it or leave --settings out")
        return {}
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file {path} must be TOML: {error}") from None


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[list[str], str]]:
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in RESERVED:
            yield name[len(PREFIX) :].lower().split("__"), environment[name]


def _explain(problem: dict[str, Any]) -> str:
    keys = [str(part) for part in problem["loc"]]
    key = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        allowed = ", ".join(sorted(_keys_beside(keys)))
        return f"unknown setting {key}; allowed here: {allowed}"
    shown = without_credentials(problem["input"]) if isinstance(problem["input"], str) else problem["input"]
    if keys[0] == "cameras" and isinstance(shown, dict):
        shown = f"a camera with {', '.join(sorted(shown)) or 'nothing'}"  # its address may carry a password
    if keys == ["api"] or keys[:2] == ["api", "clients"]:
        shown = "***"  # there may be a token in it
    return f"setting {key} = {shown!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _keys_beside(keys: list[str]) -> list[str]:
    """The names allowed in the section that ``keys`` points into."""
    model: Any = CameraSettings if keys[0] == "cameras" and len(keys) > 1 else Settings
    if model is Settings and len(keys) > 1:
        model = ApiClientSettings if keys[:2] == ["api", "clients"] and len(keys) > 2 else Settings.model_fields[keys[0]].annotation
    return list(model.model_fields)


def describe(settings: Settings) -> list[tuple[str, str, str]]:
    """(key, value in force, description) of every setting; secrets are masked."""
    rows: list[tuple[str, str, str]] = []
    for section_name, section in settings:
        if not isinstance(section, Section):
            continue
        for key, field in type(section).model_fields.items():
            value = getattr(section, key)
            rows.append((f"{section_name}.{key}", str(value), field.description or ""))
    rows.extend((f"cameras.{each.camera_id}", without_credentials(each.uri), each.site) for each in settings.cameras)
    return rows
