"""What people wrote about the people of the research folder, and what follows from it: vocabulary and attributes."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.detector_retriever.words import OTHER_WORD, PADDING, Vocabulary
from models.training.regions import read_lines
from pipeline.search.description import FORBIDDEN, Description, Term, parse

Float32 = NDArray[np.float32]

MENTIONED_OFTEN, RARE_TERM, RARE_WORD = 0.3, 8, 2
NO_HEADS = ("hair colour", "hair tone")  # nearly everybody in the data has black hair: nothing to learn for other places
GROUPS = ("upper colour", "lower colour", "shoes colour", "bag colour", "hair colour", "upper tone", "lower tone", "shoes tone", "person")


@dataclass(frozen=True)
class Caption:
    """A description of a person; rows: the crops it was written for, () where that is not known."""

    person: str
    rows: tuple[int, ...]
    text: str
    is_human: bool

    def with_text(self, text: str) -> Caption:
        return replace(self, text=text)


def read_captions(data: Path, row_of: Mapping[str, int]) -> list[Caption]:
    """Human captions (captions.jsonl); model-written ones and their phrases where not doubtful (captions_written.jsonl)."""
    captions = []
    for line in read_lines(data / "captions.jsonl"):
        rows = tuple(row_of[name] for name in line["images"] if name in row_of) if line.get("exact_image", True) else ()
        captions.append(Caption(line["person"], rows, line["caption"], True))
    for line in read_lines(data / "captions_written.jsonl") if (data / "captions_written.jsonl").exists() else []:
        if not line["doubtful"]:
            captions += [Caption(line["person"], (), text, False) for text in [*line["captions"], ", ".join(line["phrases"])]]
    return captions


def part_of(text: str, random: np.random.Generator) -> str:
    """About half of the clauses of a description, so that short ones are learnt too; "" when there is only one."""
    clauses = [clause.strip() for clause in re.split(r"[.,;]| and | with ", text) if len(clause.split()) > 1]
    if len(clauses) < 2:
        return ""
    kept = sorted(random.permutation(len(clauses))[: random.integers(1, max(2, len(clauses) // 2 + 1))])
    return ", ".join(clauses[position] for position in kept)


def vocabulary_of(descriptions: Sequence[Description]) -> Vocabulary:
    """Words used at least RARE_WORD times, none that would label people, and terms used at least RARE_TERM times."""
    words = Counter(word for description in descriptions for word in set(description.words))
    terms = Counter(term for description in descriptions for term in description.terms())
    kept = sorted(word for word, count in words.items() if count >= RARE_WORD and word not in FORBIDDEN)
    known = {"<padding>": PADDING, "<other>": OTHER_WORD, **{word: index + 2 for index, word in enumerate(kept)}}
    return Vocabulary(known, {term: index for index, term in enumerate(sorted(t for t, count in terms.items() if count >= RARE_TERM))})


def attribute_targets(captions: Sequence[Caption], terms: Sequence[Term] | None = None) -> tuple[list[Term], dict[str, Float32]]:
    """For every described person and term: 1 said often, 0 never said where it would have been, NaN not known.

    terms: those wanted; None: those said often of enough people.
    """
    said: dict[str, Counter[Term]] = defaultdict(Counter)
    counted: Counter[str] = Counter()
    for caption in captions:
        said[caption.person].update(term for term, sign in parse(caption.text).terms().items() if sign > 0)
        counted[caption.person] += 1
    people = Counter(term for name, counts in said.items() for term, count in counts.items() if count / counted[name] >= MENTIONED_OFTEN)
    if terms is None:
        terms = sorted(term for term, count in people.items() if count >= 2 * RARE_TERM and term[0] not in NO_HEADS)
    targets = {}
    for name, count in counted.items():
        row = np.full(len(terms), np.nan, np.float32)
        groups = {term[0] for term in said[name]}
        for index, term in enumerate(terms):
            if said[name][term] / count >= MENTIONED_OFTEN:
                row[index] = 1
            elif said[name][term] == 0 and (term[0] in groups if term[0] in GROUPS else count >= 3):
                row[index] = 0  # another colour was named there; or nobody of several writers saw it
        targets[name] = row
    return list(terms), targets
