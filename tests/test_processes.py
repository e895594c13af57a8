"""Several processes end where one ends; what they cannot share is refused; a lost one is missed."""

import json
import math
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch._dynamo  # noqa: F401  torch.optim imports it, which takes seconds: before the fork
import torch.distributed as dist
from conftest import random_states

from attractor_lib import kernels
from attractor_lib.analysis import restoration_error
from attractor_lib.baselines import BareAttention, backpropagation
from attractor_lib.corruption import HideTokens, mean_token, no_corruption
from attractor_lib.data import load_images
from attractor_lib.embedding import PatchEmbedding
from attractor_lib.learning import energy_rule, prediction_rule
from attractor_lib.learning.contrastive import ContrastiveDivergence, GibbsSampler, own_update
from attractor_lib.learning.own_trajectory import OwnTrajectory, PersistentTrajectories
from attractor_lib.learning.positions import Positioned
from attractor_lib.model import AttractorNetwork
from attractor_lib.processes import Processes
from attractor_lib.trainer import TrainingConfig, select_device, train
from attractor_lib.trainer.__main__ import main, make_parser

N, D, EXAMPLES = 5, 7, 80
CONFIG = TrainingConfig(epochs=3, batch_size=16, learning_rate=0.02)  # 3 do not divide 16


def draw(seed):
    return torch.Generator().manual_seed(seed)


def tokens():
    return random_states(EXAMPLES, N, D)


def network(seed=0, **form):
    form = {"n_heads": 2, "beta": 2.0, **form}
    return AttractorNetwork(N, D, **form, generator=draw(seed)).double()


def hide():
    return HideTokens(2, mean_token(tokens()), least=1)


class EveryOther:
    """Hides tokens in every other batch: it carries a number from step to step."""

    def __init__(self):
        self.calls = 0

    def __call__(self, tokens, generator):
        self.calls += 1
        return (hide() if self.calls % 2 else no_corruption)(tokens, generator)

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


def the_last_two(tokens, generator):
    """Sites that are the same for all examples, said once."""
    return hide()(tokens, generator)[0], torch.arange(N) >= N - 2


def cases():
    """Trainings that slices suit, by name: (model, rule, corruption, more of the configuration)."""

    def on_its_way():
        model = network()
        return model, prediction_rule, OwnTrajectory(model.update, hide(), max_steps=3), {}

    energies = {"coupling_norm": 3.0, "frozen": ("bias",)}
    return {
        "full rank": lambda: (network(), prediction_rule, hide(), {}),
        "fused kernel": lambda: (network(), prediction_rule, hide(), {}),
        "low rank": lambda: (network(rank=3), prediction_rule, hide(), {}),
        "norms": lambda: (network(), energy_rule, no_corruption, energies),
        "baseline": lambda: (  # Adam makes steps of noise, of the gradient of a bias without effect
            BareAttention(N, D, 16).double(),
            backpropagation,
            hide(),
            {"optimizer": "SGD"},
        ),
        "own updates": lambda: (
            network(),
            ContrastiveDivergence(own_update, 2),
            no_corruption,
            {"coupling_norm": 3.0},
        ),
        "own trajectory": on_its_way,
        "corruption with a state": lambda: (network(), prediction_rule, EveryOther(), {}),
        "one mask": lambda: (network(), prediction_rule, the_last_two, {}),
    }


def trained(name, observe=None):
    model, rule, corrupt, more = cases()[name]()
    config = TrainingConfig(**{**vars(CONFIG), **more})
    lines, allowed = [], kernels.KERNELS if name == "fused kernel" else ["batched"]
    with kernels.only(*allowed):
        history = train(model, rule, tokens(), corrupt, config, None, lines.append, observe)
    return {"losses": [r["loss"] for r in history], "lines": lines, "model": model.state_dict()}


# What follows runs in a process that has imported torch and run nothing with it, and in those that
# are forked from it.


