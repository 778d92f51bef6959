"""The torch side of the detector-retriever: the ported base, the ID-Net, words, heads and losses, and their exported twins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra: pip install 'sightline[torch]'")
pytest.importorskip("torchvision", reason="training needs the extra: pip install 'sightline[torch]'")

import onnxruntime  # noqa: E402
from torch.nn import functional  # noqa: E402

from models.detector_retriever.base import Base  # noqa: E402
from models.detector_retriever.conditioning import (  # noqa: E402
    CELL,
    PHRASES,
    Conditioning,
    centre_cells,
    regions_of_grid,
)
from models.detector_retriever.export import (  # noqa: E402
    attribute_arrays,
    conditioning_arrays,
    export_cells,
    export_people,
    word_arrays,
)
from models.detector_retriever.losses import Cmpc, Oim, cmpm, contrast, cross_scale, part_similarity, same_person  # noqa: E402
from models.detector_retriever.network import COLOURS, IdNet, Regions, Said, WordNet, regions_of  # noqa: E402
from models.detector_retriever.runtime import Conditioned, Network, with_maps  # noqa: E402
from models.detector_retriever.runtime import part_similarity as plain_part_similarity  # noqa: E402
from models.detector_retriever.torch_runtime import TorchNetwork  # noqa: E402
from models.detector_retriever.words import WEIGHTS, Vocabulary, WordReader  # noqa: E402
from pipeline.search.description import parse  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def regions(people: int = 4) -> Regions:
    return Regions(torch.randn(people, 64, 24, 8), torch.randn(people, 128, 24, 8), torch.randn(people, 3, 48, 16))


def vocabulary() -> Vocabulary:
    words = ["<padding>", "<other>", "red", "jacket", "blue", "jeans", "man", "backpack", "white"]
    terms = [("upper colour", "red"), ("lower colour", "blue"), ("carrying", "backpack")]
    return Vocabulary({word: place for place, word in enumerate(words)}, {term: place for place, term in enumerate(terms)})


def said(*texts: str) -> Said:
    numbers = [vocabulary().numbers(parse(text)) for text in texts]
    return Said(*(torch.from_numpy(np.stack(column)) for column in zip(*numbers, strict=True)))


def test_the_ported_base_gives_what_its_onnx_form_gives(weights: Callable[[str], Path]) -> None:
    path = weights("nanodet")
    base, session = Base.from_onnx(path), onnxruntime.InferenceSession(with_maps(path))
    picture = torch.randn(2, 3, 96, 160)
    with torch.no_grad():
        maps = base(picture)
    outputs = [output.name for output in session.get_outputs()]
    made = dict(zip(outputs, session.run(outputs, {session.get_inputs()[0].name: picture.numpy()}), strict=True))
    for name in ("fine", "middle", "coarse"):
        np.testing.assert_allclose(made[name], getattr(maps, name).numpy(), atol=1e-3)
    ported = [*maps.scores, *maps.sides]
    for name in outputs:
        if made[name].ndim == 3:
            twin = next(each for each in ported if tuple(each.shape) == made[name].shape)
            np.testing.assert_allclose(made[name], twin.numpy(), atol=1e-3)


def test_exported_id_net_gives_the_vectors_of_the_torch_one(tmp_path: Path) -> None:
    net = IdNet(5).eval()
    net.norm.running_mean.normal_()
    fine, middle, pictures = torch.randn(2, 64, 24, 32), torch.randn(2, 128, 12, 16), torch.randn(2, 3, 96, 128)
    boxes = torch.tensor([[0, 10.0, 5.0, 40.0, 90.0], [1, 60.0, 20.0, 100.0, 95.0]])
    with torch.no_grad():
        looks = net(regions_of(fine, middle, pictures, boxes))
    export_people(net, tmp_path / "people.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "people.onnx")
    given = {"fine": fine, "middle": middle, "pictures": pictures, "boxes": boxes[:, 1:].contiguous(), "picture": boxes[:, 0].long()}
    made = session.run(["body", "text", "parts"], {name: value.numpy() for name, value in given.items()})
    for found, wanted in zip(made, (looks.body, looks.text, looks.parts), strict=True):
        cosine = functional.cosine_similarity(torch.from_numpy(found).flatten(1), wanted.flatten(1))
        assert float(cosine.min()) > 0.9999  # weights are float16 in the file


def test_words_read_without_torch_are_those_of_torch() -> None:
    net = WordNet(len(vocabulary().words), len(vocabulary().terms)).eval()
    text = "A man in a red jacket, blue jeans with a white backpack"
    with torch.no_grad():
        heard = net(said(text))
    arrays = word_arrays(net, vocabulary())
    read = WordReader(arrays).read(vocabulary().numbers(parse(text)))
    whole = functional.normalize(heard.sentence, dim=1)[0].numpy()
    np.testing.assert_allclose(read.whole, whole, atol=2e-3)
    np.testing.assert_allclose(read.clauses[read.is_clause], heard.clauses[0][heard.is_clause[0]].numpy(), atol=5e-3)


def test_conditioned_heads_without_torch_score_as_in_torch(tmp_path: Path) -> None:
    net, words = Conditioning(3).eval(), WordNet(len(vocabulary().words), len(vocabulary().terms)).eval()
    coarse, middle = torch.randn(1, 256, 6, 8), torch.randn(1, 128, 12, 16)
    texts = ("red jacket, blue jeans", "a man with a white backpack")
    with torch.no_grad():
        heard = words(said(*texts))
        cells = net.cells(coarse, middle)[0]
        asked = net.asked(heard)
        weight = net.attention(cells, asked)
        places = torch.tensor([3, 17, 40])
        confidence, gated = net.scores(cells[places], weight[:, :, places], asked)
    export_cells(net, tmp_path / "cells.onnx")
    grid = onnxruntime.InferenceSession(tmp_path / "cells.onnx").run(None, {"coarse": coarse.numpy(), "middle": middle.numpy()})[0]
    flat = grid[0].reshape(CELL, -1).T
    np.testing.assert_allclose(flat, cells.numpy(), atol=2e-2)
    plain = Conditioned({**conditioning_arrays(net), "summands": np.array([1, 0, 1, 1])})
    reader = WordReader(word_arrays(words, vocabulary()))
    ready = plain.ask([reader.read(vocabulary().numbers(parse(text))) for text in texts])
    found, found_gated = plain.scores(flat[places.numpy()], plain.attention(flat, ready)[:, :, places.numpy()], ready)
    np.testing.assert_allclose(found, confidence.numpy(), atol=2e-2)
    np.testing.assert_allclose(found_gated, gated.numpy(), atol=2e-2)


def test_attention_of_a_phrase_is_spread_over_the_whole_frame() -> None:
    net = Conditioning(3)
    asked = net.asked(WordNet(9, 3).eval()(said("red jacket, blue jeans")))
    weight = net.attention(torch.randn(48, CELL), asked)
    assert weight.shape == (1, PHRASES, 48)
    assert weight[0, :2].mean(1).tolist() == pytest.approx([1, 1], abs=1e-4)  # two sub-sentences
    assert float(weight[0, 2:].detach().abs().max()) == 0


def test_part_similarity_is_the_same_with_and_without_torch() -> None:
    parts, texts, is_text = torch.randn(3, 6, 16), torch.randn(2, 5, 16), torch.tensor([[True] * 5, [True, True, False, False, False]])
    forth, back = part_similarity(parts, texts, is_text)
    unit = functional.normalize(parts, dim=2).numpy()
    own = [functional.normalize(texts[row][is_text[row]], dim=1).numpy() for row in range(2)]
    np.testing.assert_allclose(plain_part_similarity(unit, own), (forth + back).numpy(), atol=1e-5)


def test_part_similarity_equals_attended_vectors_written_out() -> None:
    """SDRPN eq. 3 and 4 by hand: the attended vector of every part, then the cosine."""
    parts, texts = functional.normalize(torch.randn(1, 4, 8), dim=2), functional.normalize(torch.randn(1, 3, 8), dim=2)
    attended = (9.0 * parts[0] @ texts[0].T).softmax(1) @ texts[0]
    by_hand = functional.cosine_similarity(attended, parts[0], dim=1).mean()
    forth, _ = part_similarity(parts, texts, torch.ones(1, 3, dtype=torch.bool))
    assert float(forth[0, 0]) == pytest.approx(float(by_hand), abs=1e-5)


def test_losses_are_lowest_when_looks_and_words_of_a_person_agree() -> None:
    person = torch.arange(6)
    match = same_person(person, person)
    words = functional.normalize(torch.randn(6, 32), dim=1)
    strangers = words.roll(1, 0)
    assert contrast(20 * words @ words.T, match) < contrast(20 * strangers @ words.T, match)
    assert cmpm(10 * words, 10 * words, match) < cmpm(10 * strangers, 10 * words, match)
    there = torch.ones(6, 4, dtype=torch.bool)
    texts = words[:, None].expand(6, 4, 32)
    assert cross_scale(texts, texts, there, match) < cross_scale(texts.roll(1, 0), texts, there, match)


def test_cmpc_and_oim_learn_to_name_people() -> None:
    looks, person = torch.nn.Parameter(torch.randn(8, 16)), torch.arange(8)
    cmpc, oim = Cmpc(8, 16), Oim(8, 16)
    optimiser = torch.optim.Adam([looks, *cmpc.parameters()], 0.05)
    losses = []
    for _ in range(40):
        loss = cmpc(looks, looks, person) + oim(functional.normalize(looks, dim=1), person)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_a_colour_histogram_starts_as_the_nearest_usual_colour(weights: Callable[[str], Path]) -> None:
    net, colours = IdNet(2), torch.randn(COLOURS, 3)
    net.start_from(Base.from_onnx(weights("nanodet")), colours)
    share = net.colours(colours[7][None, :, None, None]).softmax(1)[0, :, 0, 0]
    assert int(share.argmax()) == 7


def test_attributes_follow_from_the_text_aligned_vector() -> None:
    net = IdNet(3).eval()
    with torch.no_grad():
        looks = net(regions())
    arrays = attribute_arrays(net, [("upper colour", "red"), ("lower colour", "blue"), ("carrying", "bag")])
    unit = functional.normalize(looks.text, dim=1).numpy()
    made = unit @ arrays["attribute_weight"].astype(np.float32) + arrays["attribute_bias"].astype(np.float32)
    np.testing.assert_allclose(made, looks.attributes.numpy(), atol=1e-2)


def test_the_cell_that_holds_the_centre_is_responsible() -> None:
    boxes = torch.tensor([[0.0, 0.0, 20.0, 20.0], [100.0, 40.0, 140.0, 120.0], [500.0, 500.0, 900.0, 900.0]])
    assert centre_cells(boxes, rows=6, columns=10).tolist() == [0, 5 * 10 + 7, 5 * 10 + 9]


def test_nine_regions_cover_the_grid() -> None:
    region = regions_of_grid(6, 9).reshape(6, 9)
    assert region[0, 0] == 0
    assert region[5, 8] == 8
    assert sorted(set(region.flatten().tolist())) == list(range(9))


def test_the_shipped_weights_say_the_same_on_torch_and_on_onnxruntime(weights: Callable[[str], Path]) -> None:
    plain, torched = Network(weights("nanodet"), WEIGHTS, 1), TorchNetwork(weights("nanodet"), WEIGHTS, "cpu", half=False)
    pictures = torch.randn(2, 3, 96, 128).numpy()
    boxes, picture = np.array([[4, 2, 40, 90], [60, 10, 100, 94]], np.float32), np.array([0, 1])
    _, maps = plain.maps(pictures)
    _, torch_maps = torched.maps(pictures)
    looks, torch_looks = plain.looks(maps, pictures, boxes, picture), torched.looks(torch_maps, pictures, boxes, picture)
    assert (looks.body * torch_looks.body).sum(1).min() > 0.999
    assert (looks.text * torch_looks.text).sum(1).min() > 0.999
    np.testing.assert_allclose(plain.grid(maps), torched.grid(torch_maps), atol=0.05)
