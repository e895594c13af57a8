import json

import pandas as pd
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

from attractor_book import chapter
from attractor_lib.corruption import HideTokens
from attractor_lib.embedding import PatchEmbedding
from attractor_lib.learning import prediction_rule
from attractor_lib.model import AttractorNetwork


@pytest.fixture(scope="module")
def images():
    return torch.rand(12, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def loaded(images, monkeypatch):
    split = {"train": images[:8], "test": images[8:]}
    monkeypatch.setattr(chapter, "load_images", lambda name, which: split[which])
    return split


def test_mnist_as_tokens(loaded):
    embedding, tokens, test, pictures = chapter.mnist(torch.device("cpu"), n_train=5, n_test=3)
    assert tokens.shape == (5, 16, 50) and test.shape == (3, 16, 50)
    assert torch.equal(pictures, loaded["test"][:3])
    assert torch.equal(test, PatchEmbedding(28, 7).encode(pictures))


def test_validation_images_are_left_out_of_training_and_measured_on(loaded):
    embedding, tokens, test, pictures = chapter.mnist(
        torch.device("cpu"), n_validation=3, patch_size=14, n_frequencies=20
    )
    assert tokens.shape == (5, 4, 21) and torch.equal(pictures, loaded["train"][5:])
    with pytest.raises(ValueError, match="n_validation must be 0 or at least 2, got 1"):
        chapter.mnist(torch.device("cpu"), n_validation=1)


def test_colour_images_as_tokens(monkeypatch):
    split = {"train": torch.rand(8, 3, 8, 8), "test": torch.rand(3, 3, 8, 8)}
    monkeypatch.setattr(chapter, "load_images", lambda name, which: split[which])
    found = chapter.image_tokens("CIFAR10", torch.device("cpu"), patch_size=4)
    assert found.tokens.shape == (8, 4, 49) and torch.equal(found.images, split["test"])
    back = chapter.decoded(found.embedding, found.test)
    torch.testing.assert_close(back, split["test"], rtol=0, atol=1e-5)


def test_the_middle_of_images_as_tokens(monkeypatch):
    split = {"train": torch.rand(8, 9, 9), "test": torch.rand(3, 9, 9)}
    monkeypatch.setattr(chapter, "load_images", lambda name, which: split[which])
    found = chapter.image_tokens("MNIST", torch.device("cpu"), patch_size=2, side=4)
    assert torch.equal(found.images, split["test"][:, 2:6, 2:6]) and found.tokens.shape[1] == 4
    with pytest.raises(ValueError, match="side must be from 1 to 9, that of MNIST, got 10"):
        chapter.image_tokens("MNIST", torch.device("cpu"), patch_size=2, side=10)


def test_require_refuses_in_its_own_words():
    chapter.require(True, "nothing")
    with pytest.raises(ValueError, match="loads must hold 0.1"):
        chapter.require(0.1 in [0.2], "loads must hold 0.1, got [0.2]")


def test_random_states_are_unit_vectors_of_their_seed():
    x = chapter.random_states(7, 5, 11, seed=3)
    assert x.dtype == torch.float64 and (x.norm(dim=-1) - 1).abs().max() < 1e-14
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(x, chapter.random_states(7, 5, 11, seed=generator))
    assert not torch.equal(x, chapter.random_states(7, 5, 11, seed=generator))


def test_the_closed_form_of_a_random_network_equals_autograd():
    network = chapter.randomised(AttractorNetwork(5, 11, 3, beta=2.0), 0.5, seed=0)
    assert network.bias.dtype == torch.float64 and 0.3 < network.bias.std() < 0.7
    s, x = (chapter.random_states(7, 5, 11, seed=seed) for seed in (0, 1))
    exact = chapter.autograd(network, lambda: (network.field(s) - x).square().sum() / 2 / len(s))
    assert not network.bias.requires_grad
    closed = prediction_rule(network, s, x)[1]
    assert chapter.largest_difference(closed, exact) < 1e-10
    exact["bias"][0, 0] += 1
    assert chapter.largest_difference(closed, exact) == pytest.approx(1)
    with pytest.raises(ValueError, match="the same names"):
        chapter.largest_difference(closed, {})


def test_own_derivatives_are_those_of_each_site_s_energy():
    network = chapter.randomised(AttractorNetwork(5, 11, 3, beta=2.0, gamma=0.3), 0.5, seed=0)
    x = chapter.random_states(7, 5, 11, seed=0)
    expected = -network.field(x) - network.gamma * x
    assert (chapter.own_derivatives(network.local_energies, x) - expected).abs().max() < 1e-10


def test_decodes_any_leading_axes(images):
    embedding = PatchEmbedding(28, 7)
    tokens = embedding.encode(images).unflatten(0, (2, 3, 2))
    back = chapter.decoded(embedding, tokens)
    assert back.shape == (2, 3, 2, 28, 28) and (back.flatten(0, 2) - images).abs().max() < 1e-5


def test_errors_in_time_are_rows_of_each_model_and_step(images):
    embedding = PatchEmbedding(28, 7)
    tokens, fill = embedding.encode(images), embedding.encode(torch.zeros(1, 28, 28))[0]
    models = {"knows": lambda x: tokens, "stays": lambda x: x}
    given = tokens, HideTokens(4, fill), embedding, 3
    rows = chapter.errors_in_time(models, *given, k=4)
    assert [(row["model"], row["t"]) for row in rows] == [(m, t) for m in models for t in (1, 2, 3)]
    assert list(rows[0]) == ["model", "k", "t", "error"] and rows[0]["k"] == 4
    assert rows[0]["error"] < 1e-6
    for row in rows[3:]:  # the mean square of the pixels that are hidden, as the fill is black
        assert row["error"] == pytest.approx(images.square().mean().item(), rel=0.2)


def test_texts_of_tables_and_controls():
    assert chapter.numbered("abc") == ["1 of 3", "2 of 3", "3 of 3"]
    assert chapter.mean_and_deviation([1.0, 2.0, 3.0]) == "2.0000 ± 1.0000"
    assert chapter.mean_and_deviation([1.0], digits=2) == "1.00"
    frame = pd.DataFrame({"k": [1, 1, 2], "error": [0.1, 0.3, 0.2]})
    table = frame.pivot_table(index="k", values="error", aggfunc=chapter.mean_and_deviation)
    assert table["error"].tolist() == ["0.2000 ± 0.1414", "0.2000"]


def test_the_closing_table_names_what_made_each_run():
    names = ["file", "date", "device", "threads", "torch", "python", "seed", "seconds"]
    table = chapter.provenance_table(pd.DataFrame([range(8)], columns=names), "seed")
    assert list(table) == ["file", "date", "device", "threads", "torch", "seed", "seconds"]


def test_a_chapter_s_results_are_stored_with_its_parameters(tmp_path):
    file = tmp_path / "results.json"
    shell = InteractiveShell()
    for cell in (
        'device = "auto"  # where; one of auto, cpu\nseed = 0  # of all; at least 0\n'
        'ks = [1, 2]  # some; at least 0\nonly = ""  # models; any text\n'
        'results_file = ""  # JSON file; any text',
        f'# Parameters\nseed = 3\nresults_file = "{file}"\n',
        "import time\nfrom attractor_book.chapter import save_chapter\n"
        'save_chapter("", [], 0.0)\nsave_chapter(results_file, [{"k": 1}], time.perf_counter())',
    ):
        shell.run_cell(cell, store_history=True).raise_error()
    record = json.loads(file.read_text())
    parameters = record["provenance"]["parameters"]
    assert parameters["device"] in ("cpu", "cuda") and list(parameters)[1:] == ["seed", "ks"]
    assert parameters["seed"] == 3 and parameters["ks"] == [1, 2] and record["rows"] == [{"k": 1}]
