import math

import pytest
import torch
import torch._dynamo  # noqa: F401  torch.optim imports it lazily, which must not happen while a test guards autograd
from conftest import random_states

from attractor_lib import trainer
from attractor_lib.baselines import BareAttention, TransformerBlock, backpropagation
from attractor_lib.corruption import HideTokens, mean_token, no_corruption
from attractor_lib.learning import energy_rule, prediction_rule
from attractor_lib.model import AttractorNetwork
from attractor_lib.trainer import TrainingConfig, select_device, train

CONFIG = TrainingConfig(epochs=4, batch_size=32, learning_rate=0.02)


@pytest.fixture
def tokens():
    """Examples that have something to learn: every site is a fixed rotation of one hidden direction."""
    generator = torch.Generator().manual_seed(0)
    rotations = torch.linalg.qr(torch.randn(5, 7, 7, generator=generator)).Q
    return torch.einsum("iab,mb->mia", rotations, random_states(320, 7, seed=1).float())


def network(**form):
    return AttractorNetwork(5, 7, **{"n_heads": 2, "beta": 2.0, **form})


def hide(tokens):
    return HideTokens(2, mean_token(tokens))


@pytest.mark.parametrize("rank", [None, 3])
def test_trains_without_any_call_of_autograd(tokens, monkeypatch, rank):
    def forbidden(*args, **kwargs):
        raise AssertionError("autograd was used")

    monkeypatch.setattr(torch.Tensor, "backward", forbidden)
    monkeypatch.setattr(torch.autograd, "backward", forbidden)
    monkeypatch.setattr(torch.autograd, "grad", forbidden)
    model = network(rank=rank)
    history = train(model, prediction_rule, tokens, hide(tokens), CONFIG, report=None)
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert not any(p.requires_grad for p in model.parameters())
    with pytest.raises(AssertionError, match="autograd was used"):  # the guard itself works
        train(BareAttention(5, 7, width=16), backpropagation, tokens, hide(tokens), CONFIG, report=None)


@pytest.mark.parametrize("model", [BareAttention, TransformerBlock])
def test_baselines_learn_from_the_same_loop(tokens, model):
    history = train(model(5, 7, width=16), backpropagation, tokens, hide(tokens), CONFIG, report=None)
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]


def test_backpropagation_has_the_loss_of_the_prediction_rule(tokens):
    """The attractor network itself as the model: the baselines' rule must give the closed form's loss and gradients."""
    model = network().double()
    state, sites = hide(tokens.double())(tokens.double(), torch.Generator().manual_seed(0))
    closed = prediction_rule(model, state, tokens.double(), sites)
    model.requires_grad_(True)
    model.forward = model.field
    loss, gradients = backpropagation(model, state, tokens.double(), sites)
    torch.testing.assert_close(closed[0], loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(closed[1][name], gradient, atol=1e-10, rtol=0)


@pytest.mark.parametrize("make, rule", [(network, prediction_rule), (lambda: network(rank=3), prediction_rule),
                                        (lambda: TransformerBlock(5, 7, width=16), backpropagation)])
def test_a_resumed_run_is_bit_identical(tokens, tmp_path, make, rule):
    whole, parts = make(), make()
    history = train(whole, rule, tokens, hide(tokens), CONFIG, report=None)

    class Stop(Exception):
        pass

    def stop_after_two(line, lines=[]):
        lines.append(line)
        if len(lines) == 2:
            raise Stop

    with pytest.raises(Stop):
        train(parts, rule, tokens, hide(tokens), CONFIG, tmp_path / "c.pt", stop_after_two)
    fresh = make()
    resumed = train(fresh, rule, tokens, hide(tokens), CONFIG, tmp_path / "c.pt", report=None)
    assert [e["loss"] for e in resumed] == [e["loss"] for e in history]
    for name, p in whole.state_dict().items():
        assert torch.equal(p, fresh.state_dict()[name])
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_a_full_disk_leaves_the_previous_checkpoint(tokens, tmp_path, monkeypatch):
    path, save = tmp_path / "c.pt", torch.save
    calls = []

    def full_disk(record, file):
        calls.append(file)
        if len(calls) == 2:
            file.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(record, file)

    monkeypatch.setattr(trainer.torch, "save", full_disk)
    with pytest.raises(OSError, match="could not be written, the previous one stands: .*No space left"):
        train(network(), prediction_rule, tokens, hide(tokens), CONFIG, path, report=None)
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"] and len(torch.load(path)["history"]) == 1


def test_refuses_a_checkpoint_that_is_not_its_own(tokens, tmp_path):
    path = tmp_path / "c.pt"
    train(network(), prediction_rule, tokens, hide(tokens), CONFIG, path, report=None)
    other = TrainingConfig(epochs=4, batch_size=32, learning_rate=0.01)
    with pytest.raises(ValueError, match="belongs to another run .learning_rate: 0.02 there, 0.01 here"):
        train(network(), prediction_rule, tokens, hide(tokens), other, path, report=None)
    for other in (network(n_heads=3), network(beta=50.0)):
        with pytest.raises(ValueError, match="belongs to another run .model: "):
            train(other, prediction_rule, tokens, hide(tokens), CONFIG, path, report=None)
    with pytest.raises(ValueError, match="belongs to another run .corruption: .*n_hidden=2.* there, .*n_hidden=3.* here"):
        train(network(), prediction_rule, tokens, HideTokens(3, mean_token(tokens)), CONFIG, path, report=None)
    with pytest.raises(ValueError, match="belongs to another run .examples: 320 there, 300 here"):
        train(network(), prediction_rule, tokens[:300], hide(tokens), CONFIG, path, report=None)
    torch.save({"weights": 1}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="other.pt is not a readable checkpoint"):
        train(network(), prediction_rule, tokens, hide(tokens), CONFIG, tmp_path / "other.pt", report=None)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        train(network(), prediction_rule, tokens, hide(tokens), CONFIG, path, report=None)


def test_the_energy_rule_keeps_the_norm_of_every_coupling(tokens):
    model = network()
    config = TrainingConfig(epochs=2, batch_size=32, coupling_norm=3.0, frozen=("bias",))
    history = train(model, lambda net, state, target, sites: energy_rule(net, state), tokens, no_corruption, config, report=None)
    torch.testing.assert_close(model.couplings.norm(dim=(-2, -1)), torch.full((2, 5, 5), 3.0))
    assert history[-1]["loss"] < history[0]["loss"] and not model.bias.any()


def test_seeds_decide_and_the_global_generator_does_not(tokens):
    def run(seed):
        torch.manual_seed(torch.seed())
        model = network()
        train(model, prediction_rule, tokens, hide(tokens), TrainingConfig(epochs=1, batch_size=32, seed=seed), report=None)
        return model.couplings
    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))


