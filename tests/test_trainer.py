"""The loop: what it computes, that it ends where an uninterrupted run ends, what it refuses."""

import functools
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo  # noqa: F401  torch.optim imports it lazily, which must not happen while a test guards autograd
from conftest import random_states

from attractor_lib import checkpoint
from attractor_lib.baselines import BareAttention, TransformerBlock, backpropagation
from attractor_lib.cascade import AfterStages, Cascade
from attractor_lib.checkpoint import state_of
from attractor_lib.corruption import AddNoise, HideTokens, mean_token, no_corruption
from attractor_lib.embedding import PatchEmbedding
from attractor_lib.learning import energy_rule, prediction_rule
from attractor_lib.learning.contrastive import ContrastiveDivergence, GibbsSampler, own_update
from attractor_lib.learning.own_trajectory import OwnTrajectory, PersistentTrajectories
from attractor_lib.model import AttractorNetwork
from attractor_lib.trainer import (
    TrainingConfig,
    make_optimizer,
    make_schedule,
    select_device,
    train,
)

CONFIG = TrainingConfig(epochs=4, batch_size=32, learning_rate=0.02)


def examples():
    """They have something to learn: every site is a fixed rotation of one hidden direction."""
    rotations = torch.linalg.qr(torch.randn(5, 7, 7, generator=draw(0))).Q
    return torch.einsum("iab,mb->mia", rotations, random_states(320, 7, seed=1).float())


@pytest.fixture
def tokens():
    return examples()


def draw(seed):
    return torch.Generator().manual_seed(seed)


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
        train(
            BareAttention(5, 7, width=16),
            backpropagation,
            tokens,
            hide(tokens),
            CONFIG,
            report=None,
        )


@pytest.mark.parametrize("model", [BareAttention, TransformerBlock])
def test_baselines_learn_from_the_same_loop(tokens, model):
    history = train(
        model(5, 7, width=16), backpropagation, tokens, hide(tokens), CONFIG, report=None
    )
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]


