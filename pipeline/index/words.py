"""What operators said of pairs of tracklets: it holds until it is withdrawn, and no two words may contradict each other."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from pipeline.errors import BadInputError
from pipeline.types import Decision
from pipeline.types.identity import pair_key


class Words:
    """What operators said of pairs of tracklets, and what does not go together."""

    def __init__(self, decisions: Iterable[Decision] = ()) -> None:
        self._decisions: dict[str, Decision] = {}
        self._cut: dict[str, set[str]] = {}
        self._same: dict[str, set[str]] = {}
        for decision in decisions:
            self.remember(decision)

    def on(self, key: str) -> Decision | None:
        """The word in force on a pair."""
        return self._decisions.get(key)

    def in_force(self) -> list[Decision]:
        """All of them, oldest first."""
        return sorted(self._decisions.values(), key=lambda each: (each.decided_at_ns, each.key))

    def cut_from(self, tracklet_id: str) -> Collection[str]:
        """The tracklets that were called different from one."""
        return self._cut.get(tracklet_id, ())

    def same_as(self, tracklet_id: str) -> Collection[str]:
        """The tracklets that were called the same as one."""
        return self._same.get(tracklet_id, ())

    def check(self, decision: Decision) -> None:
        """Raises BadInputError where the word contradicts one in force, and says which."""
        known = self._decisions.get(decision.key)
        if decision.verdict == "withdrawn":
            return
        if known is not None and known.verdict != decision.verdict:
            raise BadInputError(
                f"{decision.first} and {decision.second} were called {known.verdict} by {known.decided_by}:"
                " withdraw that first, then decide anew"
            )
        ours, theirs = self._confirmed(decision.first), self._confirmed(decision.second)
        if decision.verdict == "different" and decision.second in ours:
            chain = " = ".join(sorted(ours))
            raise BadInputError(f"{decision.first} and {decision.second} were confirmed to be one person ({chain}): withdraw that first")
        if decision.verdict == "same":
            for first in sorted(ours):
                for second in sorted(theirs.intersection(self.cut_from(first))):
                    raise BadInputError(
                        f"{decision.first} and {decision.second} cannot be one person: {first} and {second}, confirmed to be of them,"
                        " were called different; withdraw one of these words first"
                    )

    def _confirmed(self, tracklet_id: str) -> set[str]:
        """All that operators called the same as a tracklet, itself among them."""
        seen, waiting = {tracklet_id}, [tracklet_id]
        while waiting:
            for other in self.same_as(waiting.pop()):
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)
        return seen

    def remember(self, decision: Decision) -> None:
        """A word in the place of an earlier one on the same pair."""
        for words in (self._cut, self._same):
            for one, other in ((decision.first, decision.second), (decision.second, decision.first)):
                if one in words:
                    words[one].discard(other)
                    if not words[one]:
                        del words[one]
        self._decisions.pop(decision.key, None)
        if decision.verdict != "withdrawn":
            words = self._cut if decision.verdict == "different" else self._same
            words.setdefault(decision.first, set()).add(decision.second)
            words.setdefault(decision.second, set()).add(decision.first)
            self._decisions[decision.key] = decision

    def forget(self, tracklet_ids: set[str]) -> tuple[str, ...]:
        """The words on tracklets that are no more go too; gives their pairs."""
        keys = {pair_key(each, other) for each in tracklet_ids for other in (*self.cut_from(each), *self.same_as(each))}
        for key in keys:
            self.remember(replace(self._decisions[key], verdict="withdrawn"))
        return tuple(sorted(keys))