def test_the_learning_rate_follows_a_cosine_to_zero(tokens):
    rates = [record["learning_rate"] for record in train(network(), prediction_rule, tokens, hide(tokens), CONFIG, report=None)]
    expected = [0.02 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in (1, 2, 3, 4)]
    assert rates == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["Adam", "SGD", "RMSprop"])
def test_gradients_and_parameters_may_lie_in_memory_as_they_like(tokens, name):
    """torch's fused steps are silently wrong where the two lie differently."""
    def transposed(model, *example):
        loss, gradients = prediction_rule(model, *example)
        return loss, {key: g.mT.contiguous().mT if g.ndim > 2 else g for key, g in gradients.items()}

    trained = []
    for rule, lie in ((prediction_rule, lambda p: p), (transposed, lambda p: p), (prediction_rule, lambda p: p.mT.contiguous().mT)):
        model = network()
        model._parameters["couplings"].data = lie(model.couplings.data)
        train(model, rule, tokens, hide(tokens), TrainingConfig(epochs=1, batch_size=32, learning_rate=0.01, optimizer=name),
              report=None)
        trained.append(model.couplings)
    torch.testing.assert_close(trained[1], trained[0], rtol=0, atol=0)
    torch.testing.assert_close(trained[2], trained[0], rtol=1e-3, atol=1e-4)


def test_reports_a_line_an_epoch(tokens):
    lines = []
    train(network(), prediction_rule, tokens, hide(tokens), CONFIG, report=lines.append)
    assert len(lines) == 4 and lines[0].startswith("epoch   1/4  loss ")


def test_a_diverging_loss_is_an_error(tokens):
    def diverges(model, state, target, sites):
        loss, gradients = prediction_rule(model, state, target, sites)
        return loss * math.nan, gradients
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1: lower learning_rate"):
        train(network(), diverges, tokens, hide(tokens), CONFIG, report=None)


@pytest.mark.parametrize("make, message", [
    (lambda: TrainingConfig(epochs=0), "epochs and batch_size must be at least 1, got 0 and 250"),
    (lambda: TrainingConfig(learning_rate=-1.0), "learning_rate must be a finite number > 0, got -1.0"),
    (lambda: TrainingConfig(optimizer="Sgd"), "optimizer must name a class of torch.optim, got 'Sgd'"),
])
def test_refuses_a_bad_configuration(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_refuses_too_few_examples_other_shapes_and_unknown_parameters(tokens):
    with pytest.raises(ValueError, match=r"tokens must have shape \(n, N, d\), got \(320, 5\)"):
        train(network(), prediction_rule, tokens[..., 0], hide(tokens), CONFIG)
    with pytest.raises(ValueError, match=r"every parameter that is trained; \['bias'\] are missing"):
        train(network(), lambda *given: (torch.zeros(()), {"couplings": network().couplings}), tokens, hide(tokens), CONFIG)
    with pytest.raises(ValueError, match="at least one batch of 32 examples, got 20"):
        train(network(), prediction_rule, tokens[:20], hide(tokens), CONFIG)
    with pytest.raises(ValueError, match=r"frozen must name parameters among \['bias', 'couplings'\], got \['J'\]"):
        train(network(), prediction_rule, tokens, hide(tokens), TrainingConfig(batch_size=32, frozen=("J",)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_asked_for_and_absent_is_a_clear_error():
    assert select_device("auto") == torch.device("cpu")
    with pytest.raises(RuntimeError, match="'cuda' was asked for, but torch .* sees no CUDA device"):
        select_device("cuda")