def test_backpropagation_has_the_loss_of_the_prediction_rule(tokens):
    """The attractor network itself as the model: the baselines' rule must give the closed form's
    loss and gradients.
    """
    model = network().double()
    state, sites = hide(tokens.double())(tokens.double(), torch.Generator().manual_seed(0))
    closed = prediction_rule(model, state, tokens.double(), sites)
    model.requires_grad_(True)
    model.forward = model.field
    loss, gradients = backpropagation(model, state, tokens.double(), sites)
    torch.testing.assert_close(closed[0], loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(closed[1][name], gradient, atol=1e-10, rtol=0)


def cases():
    """Trainings that carry something from step to step, by name: (model, rule, corruption), each
    made afresh.
    """

    def with_rule(rule, corrupt=no_corruption, **form):
        return network(**form), rule, corrupt

    def on_its_way(hide):
        model = network()
        return model, prediction_rule, OwnTrajectory(model.update, hide, max_steps=3)

    def kept(rule):
        return PersistentTrajectories(rule, n_steps=1, renewal=0.3, n_batches=3, seed=5)

    def hide_two():
        return hide(examples())

    one = {"n_heads": 1}
    return {
        "full rank": lambda: with_rule(prediction_rule, hide_two()),
        "low rank": lambda: with_rule(prediction_rule, hide_two(), rank=3),
        "baseline": lambda: (TransformerBlock(5, 7, width=16), backpropagation, hide_two()),
        "own updates": lambda: with_rule(ContrastiveDivergence(own_update, 2)),
        "Gibbs": lambda: with_rule(ContrastiveDivergence(GibbsSampler(draw(3)), 1), **one),
        "chains": lambda: with_rule(
            ContrastiveDivergence(GibbsSampler(draw(3)), 1, random_states(6, 5, 7).float()), **one
        ),
        "kept": lambda: with_rule(kept(prediction_rule), hide_two()),
        "kept, Gibbs": lambda: with_rule(
            kept(ContrastiveDivergence(GibbsSampler(draw(3)), 1)), hide_two(), **one
        ),
        "own trajectory": lambda: on_its_way(hide_two()),
    }


def loss_of_bias(model, step):
    return {"bias": model.state_dict()["bias"].sum()} if hasattr(model, "bias") else None


def kill_each_in_the_middle(folder):
    """Each case in a process that kills itself in its third epoch, half a step into the network's
    own state.
    """
    for name, make in cases().items():
        if not (child := os.fork()):
            model, rule, corrupt = make()

            def observe(model, step):
                if step == 23:
                    os.kill(os.getpid(), signal.SIGKILL)
                return loss_of_bias(model, step)

            path = Path(folder) / f"{name}.pt"
            train(model, rule, examples(), corrupt, CONFIG, path, report=None, observe=observe)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, name


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder of checkpoints. The processes are forked from one that has imported torch and run
    nothing with it: its threads would be missing in them.
    """
    folder = tmp_path_factory.mktemp("killed")
    script = f"import test_trainer; test_trainer.kill_each_in_the_middle({str(folder)!r})"
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=300)
    return folder


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def without_seconds(history):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]


@pytest.mark.parametrize("name", cases())
def test_a_killed_and_resumed_run_is_bit_identical(killed, tmp_path, name):
    path, ends = Path(shutil.copy(killed / f"{name}.pt", tmp_path)), []
    assert len(torch.load(path)["history"]) == 2
    for place in (None, path):
        model, rule, corrupt = cases()[name]()
        history = train(
            model, rule, examples(), corrupt, CONFIG, place, report=None, observe=loss_of_bias
        )
        states = {"model": model.state_dict(), "rule": state_of(rule), "corrupt": state_of(corrupt)}
        ends.append({**states, "history": without_seconds(history)})
    assert same(*ends) and [path] == list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["Gibbs", "chains", "kept", "kept, Gibbs"])
def test_what_a_rule_carries_is_what_makes_it_so(killed, tmp_path, monkeypatch, name):
    """Without it the same checkpoint leads elsewhere."""
    ends = []
    for forget in (False, True):
        path = shutil.copy(killed / f"{name}.pt", tmp_path)
        model, rule, corrupt = cases()[name]()
        if forget:
            monkeypatch.setattr(type(rule), "load_state_dict", lambda self, state: None)
        train(model, rule, examples(), corrupt, CONFIG, path, report=None)
        ends.append(model.state_dict())
    assert not same(*ends)


def test_a_corruption_that_carries_something_has_it_saved_too(tokens, tmp_path):
    class EveryOther:
        """Hides tokens in every other batch."""

        def __init__(self):
            self.calls = 0

        def __repr__(self):
            return "EveryOther()"

        def __call__(self, tokens, generator):
            self.calls += 1
            return (hide(examples()) if self.calls % 2 else no_corruption)(tokens, generator)

        def state_dict(self):
            return {"calls": self.calls}

        def load_state_dict(self, state):
            self.calls = state["calls"]

    for wrap in (
        lambda c: c,
        lambda c: AfterStages(Cascade(), c),
        lambda c: OwnTrajectory(abs, c, 1, 0),
    ):
        path, config = tmp_path / "c.pt", TrainingConfig(epochs=1, batch_size=64)
        train(network(), prediction_rule, tokens, wrap(EveryOther()), config, path, report=None)
        resumed = EveryOther()
        train(network(), prediction_rule, tokens, wrap(resumed), config, path, report=None)
        assert resumed.calls == 5
        path.unlink()


def named():
    def nested(network, state, target, sites):
        return prediction_rule(network, state, target, sites)

    return nested


class Nameless:
    def __call__(self, *given):
        return prediction_rule(*given)


@pytest.mark.parametrize(
    "rule",
    [
        lambda *given: prediction_rule(*given),
        functools.partial(named(), sites=None),
        Nameless(),
        PersistentTrajectories(lambda *given: prediction_rule(*given)),
        PersistentTrajectories(Nameless()),
        ContrastiveDivergence(lambda network, x, clamped: x, 1),
    ],
)
def test_refuses_a_rule_without_a_name_where_there_is_a_checkpoint(tokens, tmp_path, rule):
    given = network(), rule, tokens, no_corruption, CONFIG
    with pytest.raises(ValueError, match="rule must have a name .* got .*: define it with def, or"):
        train(*given, tmp_path / "c.pt", report=None)
    assert not list(tmp_path.iterdir())


def test_refuses_a_corruption_without_a_name_where_there_is_a_checkpoint(tokens, tmp_path):
    given = (lambda *given: no_corruption(*given)), CONFIG
    with pytest.raises(ValueError, match="corrupt must have a name .* got <lambda>: define it"):
        train(network(), prediction_rule, tokens, *given, tmp_path / "c.pt", report=None)
    assert len(train(network(), prediction_rule, tokens, *given, report=None)) == 4


def test_names_are_those_that_another_process_finds_and_differ_where_the_rules_do():
    hide_one, noise = HideTokens(1, torch.ones(2, 3)), AddNoise(0, 0.1, PatchEmbedding(4, 2))
    parts = [
        named(),
        prediction_rule,
        ContrastiveDivergence(own_update, 1),
        ContrastiveDivergence(own_update, 2),
        ContrastiveDivergence(own_update, 1, torch.ones(4, 2, 3)),
        ContrastiveDivergence(GibbsSampler(draw(0)), 1),
        ContrastiveDivergence(GibbsSampler(draw(1)), 1),
        *(PersistentTrajectories(prediction_rule, n) for n in (1, 2)),
        *(PersistentTrajectories(ContrastiveDivergence(own_update, n)) for n in (1, 2)),
        *(OwnTrajectory(abs, corrupt, 2) for corrupt in (no_corruption, hide_one, noise)),
        *(OwnTrajectory(abs, no_corruption, n) for n in (1, 3)),
        *(AfterStages(c, hide_one) for c in (Cascade(), Cascade().add(torch.nn.Tanh()))),
    ]
    names = [checkpoint.lasting_name(part, "part") for part in parts]
    assert len(set(names)) == len(names) and names[0] == "nested"


def test_observe_sees_the_model_before_the_first_step_and_after_each(tokens):
    model, seen = network(), []

    def loss(model, step):
        seen.append((step, model.bias.clone()))
        return {"size": model.bias.norm(), "twice": 2 * step} if step % 10 == 0 else None

    history = train(model, prediction_rule, tokens, hide(tokens), CONFIG, report=None, observe=loss)
    assert [step for step, _ in seen] == list(range(41)) and not seen[0][1].any()
    assert torch.equal(seen[-1][1], model.bias) and not torch.equal(seen[-2][1], model.bias)
    rows = [[row["step"] for row in record["observed"]] for record in history]
    assert rows == [[0, 10], [20], [30], [40]]
    assert history[2]["observed"] == [
        {"step": 30, "size": seen[30][1].norm().item(), "twice": 60.0}
    ]
    plain = network()
    unobserved = train(plain, prediction_rule, tokens, hide(tokens), CONFIG, report=None)
    assert torch.equal(plain.bias, model.bias) and all("observed" not in r for r in unobserved)


def test_a_full_disk_leaves_the_previous_checkpoint(tokens, tmp_path, monkeypatch):
    path, save = tmp_path / "c.pt", torch.save
    calls = []

    def full_disk(record, file):
        calls.append(file)
        if len(calls) == 2:
            file.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(record, file)

    monkeypatch.setattr(checkpoint.torch, "save", full_disk)
    with pytest.raises(
        OSError, match="could not be written, the previous one stands: .*No space left"
    ):
        train(network(), prediction_rule, tokens, hide(tokens), CONFIG, path, report=None)
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"] and len(
        torch.load(path)["history"]
    ) == 1


def test_refuses_a_checkpoint_that_is_not_its_own(tokens, tmp_path):
    path = tmp_path / "c.pt"
    train(network(), prediction_rule, tokens, hide(tokens), CONFIG, path, report=None)
    other = TrainingConfig(epochs=4, batch_size=32, learning_rate=0.01)
    with pytest.raises(
        ValueError, match="belongs to another run .learning_rate: 0.02 there, 0.01 here"
    ):
        train(network(), prediction_rule, tokens, hide(tokens), other, path, report=None)
    for other in (network(n_heads=3), network(beta=50.0)):
        with pytest.raises(ValueError, match="belongs to another run .model: "):
            train(other, prediction_rule, tokens, hide(tokens), CONFIG, path, report=None)
    with pytest.raises(
        ValueError,
        match="belongs to another run .corruption: .*n_hidden=2.* there, .*n_hidden=3.* here",
    ):
        train(
            network(),
            prediction_rule,
            tokens,
            HideTokens(3, mean_token(tokens)),
            CONFIG,
            path,
            report=None,
        )
    untouched, other = network(), HideTokens(2, mean_token(tokens[:100]))
    with pytest.raises(ValueError, match="belongs to another run .corruption: .*fill="):
        train(untouched, prediction_rule, tokens, other, CONFIG, path, report=None)
    assert all(torch.equal(a, b) for a, b in zip(untouched.parameters(), network().parameters()))
    rounded = HideTokens(2, mean_token(tokens) * (1 + 1e-7))
    train(network(), prediction_rule, tokens, rounded, CONFIG, path, report=None)
    with pytest.raises(ValueError, match="belongs to another run .some of them: "):
        train(network(), prediction_rule, tokens.flip(0), hide(tokens), CONFIG, path, report=None)
    with pytest.raises(ValueError, match="belongs to another run .examples: 320 there, 300 here"):
        train(network(), prediction_rule, tokens[:300], hide(tokens), CONFIG, path, report=None)
    saved, other = torch.load(path), tmp_path / "other.pt"
    without = [{key: saved[key] for key in saved if key != left_out} for left_out in saved]
    for content in ({"weights": 1}, *without, {**saved, "parts": {}}, 1):
        torch.save(content, other)
        with pytest.raises(ValueError, match="other.pt is not a readable checkpoint"):
            train(network(), prediction_rule, tokens, hide(tokens), CONFIG, other, report=None)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        train(network(), prediction_rule, tokens, hide(tokens), CONFIG, path, report=None)


def test_a_checkpoint_that_cannot_be_written_or_fit_is_told_before_any_step(tmp_path, monkeypatch):
    saved = checkpoint.Checkpoint(tmp_path / "c.pt", {}, {"model": torch.nn.Linear(2, 3)})
    saved.save([])
    other = checkpoint.Checkpoint(tmp_path / "c.pt", {}, {"model": torch.nn.Linear(2, 4)})
    with pytest.raises(ValueError, match="belongs to another run: .*size mismatch"):
        other.load()
    with pytest.raises(ValueError, match="checkpoint must be a file, got the folder"):
        checkpoint.Checkpoint(tmp_path, {}, {}).load()
    monkeypatch.setattr(checkpoint.os, "access", lambda *given: False)
    with pytest.raises(OSError, match="no checkpoint can be written in "):
        checkpoint.Checkpoint(tmp_path / "new.pt", {}, {}).load()
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_the_refusal_shows_where_long_descriptions_differ(tmp_path):
    path, alike = tmp_path / "c.pt", "a" * 300
    checkpoint.Checkpoint(path, {"model": alike + "(beta=2)" + alike}, {}).save([])
    with pytest.raises(ValueError, match=r"\(beta=2\)a+\.\.\. there, \.\.\.a+\(beta=3\)") as raised:
        checkpoint.Checkpoint(path, {"model": alike + "(beta=3)" + alike}, {}).load()
    assert len(str(raised.value)) < 400
    with pytest.raises(ValueError, match=r"\(beta=2\)a+\.\.\. there, \.\.\.a+' here"):
        checkpoint.Checkpoint(path, {"model": alike}, {}).load()


@pytest.mark.parametrize(
    "method, message",
    [
        ("state_dict", "got state_dict without load_state_dict"),
        ("load_state_dict", "got load_state_dict without state_dict"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda rule: rule, PersistentTrajectories])
def test_refuses_a_rule_whose_state_goes_one_way_only(tokens, tmp_path, method, message, wrap):
    def one_way(*given):
        return prediction_rule(*given)

    setattr(one_way, method, lambda *state: {})
    given = network(), wrap(one_way), tokens, hide(tokens), TrainingConfig(epochs=1)
    with pytest.raises(ValueError, match=f"one_way must have both .* or neither .*, {message}"):
        train(*given, tmp_path / "c.pt", report=None)
    assert not list(tmp_path.iterdir()) and len(train(*given, report=None)) == 1


def test_the_energy_rule_keeps_the_norm_of_every_coupling(tokens):
    model = network()
    config = TrainingConfig(epochs=2, batch_size=32, coupling_norm=3.0, frozen=("bias",))
    history = train(model, energy_rule, tokens, no_corruption, config, report=None)
    torch.testing.assert_close(model.couplings.J.norm(dim=(-2, -1)), torch.full((2, 5, 5), 3.0))
    assert history[-1]["loss"] < history[0]["loss"] and not model.bias.any()


def test_seeds_decide_and_the_global_generator_does_not(tokens):
    def run(seed):
        torch.manual_seed(torch.seed())
        model = network()
        train(
            model,
            prediction_rule,
            tokens,
            hide(tokens),
            TrainingConfig(epochs=1, batch_size=32, seed=seed),
            report=None,
        )
        return model.couplings.J

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))


def test_the_learning_rate_follows_a_cosine_to_zero(tokens):
    rates = [
        record["learning_rate"]
        for record in train(network(), prediction_rule, tokens, hide(tokens), CONFIG, report=None)
    ]
    expected = [0.02 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in (1, 2, 3, 4)]
    assert rates == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["Adam", "SGD", "RMSprop"])
def test_gradients_and_parameters_may_lie_in_memory_as_they_like(tokens, name):
    """torch's fused steps are silently wrong where the two lie differently."""

    def transposed(model, *example):
        loss, gradients = prediction_rule(model, *example)
        return loss, {
            key: g.mT.contiguous().mT if g.ndim > 2 else g for key, g in gradients.items()
        }

    trained = []
    for rule, lie in (
        (prediction_rule, lambda p: p),
        (transposed, lambda p: p),
        (prediction_rule, lambda p: p.mT.contiguous().mT),
    ):
        model = network()
        model.couplings.J.data = lie(model.couplings.J.data)
        train(
            model,
            rule,
            tokens,
            hide(tokens),
            TrainingConfig(epochs=1, batch_size=32, learning_rate=0.01, optimizer=name),
            report=None,
        )
        trained.append(model.couplings.J)
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


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: TrainingConfig(epochs=0), "epochs must be a whole number >= 1, got 0"),
        (lambda: TrainingConfig(epochs=1.5), "epochs must be a whole number >= 1, got 1.5"),
        (lambda: TrainingConfig(batch_size=2.5), "batch_size must be a whole number >= 1, got 2.5"),
        (
            lambda: TrainingConfig(learning_rate=-1.0),
            "learning_rate must be a finite number > 0, got -1.0",
        ),
        (
            lambda: TrainingConfig(optimizer="Sgd"),
            "optimizer must name a class of torch.optim but LBFGS, got 'Sgd'",
        ),
        (
            lambda: TrainingConfig(optimizer="Optimizer"),
            "optimizer must name a class of torch.optim but LBFGS, got 'Optimizer'",
        ),
        (
            lambda: TrainingConfig(optimizer="LBFGS"),
            "optimizer must name a class of torch.optim but LBFGS, got 'LBFGS'",
        ),
        *(
            (
                lambda norm=norm: TrainingConfig(coupling_norm=norm),
                f"coupling_norm must be a finite number > 0, got {norm!r}",
            )
            for norm in (0, -1.0, math.nan, math.inf, "1")
        ),
        (lambda: TrainingConfig(frozen="bias"), "frozen must be a tuple of names, got 'bias'"),
    ],
)
def test_refuses_a_bad_configuration(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [lambda: TrainingConfig(3), lambda: TrainingConfig(n_epochs=3)])
def test_a_configuration_is_given_by_known_names(make):
    with pytest.raises(TypeError):
        make()