def in_processes(count, work, *given):
    """Call work(rank, *given) in each of a group of processes; how each of them ended."""
    store = Path(given[0]) / f"store-{time.monotonic_ns()}"
    children = []
    for rank in range(count):
        if not (child := os.fork()):
            torch.set_num_threads(1)
            form = {"init_method": store.as_uri(), "rank": rank, "world_size": count}
            dist.init_process_group("gloo", **form, timeout=timedelta(seconds=30))
            with kernels.only("batched"):  # compiled code takes seconds to load
                work(rank, *given)
            dist.destroy_process_group()
            os._exit(0)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def train_each(rank, folder):
    for name in cases():
        if name == "fused kernel" and dist.get_world_size() == 3:
            continue
        seen = []
        end = trained(name, observe=lambda model, step: seen.append(step))
        torch.save({**end, "seen": seen}, f"{folder}/{name}-{dist.get_world_size()}-{rank}.pt")


def train_by_two_and_three(folder):
    for count in (2, 3):
        assert in_processes(count, train_each, folder) == [0] * count


def apart(work, folder):
    """Call a function of this module with the folder in such a process."""
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    script = f"import test_processes; test_processes.{work.__name__}({str(folder)!r})"
    environment = {**os.environ, "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=120)
    return folder


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    return apart(train_by_two_and_three, tmp_path_factory.mktemp("ends"))


@pytest.mark.parametrize("name", cases())
def test_the_end_does_not_depend_on_the_number_of_processes(ends, name):
    alone = trained(name)
    assert len(set(alone["losses"])) == 3
    for count in (2, 3) if name != "fused kernel" else (2,):
        first, *others = (torch.load(ends / f"{name}-{count}-{rank}.pt") for rank in range(count))
        assert first["losses"] == pytest.approx(alone["losses"], abs=1e-12, rel=0)
        for key, p in alone["model"].items():
            torch.testing.assert_close(first["model"][key], p, atol=1e-12, rtol=0)
            assert all(torch.equal(other["model"][key], first["model"][key]) for other in others)
        assert all(other["losses"] == first["losses"] for other in others)


def test_the_first_alone_reports_and_observes(ends):
    first, *others = (torch.load(ends / f"full rank-3-{rank}.pt") for rank in range(3))
    assert len(first["lines"]) == 3 and first["seen"] == list(range(16))
    assert not any(other["lines"] or other["seen"] for other in others)


def summed(*given):
    loss, gradients = prediction_rule(*given)
    n = len(given[1])
    return n * loss, {name: n * g for name, g in gradients.items()}


def per_hidden_token(model, state, target, sites):
    loss, gradients = prediction_rule(model, state, target, sites)
    n = sites.sum() / len(sites)
    return loss / n, {name: g / n for name, g in gradients.items()}


def of_half(model, state, target, sites):
    """Half of the units are dropped, drawn as torch's layers do."""
    return prediction_rule(model, state, target, sites & (torch.rand(sites.shape) < 0.5))


def from_the_global_generator(tokens, generator):
    return hide()(tokens, torch.default_generator)


def refusals(rank, folder):
    """What is changed in a call of train that goes through, by name, so that it must not."""

    def changing(model, step):
        model.bias += 1e-9

    torch.manual_seed(rank)
    chains = random_states(6, N, D)
    rules = {
        "kept": PersistentTrajectories(prediction_rule),
        "chains": ContrastiveDivergence(own_update, 1, chains),
        "Gibbs": ContrastiveDivergence(GibbsSampler(draw(0)), 1),
        "Gibbs within": Positioned(ContrastiveDivergence(GibbsSampler(draw(0)), 1), 1.0),
        "sum": summed,
        "dropout": of_half,
    }
    own_file = {"checkpoint": f"{folder}/{rank}.pt"}
    return {
        "nothing": own_file,
        "checkpoint": own_file,  # that of the first is there by now
        **{name: {"rule": rule} for name, rule in rules.items()},
        "couplings": {"model": network(seed=rank)},
        "beta": {"model": network(beta=2.0 + rank)},
        "tokens": {"tokens": tokens().roll(rank, 0)},
        "fewer tokens": {"tokens": tokens()[rank:]},
        "learning rate": {"config": TrainingConfig(batch_size=16, learning_rate=1e-2 + rank)},
        "generator": {"corrupt": from_the_global_generator},
        "observer": {"observe": changing},
        "batch": {"config": TrainingConfig(batch_size=1)},
        "per hidden token": {
            "rule": per_hidden_token,
            "config": TrainingConfig(batch_size=15),  # of which two halves differ
        },
    }


def try_each(rank, folder):
    said = {}
    for name, changes in refusals(rank, folder).items():
        given = {"model": network(), "rule": prediction_rule, "tokens": tokens()}
        given |= {"corrupt": hide(), "config": CONFIG, "report": None, **changes}
        try:
            train(**given)
            said[name] = "accepted"
        except ValueError as error:
            said[name] = str(error)
    Path(folder, f"{rank}.json").write_text(json.dumps(said))


def try_each_by_two(folder):
    assert in_processes(2, try_each, folder) == [0, 0]


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    folder = apart(try_each_by_two, tmp_path_factory.mktemp("said"))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


OTHER = "must be the same in all 2 processes, got another in 1 than in 0"
MEAN = "rule must be a mean over examples, off by .* over slices, got {} for 2 processes"
STATE = "rule must carry no state from step to step, got {}.* for 2 processes: train with one"


@pytest.mark.parametrize(
    "name, message",
    {
        "nothing": "accepted",
        "kept": STATE.format("PersistentTrajectories"),
        "chains": STATE.format("ContrastiveDivergence"),
        "Gibbs": STATE.format("ContrastiveDivergence"),
        "Gibbs within": STATE.format("Positioned"),
        "sum": MEAN.format("summed"),
        "per hidden token": MEAN.format("per_hidden_token"),
        "dropout": MEAN.format("of_half"),
        "couplings": f"the model {OTHER}",
        "beta": f"the model {OTHER}",
        "checkpoint": f"the model {OTHER}",
        "tokens": f"the batch {OTHER}",
        "fewer tokens": f"the configuration, examples and checkpoint {OTHER}",
        "learning rate": f"the configuration, examples and checkpoint {OTHER}",
        "generator": f"the batch {OTHER}",
        "observer": f"the model {OTHER}",
        "batch": "batch_size must be at least the number of processes, 2, got 1",
    }.items(),
)
def test_what_cannot_be_shared_is_refused_by_all(said, name, message):
    for of_rank in said:
        assert re.match(message, of_rank[name]), of_rank[name]


def test_every_refusal_is_expected(said):
    (expected,) = test_what_cannot_be_shared_is_refused_by_all.pytestmark
    assert {name for name, _ in expected.args[1]} == set(said[0]) == set(said[1])


def test_rules_that_slices_do_not_suit_are_trained_by_one():
    for name in ("kept", "chains", "Gibbs", "sum", "dropout"):
        changes = refusals(0, "")[name]
        given = {"model": network(n_heads=1), "tokens": tokens(), "corrupt": no_corruption}
        assert len(train(**given, config=CONFIG, report=None, **changes)) == 3


class Hide:
    """Hides tokens, and at one of its calls kills the process."""

    def __init__(self, last):
        self.left = last

    def __repr__(self):
        return "Hide()"

    def __call__(self, tokens, generator):
        if (left := self.left) == 0:
            Path("killed at").write_text(str(time.monotonic()))
            os.kill(os.getpid(), signal.SIGKILL)
        self.left = left - 1
        return hide()(tokens, generator)


def go_on(rank, folder, file, dies=None, call=math.inf):
    os.chdir(folder)
    model, corrupt = network(), Hide(call if rank == dies else math.inf)
    try:
        train(model, prediction_rule, tokens(), corrupt, CONFIG, file, report=None)
    except ConnectionError as lost:
        message = f"{time.monotonic() - float(Path('killed at').read_text())} {lost}"
        Path(f"lost by {rank}").write_text(message)
        os._exit(3)
    torch.save(model.state_dict(), f"end of {file} {rank}")


def kill_and_go_on(folder):
    """Three epochs of five steps: by one process, three, and two; and by two, and two again."""
    ended = [
        in_processes(1, go_on, folder, "other", 0, 7),
        in_processes(3, go_on, folder, "other", 1, 8),
        in_processes(2, go_on, folder, "other"),
        in_processes(2, go_on, folder, "same", 0, 7),
        in_processes(2, go_on, folder, "same"),
        in_processes(2, go_on, folder, "uninterrupted"),
    ]
    assert ended == [[-9], [3, -9, 3], [0, 0], [-9, 3], [0, 0], [0, 0]], ended


@pytest.fixture(scope="module")
def gone_on(tmp_path_factory):
    return apart(kill_and_go_on, tmp_path_factory.mktemp("gone_on"))


def test_a_training_goes_on_with_another_number_of_processes(gone_on):
    model = trained("full rank")["model"]
    assert len(torch.load(gone_on / "other")["history"]) == 3
    for rank in range(2):
        end = torch.load(gone_on / f"end of other {rank}")
        for key, p in model.items():
            torch.testing.assert_close(end[key], p, atol=1e-12, rtol=0)


def test_with_the_same_number_it_goes_on_bit_for_bit(gone_on):
    for rank in range(2):
        ends = [torch.load(gone_on / f"end of {file} {rank}") for file in ("same", "uninterrupted")]
        assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[1])


