"""What is written out of a batch."""

from pipeline.index.stage import newest
from pipeline.types import Tracklet


def tracklet(name: str, revision: int) -> Tracklet:
    return Tracklet(name, revision, "c", 0, 1, [], [], [])


def test_the_highest_revision_of_each_tracklet_is_kept_in_order_of_first_appearance() -> None:
    batch = [tracklet("a", 1), tracklet("b", 2), tracklet("a", 3), tracklet("b", 1), tracklet("a", 2)]
    assert [(t.tracklet_id, t.revision) for t in newest(batch)] == [("a", 3), ("b", 2)]
    assert newest([]) == []
