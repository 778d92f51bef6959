"""The sound of a camera on the ingest line, met with its pictures by time.

The sound of footage is pulled by the picture clock, in the thread that tracks: so a second run equals the first to the bit. That of a live
camera is read by a thread of its own and taken as it comes. A sound track that breaks off costs the turns that it would have held, never a
picture; a camera without sound costs nothing, not even the weights of the voice networks.
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.embed import pool
from pipeline.errors import SightlineError
from pipeline.track.stage import TrackUpdates
from pipeline.types import VOICE, Attribute, Camera, Frame, Sound, Tracklet
from pipeline.voice.listening import Listening, Spoken

log = logging.getLogger("sightline.ingest")

AHEAD = 16  # pieces of live sound, about as many seconds, that may wait here
MOST_TURNS = 64  # of one tracklet that are pooled: somebody who stays in view all day says no more with a thousand
REMEMBERED = 256  # closed tracklets that a late turn may still be added to


class Sounds(Protocol):
    """The sound of one camera, in pieces."""

    def until(self, at_ns: int) -> list[Sound]:
        """The pieces that began by then and were not taken yet."""
        ...

    def rest(self) -> list[Sound]:
        """Those left at the end of the pictures."""
        ...


class PulledSounds:
    """Sound of footage: read when its moment has come, and one piece further."""

    def __init__(self, camera_id: str, pieces: Iterator[Sound]) -> None:
        self._camera_id, self._pieces = camera_id, pieces
        self._next: Sound | None = None
        self._is_over = False

    def until(self, at_ns: int) -> list[Sound]:
        """See Sounds."""
        taken: list[Sound] = []
        while not self._is_over:
            if self._next is None:
                self._next = self._read()
            if self._next is None or self._next.started_at_ns > at_ns:
                break
            taken.append(self._next)
            self._next = None
        return taken

    def rest(self) -> list[Sound]:
        """Nothing: sound after the last picture has nobody in it, and that before it was taken."""
        self._is_over = True
        return []

    def _read(self) -> Sound | None:
        try:
            piece = next(self._pieces, None)
        except (SightlineError, OSError) as error:
            log.warning("sound ended early, the pictures go on", extra={"camera": self._camera_id, "reason": str(error)})
            piece = None
        self._is_over = piece is None
        return piece


class LiveSounds:
    """Sound of a live camera, read by a thread that ends with its capture."""

    def __init__(self, camera_id: str, pieces: Iterator[Sound], on_first: Callable[[], None] = lambda: None) -> None:
        """on_first: called in the thread before the first piece is handed on, for what takes long."""
        self._camera_id, self._pieces, self._on_first = camera_id, pieces, on_first
        self._come: queue.Queue[Sound] = queue.Queue(AHEAD)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._read, name=f"sound-{camera_id}", daemon=True)
        self._thread.start()

    def until(self, at_ns: int) -> list[Sound]:
        """See Sounds: whatever has come, ahead of the pictures or not."""
        taken = []
        while not self._come.empty():
            taken.append(self._come.get_nowait())
        return taken

    def rest(self) -> list[Sound]:
        """See Sounds."""
        self._is_over.set()
        return self.until(0)

    def _read(self) -> None:
        try:
            for number, piece in enumerate(self._pieces):
                if number == 0:
                    self._on_first()
                while not self._is_over.is_set():
                    try:
                        self._come.put(piece, timeout=0.5)
                    except queue.Full:  # the capture holds the newest sound meanwhile
                        continue
                    break
                if self._is_over.is_set():
                    return
        except (SightlineError, OSError) as error:
            log.warning("sound ended early, the pictures go on", extra={"camera": self._camera_id, "reason": str(error)})


class Ears:
    """Listens beside track and embed of one camera, and adds what it heard to their tracklets.

    make_listening: called at the first sound, as it fetches and loads the voice networks; of a live camera beside the pictures, which do
    not wait. Where they cannot be had, the camera goes on deaf.
    """

    def __init__(self, camera: Camera, make_listening: Callable[[Camera], Listening]) -> None:
        self._camera, self._make_listening = camera, make_listening
        self._sounds: Sounds | None = None
        self._listening: Listening | None = None
        self._is_deaf = False
        self._voices: dict[str, list[Spoken]] = {}
        self._published: dict[str, Tracklet] = {}  # last revision of open tracklets and of some closed ones
        self._added: dict[str, int] = {}  # revisions that a voice made, by tracklet

    def hear(self, pieces: Iterator[Sound]) -> None:
        """What the camera's sound is; called once, before the first picture."""
        camera = self._camera
        is_footage = not camera.is_live and "://" not in camera.uri and not camera.uri.startswith("/dev/")  # one that can be pulled
        self._sounds = PulledSounds(camera.camera_id, pieces) if is_footage else LiveSounds(camera.camera_id, pieces, self._load)

    def listen(self, frame: Frame, updates: TrackUpdates) -> list[Spoken]:
        """Take in a frame's people and the sound up to it; gives the turns that are judged now."""
        if self._sounds is None or self._is_deaf:
            return []
        for sound in self._sounds.until(frame.captured_at_ns):
            self._take(sound)
        if self._listening is None:
            return []
        confirmed = {track.tracklet_id for track in updates.open}
        ids = [track.tracklet_id for track in updates.seen]
        self._listening.see(frame, ids, updates.xyxy, [name in confirmed for name in ids])
        self._listening.forget(updates.forgotten)
        return self._listening.ready(frame.captured_at_ns)

    def finish(self) -> list[Spoken]:
        """The pictures are over: the turns that are left."""
        for sound in self._sounds.rest() if self._sounds is not None else ():
            self._take(sound)
        return self._listening.finish() if self._listening is not None else []

    def _take(self, sound: Sound) -> None:
        if self._listening is None and not self._is_deaf:
            self._load()
        if self._listening is None or self._is_deaf:
            return
        try:
            self._listening.hear(sound)
        except SightlineError as error:
            self._go_deaf(error)

    def _load(self) -> None:
        try:
            self._listening = self._make_listening(self._camera)
        except SightlineError as error:
            self._go_deaf(error)

    def _go_deaf(self, error: SightlineError) -> None:
        self._is_deaf = True
        log.warning("voices are not heard", extra={"camera": self._camera.camera_id, "reason": str(error)})

    # ----------------------------------------------------------------------------------------- tracklets

    def join(self, tracklets: Sequence[Tracklet], spoken: Sequence[Spoken]) -> tuple[list[Tracklet], list[Tracklet]]:
        """Revisions of the embed stage with what was heard of their people, numbered after those that a voice made; and what the turns make
        due beside them: a revision of their person's tracklet, where its voice is new or it is closed, and one of its own for a turn of
        nobody in view."""
        made: list[Tracklet] = []
        due: dict[str, None] = {}
        for each in spoken:
            owner = each.verdict.tracklet_id
            log.debug("turn", extra={"camera": each.turn.camera_id, "is_attributed": owner is not None, "reason": each.verdict.why})
            if owner is None:
                made.append(self._unattributed(each))
                continue
            voices = self._voices.setdefault(owner, [])
            voices.append(each)
            if len(voices) > MOST_TURNS:
                voices.remove(min(voices, key=_weight))
            known = self._published.get(owner)
            if known is not None and (len(voices) == 1 or known.is_closed):
                due[owner] = None
        numbered = [dataclasses.replace(each, revision=each.revision + self._added.get(each.tracklet_id, 0)) for each in tracklets]
        joined = [self._keep(_voiced(each, self._voices.get(each.tracklet_id, []))) for each in numbered]
        for owner in due:
            if any(each.tracklet_id == owner for each in joined):
                continue
            known = self._published[owner]
            self._added[owner] = self._added.get(owner, 0) + 1
            made.append(self._keep(_voiced(dataclasses.replace(known, revision=known.revision + 1), self._voices[owner])))
        return joined, made

    def forget(self, tracklet_ids: Sequence[str]) -> None:
        """Drop what is held of tracks that ended unconfirmed."""
        for tracklet_id in tracklet_ids:
            self._voices.pop(tracklet_id, None)

    def _keep(self, tracklet: Tracklet) -> Tracklet:
        if self._listening is None:
            return tracklet
        if tracklet.is_closed:
            self._drop_closed(self._listening)
        self._published[tracklet.tracklet_id] = tracklet
        return tracklet

    def _drop_closed(self, listening: Listening) -> None:
        """Let go of closed tracklets that no turn can be added to any more, and of the oldest where there are very many."""
        closed = [name for name, each in self._published.items() if each.is_closed]
        excess = len(closed) - REMEMBERED
        for number, name in enumerate(closed):
            if number < excess or not listening.is_awaited(name):
                del self._published[name]
                self._voices.pop(name, None)
                self._added.pop(name, None)

    def _unattributed(self, spoken: Spoken) -> Tracklet:
        """A speaker turn of the camera: heard, not seen."""
        turn = spoken.turn
        zone = self._listening.zone if self._listening is not None else ""
        return Tracklet(
            tracklet_id=f"{turn.camera_id}/voice-{turn.started_at_ns}",
            revision=1,
            camera_id=turn.camera_id,
            started_at_ns=turn.started_at_ns,
            ended_at_ns=turn.ended_at_ns,
            at_ns=np.zeros(0, np.int64),
            xyxy=np.zeros((0, 4), np.float32),
            confidence=np.zeros(0, np.float32),
            embeddings=(turn.embedding,),
            attributes=(Attribute("voice", spoken.verdict.why, 0.0),),
            zones=(zone,) if zone else (),
            is_closed=True,
            model_versions=(turn.embedding.space,),
        )


def _weight(spoken: Spoken) -> float:
    """How much a turn tells of its person's voice, 0..1."""
    return spoken.turn.embedding.quality * spoken.verdict.confidence


def _voiced(tracklet: Tracklet, voices: Sequence[Spoken]) -> Tracklet:
    """The tracklet with the pooled voice of its turns, in place of the one that it had."""
    if not voices:
        return tracklet
    space = voices[-1].turn.embedding.space
    alike = [each for each in voices if each.turn.embedding.space == space]
    weights = [_weight(each) for each in alike]
    vectors: list[NDArray[np.float32]] = [each.turn.embedding.vector for each in alike]
    voice = pool(vectors, weights, VOICE, space)
    if voice is None:
        return tracklet
    surest = max(alike, key=lambda each: each.verdict.confidence).verdict
    return dataclasses.replace(
        tracklet,
        embeddings=(*(each for each in tracklet.embeddings if each.modality != VOICE), voice),
        attributes=(*(each for each in tracklet.attributes if each.name != "voice"), Attribute("voice", surest.why, surest.confidence)),
        model_versions=(*(each for each in tracklet.model_versions if each != space), space),
    )