def test_the_others_of_a_killed_process_end_within_seconds_and_say_how_to_go_on(gone_on):
    for rank, of, file in ((0, 3, "other"), (2, 3, "other"), (1, 2, "same")):
        seconds, said = (gone_on / f"lost by {rank}").read_text().split(" ", 1)
        assert float(seconds) < 10
        expected = (
            rf"process {rank} of {of} has lost the others \(.*\) in the training of "
            "AttractorNetwork by prediction_rule: started again, by any number of processes, it "
            f"goes on from {file}"
        )
        assert re.fullmatch(expected, said) or rank == 1, said


SCRIPT = """
import os
import signal
import sys
import torch
from attractor_lib import AttractorNetwork, HideTokens, TrainingConfig, prediction_rule, train
from attractor_lib.processes import Processes

x = torch.randn(96, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
tokens, calls = x / x.norm(dim=-1, keepdim=True), []
hide = HideTokens(2, tokens[0])

def corrupt(tokens, generator):
    calls.append(1)
    if os.environ.get("RANK") == sys.argv[1] and len(calls) == 9:
        open("killed", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return hide(tokens, generator)

network = AttractorNetwork(5, 7, rank=3).double()
config = TrainingConfig(epochs=3, batch_size=16)
train(network, prediction_rule, tokens, corrupt, config, checkpoint="run.pt")
if Processes().first:
    torch.save(network.state_dict(), sys.argv[2])
"""


