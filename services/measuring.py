"""What `sightline evaluate` and `sightline train` run, put together from the parts that wiring.py makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import MissingDependencyError, SettingsError
from pipeline.ports import FaceEncoder
from pipeline.types import Camera, Tracklet
from services import wiring
from services.settings import Settings

if TYPE_CHECKING:
    from models.training.tracklets import Encoders
    from pipeline.index.linking import Linker


def measure_tracking(settings: Settings, video: Path, ground_truth: Path, with_peers: bool) -> dict[str, Any]:
    """The figures of `sightline evaluate tracking`."""
    from services.evaluate_tracking import evaluate_tracking

    camera = Camera("evaluate", str(video))
    # Average precision counts the faint boxes too; the tracker leaves them out by itself.
    every_box = settings.model_copy(update={"detect": settings.detect.model_copy(update={"minimum_confidence": 0.001})})
    return evaluate_tracking(wiring.open_camera(settings, camera), ground_truth, wiring.make_detector(every_box), with_peers=with_peers)


def measure_text_search(settings: Settings, persons: Path, captions: Path, distractors: Path | None, dump: Path | None) -> dict[str, Any]:
    """The figures of `sightline evaluate text-search`."""
    from services.evaluate_retrieval import evaluate_text_search

    return evaluate_text_search(persons, captions, distractors, wiring.look_encoder(settings), wiring.text_encoder(settings), dump)


def measure_reid(settings: Settings, persons: Path, distractors: Path | None, dump: Path | None) -> dict[str, Any]:
    """The figures of `sightline evaluate reid`."""
    from services.evaluate_retrieval import evaluate_reid

    return evaluate_reid(persons, distractors, wiring.look_encoder(settings), dump)


def measure_full_frames(
    settings: Settings,
    *,
    video: Path | None,
    ground_truth: Path | None,
    described: Path | None,
    frames: Path | None,
    every: int | None,
    with_peer: bool,
    sheet: Path | None,
    heat: Path | None,
    dump: Path | None,
) -> dict[str, Any]:
    """The figures of `sightline evaluate full-frames`; raises SettingsError when it is not said what to look at."""
    from models.two_stage import TwoStage
    from services.evaluate_full_frames import evaluate_full_frames, labelled_clip, labelled_folder

    if frames is not None and video is None and ground_truth is None:
        source = labelled_folder(frames, described, every or 1)
    elif frames is None and video is not None and ground_truth is not None and described is not None:
        camera = Camera("evaluate", str(video))
        source = labelled_clip(lambda: wiring.open_camera(settings, camera), video.stem, ground_truth, described, every or 5)
    else:
        raise SettingsError("full-frames must be given --video with --ground-truth and --described, or --frames alone")
    peer = TwoStage(wiring.plain_detector(settings), wiring.look_encoder(settings), wiring.text_encoder(settings)) if with_peer else None
    return evaluate_full_frames(source, wiring.retriever(settings), peer, sheet=sheet, heat=heat, dump=dump)


def measure_portrait(
    settings: Settings, faces: Path, *, pairs: Path | None, gallery: Path | None, sizes: Sequence[int], dump: Path | None
) -> dict[str, Any]:
    """The figures of `sightline evaluate portrait`."""
    from models.face import LEAST_QUALITY
    from services.evaluate_portrait import evaluate_portrait

    encoder = wiring.face_encoder(settings, is_gated=False)
    even = wiring.same_face(encoder.space)
    return evaluate_portrait(faces, encoder, LEAST_QUALITY, even, pairs=pairs, gallery=gallery, sizes=sizes, dump=dump)


def measure_voices(settings: Settings, voices: Path, dump: Path | None) -> dict[str, Any]:
    """The figures of `sightline evaluate voices`."""
    from models.voice import calibration as voice_calibration
    from services.evaluate_voices import evaluate_voices

    encoder = wiring.voice_encoder(settings)
    return evaluate_voices(voices, encoder, wiring.read_voice, voice_calibration()[encoder.space].midpoint, dump)


def measure_attribution(settings: Settings, talking: Path, voices: Path | None, sampling_hz: float) -> dict[str, Any]:
    """The figures of `sightline evaluate attribution`."""
    from models.blazeface import BlazeFace
    from models.lips import MouthReader
    from pipeline.voice.attribution import AttributionRules
    from pipeline.voice.listening import Listening
    from services.evaluate_attribution import RememberedFaces, RememberedVoices, evaluate_attribution, talking_clip

    rules = AttributionRules(single_visible=settings.voice.single_visible)
    voices_once = RememberedVoices(wiring.voice_encoder(settings))
    lips = MouthReader(RememberedFaces(BlazeFace(wiring.weight_registry(settings).path("blazeface")))) if settings.voice.lips else None
    return evaluate_attribution(
        talking,
        voices,
        lambda path: talking_clip(wiring.open_camera(settings, Camera(path.stem, str(path), sampling_hz, starts_at_ns=1)), path),
        wiring.read_voice,
        lambda camera: Listening(camera, voices_once, lips, rules=rules),
    )


def measure_linking(settings: Settings, video: Path, ground_truth: Path, other: Path, calibration: Path) -> dict[str, Any]:
    """The figures of `sightline evaluate linking`."""
    from services.evaluate_linking import evaluate_footage
    from services.sinks import RevisionSink

    def gather(path: Path, name: str) -> list[Tracklet]:
        sink = RevisionSink()
        camera = Camera(name, str(path), starts_at_ns=1_700_000_000_000_000_000)  # both clips show the same moments
        wiring.make_line(settings, [wiring.open_camera(settings, camera)], sink).run()
        return sink.revisions

    def linker(accept: float) -> Linker:
        return wiring.make_linker(settings.model_copy(update={"link": settings.link.model_copy(update={"accept": accept})}))

    return evaluate_footage(gather, video, ground_truth, other, calibration, linker, settings.link.accept)


def measure_association(
    settings: Settings, data: Path, dump: Path | None, work: Path | None, body_weights: Path | None, seeds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """The figures of `sightline evaluate association`."""
    from pipeline.evidence import PlainAssociator
    from services.evaluate_association import evaluate_association, samples_of

    samples = samples_of(data, _encoders(settings, data, [wiring.face_encoder(settings)], body_weights), work, say)
    return evaluate_association(samples, wiring.associator(settings), PlainAssociator(wiring.calibration()), seeds, dump)


def measure_cast_search(settings: Settings, data: Path, subset: str | None) -> dict[str, Any]:
    """The figures of `sightline evaluate cast-search`."""
    from services.evaluate_cast_search import Searchers, evaluate_cast_search

    def searchers() -> Searchers:
        return Searchers(
            wiring.face_encoder(settings),
            wiring.look_encoder(settings),
            wiring.voice_encoder(settings),
            wiring.read_voice,
            wiring.associator(settings),
        )

    return evaluate_cast_search(data, subset, searchers)


def train_detector_retriever(
    settings: Settings,
    data: Path,
    work: Path,
    out: Path,
    config: Path | None,
    changes: Sequence[str],
    teacher: Path | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train the detector-retriever and write its weights to ``out``; the figures on people held out. Raises MissingDependencyError."""
    try:
        from models.training.config import RECIPE, read_config
        from models.training.detector_retriever import train
    except ImportError:
        raise MissingDependencyError("torch", "torch") from None
    recipe = read_config(config or RECIPE, changes)
    return train(recipe, wiring.weight_registry(settings).path("nanodet"), data, work, out, teacher, say)


