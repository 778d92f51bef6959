"""What every gallery and media store must do, whatever lies behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest

from pipeline.errors import BadInputError, MissingDependencyError, NotFoundError, SpaceMismatchError
from pipeline.ports import Gallery, MediaStore
from pipeline.types import Attribute, CameraCoverage, CropReference, Embedding, Filter, Gap, Reembedding, Tracklet
from services.adapters.disk_media import DiskMedia
from services.adapters.faiss_gallery import FaissGallery

HAS_GPU = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
GALLERIES: dict[str, Callable[[Path], Gallery]] = {
    "faiss": FaissGallery,
    "faiss in small segments": lambda folder: FaissGallery(
        folder, segment_size=20, coarse_from=10, coarse_kinds=("rabitq",), candidates=1000
    ),
}
if HAS_GPU:
    GALLERIES["faiss on a GPU"] = lambda folder: FaissGallery(folder, segment_size=20, device="gpu")
MEDIA: dict[str, Callable[[Path], MediaStore]] = {"disk": DiskMedia}


@pytest.fixture(params=GALLERIES)
def gallery(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Gallery]:
    made = GALLERIES[request.param](tmp_path / "index")
    yield made
    made.close()


@pytest.fixture(params=MEDIA)
def media(request: pytest.FixtureRequest, tmp_path: Path) -> MediaStore:
    return MEDIA[request.param](tmp_path / "crops")


def vector(seed: int, dimension: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(dimension).astype(np.float32)


def tracklet(number: int, revision: int = 1, *, space: str = "body@1", seed: int | None = None, zones: tuple[str, ...] = ()) -> Tracklet:
    """Tracklet ``number`` of camera number % 4, lasting the half second after its number."""
    start = number * 1_000_000_000
    embeddings = [Embedding("body", space, vector(number if seed is None else seed), 0.5)]
    if number % 3 == 0:
        embeddings.append(Embedding("face", "face@1", vector(number + 5000, 16)))
    return Tracklet(
        f"tracklet-{number}",
        revision,
        f"camera-{number % 4}",
        start,
        start + 500_000_000,
        np.arange(start, start + 3),
        np.arange(12).reshape(3, 4),
        np.asarray([0.9, 0.0, 0.8]),
        tuple(embeddings),
        (Attribute("upper colour", "red", 0.75),),
        (CropReference(f"camera/{number}.jpg", start, (1.0, 2.0, 3.0, 4.0), 0.5),),
        zones,
        True,
        ("detector@1",),
    )


def ids_of(found: list) -> list[str]:
    return [hit.tracklet_id for hit in found]


def test_an_empty_gallery_finds_nothing(gallery: Gallery) -> None:
    assert gallery.search(Embedding("body", "body@1", vector(1)), Filter(), 10) == []
    assert gallery.tracklets(["nobody"]) == []
    assert list(gallery.scan(Filter())) == []
    assert gallery.delete(["nobody"]) == []
    assert gallery.statistics().tracklets == 0


def test_a_tracklet_comes_back_as_it_was_written(gallery: Gallery) -> None:
    written = tracklet(3, zones=("door", "till"))
    assert gallery.upsert([written]) == 1
    (read,) = gallery.tracklets(["tracklet-3"])
    for name in ("tracklet_id", "revision", "camera_id", "started_at_ns", "ended_at_ns", "attributes", "crops", "zones", "is_closed"):
        assert getattr(read, name) == getattr(written, name)
    assert read.model_versions == written.model_versions
    np.testing.assert_array_equal(read.at_ns, written.at_ns)
    np.testing.assert_array_equal(read.xyxy, written.xyxy)
    np.testing.assert_array_equal(read.confidence, written.confidence)
    for before, after in zip(written.embeddings, read.embeddings, strict=True):
        assert (before.modality, before.space, before.quality) == (after.modality, after.space, after.quality)
        np.testing.assert_allclose(after.vector, before.vector, atol=1e-3)


@pytest.mark.parametrize(
    "window",
    [
        Filter(),
        Filter(cameras=("camera-1",)),
        Filter(cameras=("camera-1", "nowhere")),
        Filter(cameras=("nowhere",)),
        Filter(from_ns=30_400_000_000, to_ns=61_000_000_000),
        Filter(zones=("door",)),
        Filter(from_ns=10**9, to_ns=80 * 10**9, cameras=("camera-0", "camera-3"), zones=("till", "door")),
    ],
)
@pytest.mark.parametrize("modality", ["body", "face"])
def test_a_search_equals_the_exact_one_over_what_the_filter_leaves(gallery: Gallery, window: Filter, modality: str) -> None:
    everyone = [tracklet(n, zones=("door",) if n % 5 == 0 else ("till", "hall") if n % 7 == 0 else ()) for n in range(90)]
    for start in range(0, 90, 7):
        gallery.upsert(everyone[start : start + 7])
    probe = everyone[33].embedding(modality)
    assert probe is not None
    passing = [t for t in everyone if t.ended_at_ns >= window.from_ns and t.started_at_ns <= window.to_ns]
    passing = [t for t in passing if not window.cameras or t.camera_id in window.cameras]
    passing = [t for t in passing if not window.zones or set(t.zones) & set(window.zones)]
    cosines = {t.tracklet_id: e.similarity(probe) for t in passing if (e := t.embedding(modality))}
    wanted = sorted(cosines, key=lambda name: -cosines[name])[:10]
    found = gallery.search(probe, window, 10)
    # Stored vectors may be half precision: names may swap places where cosines are that near.
    assert len(set(ids_of(found))) == len(wanted)
    assert [hit.similarity for hit in found] == pytest.approx([cosines[name] for name in wanted], abs=5e-4)
    assert [hit.similarity for hit in found] == pytest.approx([cosines[hit.tracklet_id] for hit in found], abs=5e-4)
    scanned = list(gallery.scan(window))
    assert [t.tracklet_id for t in scanned] == [t.tracklet_id for t in passing]
    assert all(len(t.at_ns) == 0 and not t.embeddings for t in scanned)


def test_a_higher_revision_replaces_and_a_lower_or_equal_one_is_ignored(gallery: Gallery) -> None:
    gallery.upsert([tracklet(n) for n in range(50)])
    assert gallery.upsert([tracklet(7, 3, seed=900), tracklet(7, 2, seed=901)]) == 1
    assert gallery.upsert([tracklet(7, 3, seed=902), tracklet(7, 1)]) == 0
    assert gallery.tracklets(["tracklet-7"])[0].revision == 3
    new, old = (gallery.search(Embedding("body", "body@1", vector(seed)), Filter(), 50) for seed in (900, 7))
    assert new[0].tracklet_id == "tracklet-7"
    assert new[0].similarity > 0.99
    assert ids_of(old).count("tracklet-7") == 1
    assert old[0].similarity < 0.99
    assert gallery.statistics().tracklets == 50
    assert gallery.statistics().vectors == {"body@1": 50, "face@1": 17}


def test_a_deleted_tracklet_is_found_no_more_and_gives_its_crops(gallery: Gallery) -> None:
    gallery.upsert([tracklet(n) for n in range(50)])
    gallery.upsert([tracklet(4, 2)])
    crops = gallery.delete(["tracklet-4", "tracklet-49", "nobody"])
    assert sorted(crop.key for crop in crops) == ["camera/4.jpg", "camera/49.jpg"]
    assert gallery.tracklets(["tracklet-4"]) == []
    found = ids_of(gallery.search(Embedding("body", "body@1", vector(4)), Filter(), 50))
    assert len(found) == 48
    assert not {"tracklet-4", "tracklet-49"} & set(found)
    assert gallery.upsert([tracklet(4)]) == 1


def test_expiry_removes_what_ended_before_and_only_of_the_named_cameras(gallery: Gallery) -> None:
    gallery.upsert([tracklet(n) for n in range(50)])
    gallery.expire(20_000_000_000, ["camera-1"])
    assert gallery.statistics().tracklets == 45
    gallery.expire(20_000_000_000)
    assert [t.tracklet_id for t in gallery.scan(Filter())] == [f"tracklet-{n}" for n in range(20, 50)]


def test_a_probe_of_another_space_is_refused(gallery: Gallery) -> None:
    gallery.upsert([tracklet(1)])
    with pytest.raises(SpaceMismatchError, match=r"body@1.*other@2"):
        gallery.search(Embedding("body", "other@2", vector(1)), Filter(), 1)
    assert gallery.search(Embedding("voice", "voice@1", vector(1)), Filter(), 1) == []


def test_a_vector_of_another_dimension_is_refused_and_nothing_of_its_batch_is_kept(gallery: Gallery) -> None:
    gallery.upsert([tracklet(1)])
    short = Tracklet("short", 1, "camera-1", 0, 1, [], [], [], (Embedding("body", "body@1", vector(1, 8)),))
    with pytest.raises(BadInputError, match=r"must have 32 numbers, got 8"):
        gallery.upsert([tracklet(2), short])
    assert gallery.statistics().tracklets == 1
    with pytest.raises(BadInputError, match=r"must have 32 numbers, got 8"):
        gallery.search(Embedding("body", "body@1", vector(1, 8)), Filter(), 1)


def test_a_coverage_account_is_replaced_by_the_next_of_the_same_stretch(gallery: Gallery) -> None:
    gallery.record_coverage(CameraCoverage("a", 10, 20, 5, 5, 0, 0))
    whole = CameraCoverage("a", 10, 30, 9, 7, 1, 1, (Gap(12, 14, "refused"),))
    gallery.record_coverage(whole)
    gallery.record_coverage(CameraCoverage("b", 50, 60, 1, 1))
    assert gallery.coverage(Filter(0, 40)) == (whole,)
    assert [c.camera_id for c in gallery.coverage(Filter())] == ["a", "b"]
    assert gallery.coverage(Filter(cameras=("c",))) == ()


def test_a_crop_comes_back_and_goes(media: MediaStore) -> None:
    media.put("camera-1/t1/0.jpg", b"first")
    media.put("camera-1/t1/0.jpg", b"second")
    assert media.get("camera-1/t1/0.jpg") == b"second"
    media.delete(["camera-1/t1/0.jpg", "never/there.jpg"])
    with pytest.raises(NotFoundError, match=r"camera-1/t1/0\.jpg"):
        media.get("camera-1/t1/0.jpg")


@pytest.mark.parametrize("key", ["", "../secret", "/etc/passwd", "a/../../b", "a//b", ".hidden", "a/.b", "a\0b", "a\\b", "x" * 300, "a\n"])
def test_a_key_that_leads_elsewhere_is_refused(media: MediaStore, key: str) -> None:
    for act in (lambda: media.put(key, b"x"), lambda: media.get(key), lambda: media.delete([key])):
        with pytest.raises(BadInputError):
            act()


# ------------------------------------------------------------------------------------------------ other models


def of_the_new_model(number: int, revision: int = 1, seed: int | None = None) -> Reembedding:
    made = Embedding("body", "body@2", vector(number + 900 if seed is None else seed, 48), 0.75)
    return Reembedding(f"tracklet-{number}", revision, "body@2", (made,))


def test_another_models_vectors_lie_beside_the_old_ones_and_each_space_answers_for_itself(gallery: Gallery) -> None:
    gallery.upsert([tracklet(number) for number in range(60)])
    assert gallery.add_embeddings([of_the_new_model(number) for number in range(30)]) == 30
    assert ids_of(gallery.search(Embedding("body", "body@1", vector(7)), Filter(), 1)) == ["tracklet-7"]
    assert ids_of(gallery.search(Embedding("body", "body@2", vector(907, 48)), Filter(), 1)) == ["tracklet-7"]
    assert len(gallery.search(Embedding("body", "body@1", vector(7)), Filter(), 100)) == 60
    assert len(gallery.search(Embedding("body", "body@2", vector(907, 48)), Filter(), 100)) == 30
    assert gallery.statistics().by_modality["body"] == {"body@1": 60, "body@2": 30}
    assert gallery.statistics().tracklets == 60


def test_a_tracklet_keeps_all_else_that_it_had(gallery: Gallery) -> None:
    gallery.upsert([tracklet(3)])
    gallery.add_embeddings([of_the_new_model(3)])
    (read,) = gallery.tracklets(["tracklet-3"])
    assert [(each.modality, each.space) for each in read.embeddings] == [("body", "body@1"), ("face", "face@1"), ("body", "body@2")]
    assert read.model_versions == ("detector@1", "body@2")
    assert (read.revision, read.crops, read.xyxy.tolist()) == (1, tracklet(3).crops, tracklet(3).xyxy.tolist())


def test_the_same_again_replaces_what_that_space_held(gallery: Gallery) -> None:
    gallery.upsert([tracklet(4)])
    gallery.add_embeddings([of_the_new_model(4, seed=1)])
    gallery.add_embeddings([of_the_new_model(4, seed=2)])
    assert gallery.statistics().by_modality["body"] == {"body@1": 1, "body@2": 1}
    (hit,) = gallery.search(Embedding("body", "body@2", vector(2, 48)), Filter(), 5)
    assert hit.similarity == pytest.approx(1.0, abs=1e-3)


def test_vectors_for_another_revision_or_for_nobody_are_left_out(gallery: Gallery) -> None:
    gallery.upsert([tracklet(5, revision=2)])
    assert gallery.add_embeddings([of_the_new_model(5, revision=1), of_the_new_model(6)]) == 0
    assert "body@2" not in gallery.statistics().by_modality["body"]


def test_a_tracklet_in_which_the_new_model_saw_nothing_is_marked_as_looked_at(gallery: Gallery) -> None:
    gallery.upsert([tracklet(8)])
    gallery.add_embeddings([Reembedding("tracklet-8", 1, "face@2")])
    (read,) = gallery.scan(Filter())
    assert read.model_versions == ("detector@1", "face@2")


def test_reembedded_tracklets_are_deleted_whole(gallery: Gallery) -> None:
    gallery.upsert([tracklet(number) for number in range(40)])
    gallery.add_embeddings([of_the_new_model(number) for number in range(40)])
    gallery.delete(["tracklet-9"])
    assert "tracklet-9" not in ids_of(gallery.search(Embedding("body", "body@2", vector(909, 48)), Filter(), 100))
    assert gallery.statistics().by_modality["body"] == {"body@1": 39, "body@2": 39}


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_without_a_gpu_asking_for_one_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="faiss-gpu with a GPU"):
        FaissGallery(tmp_path / "index", device="gpu")


@pytest.mark.skipif(not HAS_GPU, reason="no GPU: the index on one was not tried")
def test_the_index_on_a_gpu_answers_like_that_on_the_cpu(tmp_path: Path) -> None:
    with FaissGallery(tmp_path / "index", segment_size=20, coarse_from=10_000) as gallery:
        gallery.upsert([tracklet(number) for number in range(100)])
        wanted = gallery.search(Embedding("body", "body@1", vector(5000)), Filter(), 30)
    with FaissGallery(tmp_path / "index", read_only=True, device="gpu") as gallery:
        found = gallery.search(Embedding("body", "body@1", vector(5000)), Filter(), 30)
    assert ids_of(found) == ids_of(wanted)
    assert [hit.similarity for hit in found] == pytest.approx([hit.similarity for hit in wanted], abs=2e-3)