def command(folder, *given, **form):
    """A command of python's, in a folder."""
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    form |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *given], cwd=folder, env=environment, **form)


def torchrun(count):
    return "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)


def done(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.mark.slow
def test_a_script_of_ones_own_needs_no_more_than_torchrun(tmp_path, monkeypatch, capsys):
    """It is killed, goes on without torchrun, and ends where one process alone ends."""
    (tmp_path / "script.py").write_text(SCRIPT)
    epochs = re.compile("epoch   [0-9]/3").findall
    code, out, err = done(command(tmp_path, *torchrun(2), "script.py", "1", "no.pt"))
    assert code != 0 and time.time() - (tmp_path / "killed").stat().st_mtime < 20, err
    assert epochs(out) == ["epoch   1/3"] and not (tmp_path / "no.pt").exists(), out + err
    code, out, err = done(command(tmp_path, "script.py", "none", "gone_on.pt"))
    assert code == 0 and epochs(out) == ["epoch   2/3", "epoch   3/3"], out + err
    (tmp_path / "run.pt").unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script.py", "none", "alone.pt"])
    runpy.run_path("script.py")
    gone_on, alone = (torch.load(f"{name}.pt") for name in ("gone_on", "alone"))
    assert len(epochs(capsys.readouterr().out)) == 3 and alone.keys() == gone_on.keys()
    for key, p in alone.items():
        torch.testing.assert_close(gone_on[key], p, atol=1e-12, rtol=0)


MODULE = "-m", "attractor_lib.trainer"


@pytest.mark.slow
def test_the_command_does_the_same_in_one_process_and_in_two(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = "--n-images=1000", "--epochs=10", "--n-heads=2", "--rank=4", "--learning-rate=.05"
    given += ("--batch-size=125",)  # of which two halves differ
    main([*given, "--output=alone.pt"])
    alone = capsys.readouterr().out
    code, together, err = done(command(tmp_path, *torchrun(2), *MODULE, *given, "--output=two.pt"))
    assert code == 0 and "Warning" not in err, err
    ends = []
    for count, file, out in ((1, "alone.pt", alone), (2, "two.pt", together)):
        first, *lines, last = out.splitlines()
        assert f"processes: {count}, on cpu" in first and len(lines) == 10, out
        errors = re.search(r"on 10,000 test images: ([0-9.]+) after one update, ([0-9.]+) b", last)
        ends.append((*map(float, errors.groups()), torch.load(file)["parameters"]))
    (after, before, parameters), two = ends
    assert after < 0.95 * before and two[:2] == pytest.approx((after, before), abs=2e-5)
    for key, p in parameters.items():
        torch.testing.assert_close(two[2][key], p, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_ctrl_c_ends_all_and_says_how_to_go_on(tmp_path):
    long = "--n-images", "2000", "--epochs", "10000", "--checkpoint", "run.pt"
    running = command(tmp_path, *torchrun(2), *MODULE, *long)
    for line in running.stdout:
        if "epoch " in line:
            break
    interrupted = time.monotonic()
    running.send_signal(signal.SIGINT)
    code, _, err = done(running)
    assert code != 0 and time.monotonic() - interrupted < 20
    assert "interrupted: the same command goes on from run.pt" in err
    assert "KeyboardInterrupt" not in err and "attractor_lib/trainer" not in err
    assert len(torch.load(tmp_path / "run.pt")["history"]) >= 1


@pytest.fixture
def images(monkeypatch):
    """Smooth ones in place of MNIST's, for a command in this process."""
    seen = torch.linspace(0, 3, 28)

    def load(name, split):
        n, phase = (60, 0) if split == "train" else (40, 0.5)
        waves = torch.arange(n)[:, None, None] / 7 + phase
        return (1 + torch.sin(waves + seen[:, None] + waves * seen)) / 2

    monkeypatch.setattr("attractor_lib.trainer.__main__.load_images", load)
    return load


TINY = ["--epochs=20", "--batch-size=20", "--n-heads=2", "--rank=3", "--learning-rate=.03"]


def test_the_command_trains_and_saves_what_its_help_says_how_to_load(
    images, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    main([*TINY, "--patch-size", "14", "--n-hidden", "1", "--checkpoint", "run.pt"])
    out = capsys.readouterr().out
    snippet = make_parser().epilog.split("is loaded by\n")[1]
    names = {"torch": torch, "AttractorNetwork": AttractorNetwork, "PatchEmbedding": PatchEmbedding}
    exec("\n".join(line.strip() for line in snippet.splitlines()), names)
    embedding, loaded = names["embedding"], names["network"]
    train_tokens, test_tokens = (embedding.encode(images("", s)) for s in ("train", "test"))
    corrupt = HideTokens(1, mean_token(train_tokens))
    before, after = restoration_error(loaded.update, test_tokens, corrupt, embedding).mean(1)
    assert f"on 40 test images: {after:.5f} after one update, {before:.5f} before" in out
    assert after < 0.7 * before and loaded.n_heads == 2 and loaded.couplings.rank == 3
    main([*TINY, "--patch-size", "14", "--n-hidden", "1", "--checkpoint", "run.pt"])
    assert "epoch" not in capsys.readouterr().out


def test_the_command_trains_on_images_in_colour(images, tmp_path, monkeypatch, capsys):
    def coloured(name, split):
        return torch.stack([images(name, split), 1 - images(name, split)], 1)

    monkeypatch.setattr("attractor_lib.trainer.__main__.load_images", coloured)
    monkeypatch.chdir(tmp_path)
    main([*TINY, "--patch-size", "14", "--n-hidden", "1", "--output", "c.pt"])
    assert PatchEmbedding(**torch.load("c.pt")["embedding"]).channels == 2
    after, before = map(float, re.findall(r"0\.\d{5}(?= after| before)", capsys.readouterr().out))
    assert after < before


def test_the_command_trains_on_noise_with_a_full_head(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    full = ["--n-heads", "1", "--rank", "full", "--beta", "1", "--noise", "0.2", "0.3"]
    main(["--epochs", "20", "--batch-size", "20", "--patch-size", "14", *full, "--output", "n.pt"])
    after, before = map(float, re.findall(r"0\.\d{5}(?= after| before)", capsys.readouterr().out))
    assert after < before and torch.load("n.pt")["network"]["rank"] is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["CIFAR"], "name must be one of MNIST, FashionMNIST, CIFAR10"),
        (["--n-images", "61"], "n_images must be from 1 to 60, got 61"),
        (["--n-images", "many"], "argument --n-images: invalid int value: 'many'"),
        (["--patch-size", "5"], "patch_size must divide image_size, got image_size=28, patch_size"),
        (["--n-heads", "0"], "n_heads must be a whole number >= 1, got 0"),
        (["--rank", "low"], "argument --rank: must be a whole number or full, got low"),
        (["--beta", "-1"], "beta must be a finite number > 0, got -1.0"),
        (["--n-hidden", "17"], "n_hidden must be a whole number from 1 to 16, got 17"),
        (["--noise", "0.2"], "argument --noise: expected 2 arguments"),
        (["--noise", "0.2", "0.1"], "high must be a finite number >= 0.2, got 0.1"),
        (["--epochs", "0"], "epochs must be a whole number >= 1, got 0"),
        (["--learning-rate", "nan"], "learning_rate must be a finite number > 0, got nan"),
        (["--seed", "-1"], "argument --seed: must be a whole number from 0 to 2**63 - 1, got -1"),
        (["--device", "abacus"], "abacus"),
        (["--n-hidden", "2", "--noise", "0", "1"], "not allowed with argument"),
        (["--output", "no folder/network.pt"], "output must be a file in a folder that is there"),
        (["--depth=3"], "unrecognized arguments: --depth=3"),
    ],
)
def test_the_command_refuses_in_one_line(images, monkeypatch, capsys, arguments, message):
    if arguments == ["CIFAR"]:
        monkeypatch.setattr("attractor_lib.trainer.__main__.load_images", load_images)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    usage, said = err.splitlines()
    assert ended.value.code == 2 and not out and usage.startswith("usage: python -m attractor_lib")
    assert said.startswith("python -m attractor_lib.trainer: error: ") and message in said


def test_what_stops_a_training_is_one_line_too(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="error: tokens must hold at least one batch of 61 exam"):
        main([*TINY, "--batch-size", "61"])
    with pytest.raises(SystemExit, match="error: checkpoint must be a file, got the folder "):
        main([*TINY, "--checkpoint", "."])
    main([*TINY, "--checkpoint", "run.pt"])
    with pytest.raises(SystemExit, match="error: run.pt belongs to another run .seed: 0 there, 1"):
        main([*TINY, "--checkpoint", "run.pt", "--seed", "1"])


def test_without_torchrun_or_a_group_there_is_one_process_and_the_rule_is_the_rule(monkeypatch):
    alone = Processes()
    assert (alone.count, alone.rank, alone.first) == (1, 0, True)
    assert alone.averaged(prediction_rule, 1) is prediction_rule
    monkeypatch.setattr(dist, "all_gather_object", lambda *given: pytest.fail("it spoke"))
    alone.check_same("model", network())


@pytest.mark.parametrize("cuda, backend", [(False, "gloo"), (True, "cpu:gloo,cuda:nccl")])
def test_torchrun_alone_makes_it_find_the_others(monkeypatch, cuda, backend):
    joined = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(dist, "init_process_group", lambda kind, timeout: joined.append(kind))
    monkeypatch.setattr(dist, "is_initialized", lambda: bool(joined))
    monkeypatch.setattr(dist, "get_world_size", lambda: 64)
    monkeypatch.setattr(dist, "get_rank", lambda: 7)
    monkeypatch.setattr("attractor_lib.processes.atexit.register", lambda leave: None)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert Processes().count == 1 and not joined
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")
    for _ in range(2):  # a second training finds the group of the first
        processes = Processes()
        assert (processes.count, processes.rank, processes.first) == (64, 7, False)
    assert joined == [backend]


@pytest.mark.parametrize("rank, count", [("0", 2), ("1", 2), ("2", 2), (None, 2)])
def test_each_process_of_a_machine_has_the_device_of_its_local_rank(monkeypatch, rank, count):
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is None:
        assert select_device("auto") == select_device("cuda") == torch.device("cuda")
        assert not current
        return
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert select_device("cpu") == torch.device("cpu")
    assert select_device("cuda:1") == torch.device("cuda:1")
    if int(rank) < count:
        device = torch.device("cuda", int(rank))
        assert select_device("auto") == select_device("cuda") == device
        assert current == [device, device]
    else:
        with pytest.raises(RuntimeError, match="a CUDA device of its own, got 2 for process 2"):
            select_device("cuda")