def test_refuses_too_few_examples_other_shapes_and_unknown_parameters(tokens):
    with pytest.raises(
        ValueError, match=r"tokens must have shape \(n, N, d\), .* got .* \(320, 5\)"
    ):
        train(network(), prediction_rule, tokens[..., 0], hide(tokens), CONFIG)
    with pytest.raises(
        ValueError, match=r"every parameter that is trained; \['bias'\] are missing"
    ):
        train(
            network(),
            lambda *given: (torch.zeros(()), {"couplings.J": network().couplings.J}),
            tokens,
            hide(tokens),
            CONFIG,
        )
    with pytest.raises(ValueError, match="at least one batch of 32 examples, got 20"):
        train(network(), prediction_rule, tokens[:20], hide(tokens), CONFIG)
    with pytest.raises(
        ValueError,
        match=r"frozen must name parameters among \['bias', 'couplings.J'\], got \['J'\]",
    ):
        train(
            network(),
            prediction_rule,
            tokens,
            hide(tokens),
            TrainingConfig(batch_size=32, frozen=("J",)),
        )
    config = TrainingConfig(batch_size=32, frozen=("bias", "couplings.J"))
    with pytest.raises(ValueError, match="frozen leaves nothing to train"):
        train(network(), prediction_rule, tokens, hide(tokens), config)
    with pytest.raises(
        ValueError, match=r"coupling_norm is for a model with couplings, got parameters \['"
    ):
        config = TrainingConfig(batch_size=32, coupling_norm=1.0)
        train(BareAttention(5, 7, width=16), backpropagation, tokens, hide(tokens), config)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_asked_for_and_absent_is_a_clear_error():
    assert select_device("auto") == torch.device("cpu")
    with pytest.raises(
        RuntimeError, match="'cuda' was asked for, but torch .* sees no CUDA device"
    ):
        select_device("cuda")