def train_association(
    settings: Settings, data: Path, out: Path, work: Path | None, body_weights: Path | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Fit the associative network and write its weights to ``out``; the figures on people held out."""
    from models.training.association import train

    faces = [
        wiring.face_encoder(settings.model_copy(update={"embed": settings.embed.model_copy(update={"face_model": name})}))
        for name in ("mobilefacenet", "faceres")
    ]
    return train(data, _encoders(settings, data, faces, body_weights), out, work, say)


def _encoders(settings: Settings, data: Path, faces: Sequence[FaceEncoder], body_weights: Path | None) -> Encoders:
    """The encoders for samples. body_weights: a detector-retriever trained without some people (training's held_out_people): crops of
    these go through it. Raises MissingDependencyError: the split of that training needs torch to be repeated."""
    from models.training.tracklets import Encoders

    looks, crop_looks, people = wiring.look_encoder(settings), None, None
    if body_weights is not None:
        from models.detector_retriever.runtime import RetrieverLooks

        try:
            from models.training.people import people_held_out
        except ImportError:
            raise MissingDependencyError("torch", "torch") from None
        crop_looks = RetrieverLooks(wiring.weight_registry(settings).path("nanodet"), settings.detect.threads, body_weights)
        people = people_held_out(data)
    return Encoders(faces, looks, wiring.voice_encoder(settings), wiring.read_voice, crop_looks, people)


def train_voice_channels(settings: Settings, voices: Path, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Learn how channels move voice vectors from DIR/<speaker>/ and write that to ``out``; the figures of speakers left out."""
    from models.training.voice_channels import learn_channels, save
    from models.voice import CampPlusEncoder
    from services.evaluate_voices import clips_of

    registry = wiring.weight_registry(settings)
    raw = CampPlusEncoder(registry.path("campplus"), registry.path("silero-vad"), registry.path("segmentation"), channels=None)
    clips = clips_of(voices)
    learned = learn_channels(raw, [wiring.read_voice(path) for path, _ in clips], [speaker for _, speaker in clips], say)
    save(learned, out / "voice_channels.npz")
    return {**learned.figures, **{f"curve_{band}": [round(value, 3) for value in curve] for band, curve in learned.curves.items()}}
