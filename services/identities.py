"""Identities as a user handles them: what is probably one person, with the evidence in words, and an operator's word on it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pipeline.errors import NotFoundError, NotReadyError, SettingsError
from pipeline.index.words import Words
from pipeline.ports import IdentityStore
from pipeline.search.progressive import within
from pipeline.types import BODY, Decision, Identity, Link, Tracklet
from pipeline.types.identity import pair_key
from services import audit, wire
from services.settings import Settings
from services.topics import DECISIONS

VERDICTS = {"cut": "different", "confirm": "same", "withdraw": "withdrawn"}


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """An identity with what is known of its tracklets, in order of time."""

    identity_id: str
    tracklets: tuple[Tracklet, ...]
    links: tuple[Link, ...]
    cut: tuple[Link, ...]

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "identity_id": self.identity_id,
            "trajectory": [
                {
                    "tracklet": each.tracklet_id,
                    "camera": each.camera_id,
                    "from_ns": each.started_at_ns,
                    "to_ns": each.ended_at_ns,
                    "evidence": [{**_link_dict(link), "with": _other(link, each.tracklet_id)} for link in self.links_of(each.tracklet_id)],
                }
                for each in self.tracklets
            ],
            "cut": [_link_dict(link) for link in self.cut],
        }

    def links_of(self, tracklet_id: str) -> list[Link]:
        """The evidence that ties a tracklet to earlier ones of the trajectory."""
        place = {each.tracklet_id: number for number, each in enumerate(self.tracklets)}
        own = [link for link in self.links if tracklet_id in (link.first, link.second)]
        return [link for link in own if place[_other(link, tracklet_id)] < place[tracklet_id]]


def _link_dict(link: Link) -> dict[str, Any]:
    return {
        "first": link.first,
        "second": link.second,
        "probability": round(link.probability, 4),
        "similarities": {modality: round(value, 4) for modality, value in link.similarities.items()},
        "log_odds": {modality: round(value, 3) for modality, value in link.log_odds.items()},
        "gap_s": round(link.gap_s, 1),
        "made_by": link.made_by,
        "verdict": link.verdict,
        "in_words": in_words(link),
    }


def _other(link: Link, tracklet_id: str) -> str:
    return link.second if link.first == tracklet_id else link.first


def in_words(link: Link) -> str:
    """The evidence of a link: "face 0.71, body 0.83 within 40 min: probably the same person, 0.94"."""
    said = [
        f"{modality} {similarity:.2f}" + (f" {within(link.gap_s)}" if modality == BODY else "")
        for modality, similarity in sorted(link.similarities.items(), key=lambda each: -link.log_odds.get(each[0], 0.0))
    ]
    evidence = ", ".join(said) or "nothing that can be compared"
    if link.verdict == "different":
        return f"{evidence}; {link.made_by} says: not the same person"
    if link.verdict == "same":
        return f"{evidence}; {link.made_by} says: the same person"
    return f"{evidence}: probably the same person, {math.floor(100 * link.probability) / 100:.2f}"


def list_identities(settings: Settings, least: int, most: int) -> list[dict[str, Any]]:
    """Identities of ``least`` tracklets or more, the largest first: id, tracklets, cameras, from and to."""
    from services.wiring import open_gallery, open_identities

    rows = []
    with open_identities(settings, read_only=True) as store, open_gallery(settings, read_only=True) as gallery:
        for identity_id, count in store.identities(least, most):
            identity = store.identity(identity_id)
            tracklets = gallery.tracklets(identity.tracklet_ids) if identity else []
            if tracklets:
                rows.append(
                    {
                        "identity_id": identity_id,
                        "tracklets": count,
                        "cameras": sorted({each.camera_id for each in tracklets}),
                        "from_ns": min(each.started_at_ns for each in tracklets),
                        "to_ns": max(each.ended_at_ns for each in tracklets),
                    }
                )
    return rows


def show_identity(settings: Settings, name: str, issued_by: str, purpose: str) -> Whereabouts:
    """An identity by its id, or by that of one of its tracklets; audited. Raises NotFoundError."""
    from services.wiring import open_broker, open_gallery, open_identities

    with open_broker(settings) as broker:
        audit.record(broker, "identity show", name, issued_by, purpose)
    with open_identities(settings, read_only=True) as store, open_gallery(settings, read_only=True) as gallery:
        identity = store.identity(store.identity_of([name]).get(name, name))
        if identity is None:
            raise NotFoundError(f"{name} must be an identity or a tracklet that was linked: `sightline identity list` shows identities")
        tracklets = gallery.tracklets(identity.tracklet_ids)
        cut = {pair_key(link.first, link.second): link for each in identity.tracklet_ids for link in store.links_of(each)}
    held = {each.tracklet_id for each in tracklets}  # what was just removed may still be linked
    links = tuple(link for link in identity.links if held >= {link.first, link.second})
    return Whereabouts(identity.identity_id, tuple(tracklets), links, tuple(link for link in cut.values() if link.verdict == "different"))


def decide(settings: Settings, action: str, first: str, second: str, issued_by: str, purpose: str) -> Decision:
    """Put an operator's word onto its topic, where every copy of the index takes it from; audited.

    action: cut, confirm or withdraw. Raises NotFoundError for tracklets that nobody linked and a withdrawal of nothing, BadInputError
    for a word that contradicts one in force.
    """
    from services.wiring import open_broker, open_identities

    if first == second:
        raise SettingsError(f"two different tracklets must be named, got {first} twice")
    decision = Decision(first, second, VERDICTS[action], issued_by, time.time_ns(), purpose)
    with open_identities(settings, read_only=True) as store:
        _check(store, decision)
    with open_broker(settings) as broker:
        audit.record(broker, f"identity {action}", decision.key, issued_by, purpose)
        broker.produce(DECISIONS, wire.encode(decision), decision.key.encode())
        broker.flush()
    return decision


def _check(store: IdentityStore, decision: Decision) -> None:
    known = store.identity_of([decision.first, decision.second])
    for each in (decision.first, decision.second):
        if each not in known:
            raise NotFoundError(f"{each} must be a tracklet that was linked: `sightline identity show` takes its id")
    words = Words(store.decisions())
    if decision.verdict == "withdrawn" and words.on(decision.key) is None:
        raise NotFoundError(f"nobody decided on {decision.first} and {decision.second}: there is nothing to withdraw")
    words.check(decision)


def wait_until_obeyed(settings: Settings, decision: Decision, within_s: float = 5.0) -> bool:
    """Whether the index worker of this machine took the word in time; where none runs, the next one does."""
    from services.wiring import open_identities

    ends_at = time.monotonic() + within_s
    while time.monotonic() < ends_at:
        with open_identities(settings, read_only=True) as store:
            in_force = {each.key: each.verdict for each in store.decisions()}
        if in_force.get(decision.key, "withdrawn") == decision.verdict:
            return True
        time.sleep(0.1)
    return False


class LateIdentities:
    """Identities for a search: nobody is linked until the index worker has made their store, which may be after we start."""

    def __init__(self, open_store: Callable[[], IdentityStore]) -> None:
        """open_store: raises NotReadyError while there is none."""
        self._open_store = open_store
        self._store: IdentityStore | None = None

    def _there(self) -> IdentityStore | None:
        if self._store is None:
            with suppress(NotReadyError):
                self._store = self._open_store()
        return self._store

    def identity_of(self, tracklet_ids: Sequence[str]) -> dict[str, str]:
        """See IdentityStore."""
        store = self._there()
        return store.identity_of(tracklet_ids) if store is not None else {}

    def identity(self, identity_id: str) -> Identity | None:
        """See IdentityStore."""
        store = self._there()
        return store.identity(identity_id) if store is not None else None

    def links_of(self, tracklet_id: str) -> list[Link]:
        """See IdentityStore."""
        store = self._there()
        return store.links_of(tracklet_id) if store is not None else []