def test_weight_decay_is_that_of_matrices_and_none_if_zero():
    matrix, vector = (torch.nn.Parameter(torch.ones(n)) for n in ((2, 2), (2,)))
    for name in ("Adam", "AdamW", "SGD"):
        optimizer = make_optimizer(name, [matrix, vector], 0.1)
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0]
    optimizer = make_optimizer("AdamW", [matrix, vector], 0.1, 0.5)
    for p in (matrix, vector):
        p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), 0.95))
    assert torch.equal(vector.detach(), torch.ones(2))
    with pytest.raises(ValueError, match="weight_decay must be 0 for Rprop, which has none"):
        make_optimizer("Rprop", [matrix], 0.1, 0.5)


def test_the_learning_rate_rises_then_falls_along_a_cosine():
    optimizer = make_optimizer("Adam", [torch.nn.Parameter(torch.ones(1))], 0.8)
    schedule, rates = make_schedule(optimizer, 20, 0.2), []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    rise = [0.8 * (0.25 + 0.75 * n / 4) for n in range(4)]
    fall = [0.8 * (1 + math.cos(math.pi * n / 16)) / 2 for n in range(16)]
    expected = rise + fall
    torch.testing.assert_close(torch.tensor(rates), torch.tensor(expected), atol=1e-6, rtol=0)


def test_a_warm_up_leaves_a_step_to_fall_in():
    optimizer = make_optimizer("Adam", [torch.nn.Parameter(torch.ones(1))], 0.8)
    schedule = make_schedule(optimizer, 2, 0.9)
    for _ in range(2):
        optimizer.step()
        schedule.step()
    assert abs(schedule.get_last_lr()[0]) < 1e-9


@pytest.mark.parametrize(
    "given", [{"warmup": 1.0}, {"warmup": -0.1}, {"weight_decay": math.inf}, {"weight_decay": -1}]
)
def test_refuses_a_warm_up_or_decay_out_of_range(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        TrainingConfig(**given)
