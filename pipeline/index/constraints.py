"""What cannot be: two people in one picture are two, nobody is faster than a top speed, and what an operator cut stays cut."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from pipeline.evidence import are_two_at_once, gap_between_s, is_out_of_reach
from pipeline.index.units import Group, Held, overlapping
from pipeline.index.words import Words

Position = tuple[float, float]

SECOND_NS = 1_000_000_000


class Constraints:
    """Which tracklets and identities can be one person."""

    def __init__(
        self,
        words: Words,
        position_of: Callable[[str], Position | None],
        top_speed_m_s: float,
    ) -> None:
        """words: of operators, as they are when asked; position_of: where a camera hangs, metres; None: not known."""
        self._words, self._position_of = words, position_of
        self._top_speed_m_s = top_speed_m_s

    def exclude(self, held: Held, other: Held) -> bool:
        """Whether two tracklets of one camera overlap for longer than one track hands over to the next."""
        if held.camera_id != other.camera_id or held.is_heard != other.is_heard:
            return False  # who is heard may be the one who is seen
        return are_two_at_once((held.from_ns, held.to_ns), (other.from_ns, other.to_ns))

    def _is_too_far(self, held: Held, other: Held) -> bool:
        """Whether nobody could have come from one to the other in the time between."""
        if not self._top_speed_m_s or held.camera_id == other.camera_id:
            return False
        here, there = self._position_of(held.camera_id), self._position_of(other.camera_id)
        if here is None or there is None:
            return False
        gap_s = gap_between_s((held.from_ns, held.to_ns), (other.from_ns, other.to_ns))
        return is_out_of_reach(here, there, gap_s, self._top_speed_m_s)

    def are_possible(self, held: Held, other: Held) -> bool:
        """Whether two tracklets may show one person, said an operator so or not."""
        if other.tracklet_id in self._words.same_as(held.tracklet_id):
            return True
        if other.tracklet_id in self._words.cut_from(held.tracklet_id):
            return False
        return not self.exclude(held, other) and not self._is_too_far(held, other)

    def can_be(self, held: Held, group: Group) -> bool:
        """Whether a tracklet may be of an identity: all of its members that could speak against it are asked."""
        cuts = self._words.cut_from(held.tracklet_id)
        return not (cuts and any(other in group.members for other in cuts)) and not self.in_the_way(held, group)

    def in_the_way(self, held: Held, group: Group) -> list[Held]:
        """The members in whose picture or too far from whom it is; by the triangle the nearest in time are enough for travel."""
        asked = overlapping(group.spans, held.from_ns, held.to_ns, group.longest_ns)
        if self._top_speed_m_s and self._position_of(held.camera_id) is not None:
            at = bisect_left(group.spans, held.span)
            asked = list(dict.fromkeys([*asked, *group.spans[max(0, at - 4) : at + 4]]))
        members = (group.members[span[2]] for span in asked)
        return [each for each in members if each is not held and not self.are_possible(held, each)]

    def conflict(self, held: Held, other: Held) -> bool:
        """Whether the identities of two tracklets cannot be one."""
        fewer, more = sorted((held.unit, other.unit), key=len)
        if more[0].group is None:
            return not self.are_possible(fewer[0], more[0])
        group = more[0].group
        return any(not self.can_be(each, group) for each in fewer)
