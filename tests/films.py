"""Films of our own making, in the layouts of CSM and of the cast search challenge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from models.training.datasets.csmv import ACROSS, CsmFolder
from pipeline.evaluate.cast_search import OTHERS

LABELS = {"tt1": ["anna", "bert", OTHERS, "anna"], "tt2": ["carl", "carl", OTHERS]}
CAST = {"tt1": ["anna", "bert"], "tt2": ["carl", "anna"]}
ALL = ["anna", "bert", "carl"]


def write_csm(folder: Path, with_voice: bool = False, as_features: bool = False) -> CsmFolder:
    """Two films of our own making in CSM's layout: the face shows anna once of twice, her other tracklet wears the same."""
    (folder / "meta").mkdir(parents=True)
    info = {film: {"num_tracklet": len(labels), "pids": CAST[film], "labels": labels} for film, labels in LABELS.items()}
    (folder / "meta" / "test.json").write_text(json.dumps({"movie": list(LABELS), "info": info}))
    everybody = [label for labels in LABELS.values() for label in labels]
    across = [{"plabel": ALL.index(label) if label != OTHERS else -1, "pid": label} for label in everybody]
    (folder / "meta" / "across_test.json").write_text(json.dumps(across))
    for film, cast, labels, place in [
        *((film, CAST[film], LABELS[film], f"in/{film}") for film in LABELS),
        (ACROSS, ALL, everybody, ACROSS),
    ]:
        target = folder / ("feature" if as_features else "affinity") / "test" / place
        target.mkdir(parents=True)
        same = np.array([[0.9 if a == b else 0.1 for b in labels] for a in cast], np.float32)
        if film == "tt1":
            same[:, 3] = 0.1, 0.2  # anna from behind
        dressed = np.array([[0.9 if a == b != OTHERS else 0.05 for b in labels] for a in labels], np.float32)
        if as_features:
            names = [*ALL, OTHERS]
            vectors = {"cast": np.eye(4)[[names.index(a) for a in cast]], "tracklet": np.eye(4)[[names.index(a) for a in labels]]}
            for whose, own in vectors.items():
                np.save(target / f"{whose}_face_feat.npy", own)
            silent = vectors["tracklet"].copy()
            silent[0] = 0
            np.save(target / "tracklet_voice_feat.npy", silent)
            continue
        np.save(target / "face_mean_ct_affmat.npy", same)
        np.save(target / "body_mean_tt_affmat.npy", dressed)
        if with_voice:
            np.save(target / "voice_mean_tt_affmat.npy", np.where(np.eye(len(labels)) > 0, np.nan, dressed))
    return CsmFolder(folder)


def write_portraits(folder: Path, picture: Callable[[Path], None], **more: Any) -> Path:
    """A film in the challenge's layout."""
    (folder / "val" / "tt9").mkdir(parents=True)
    cast = [{"id": f"c{n}", "img": f"tt9/c{n}.jpg", "label": f"nm{n}"} for n in range(2)]
    candidates = [
        {"id": f"t{n}", "img": f"tt9/t{n}.jpg", "bbox": [2, 2, 30, 60], "label": label, **more}
        for n, label in enumerate(["nm0", "nm1", OTHERS])
    ]
    for each in (*cast, *candidates):
        picture(folder / "val" / str(each["img"]))
    (folder / "val.json").write_text(json.dumps({"tt9": {"cast": cast, "candidates": candidates}}))
    return folder
