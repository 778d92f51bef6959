"""A sound file as a voice to search for."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import BadInputError
from pipeline.types import VOICE, Embedding, Probe
from services.settings import Settings


def voice_probe(settings: Settings, path: Path) -> Probe:
    """The voice of a sound or video file as a probe.

    Raises NotFoundError, UnreadableMediaError for a file without sound that decodes, BadInputError for one in which nobody can be heard
    speaking for half a second, or several people speak.
    """
    from services import wiring

    sound, encoder = wiring.read_voice(path), wiring.voice_encoder(settings)
    try:
        heard = encoder.speech(sound)
    except BadInputError as error:
        raise BadInputError(f"voice sample {path} cannot be searched for: {error}") from error
    if encoder.holds_several(heard.features):
        raise BadInputError(f"voice sample {path} must hold the voice of one person, got several: cut out the one to search for")
    embedding = Embedding(VOICE, encoder.space, encoder.vector(heard.features), heard.quality)
    return Probe("voice", embeddings=(embedding,))
