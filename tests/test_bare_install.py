"""The library without any extra, in an environment of its own: it learns."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WORK = """
import importlib.util
import pkgutil

import torch

import attractor_lib
from attractor_lib.analysis import overlap
from attractor_lib.corruption import HideTokens, mean_token
from attractor_lib.dynamics import run
from attractor_lib.learning import prediction_rule
from attractor_lib.model import AttractorNetwork
from attractor_lib.trainer import TrainingConfig, train

for name in ("numba", "scipy", "threadpoolctl", "torchvision", "pandas", "matplotlib"):
    assert importlib.util.find_spec(name) is None, name
generator = torch.Generator().manual_seed(0)
rotations = torch.linalg.qr(torch.randn(5, 9, 9, generator=generator)).Q
x = torch.nn.functional.normalize(torch.randn(320, 9, generator=generator), dim=-1)
tokens = torch.einsum("iab,mb->mia", rotations, x)
network = AttractorNetwork(5, 9, n_heads=2, rank=3, beta=2.0)
config = TrainingConfig(epochs=4, batch_size=32, learning_rate=0.05)
hide = HideTokens(2, mean_token(tokens))
history = train(network, prediction_rule, tokens, hide, config, report=None)
assert history[-1]["loss"] < 0.7 * history[0]["loss"]
trajectory = run(network.update, tokens[:8], n_steps=20)
assert overlap(trajectory.states, tokens[:8]).shape == (21, 8)
needs_more = {"attractor_lib.kernels.cpu", "attractor_lib.kernels.lanes"}
for module in pkgutil.walk_packages(attractor_lib.__path__, "attractor_lib."):
    if module.name not in needs_more and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print("learned", attractor_lib.__version__)
"""


@pytest.mark.slow
def test_the_bare_library_trains_a_network(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "bare"], check=True)
    python = tmp_path / "bare" / "bin" / "python"
    source = tmp_path / "source"  # of its own: a build leaves files there
    for name in ("attractor_lib", "attractor_book"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    install = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", source]
    subprocess.run(install, check=True)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", WORK], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("learned 0.")
    command = subprocess.run(
        [tmp_path / "bare" / "bin" / "attractor-book", "rerun", "--list"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert command.returncode == 1
    assert command.stderr.startswith("error: there is no ")
    assert "pip install 'attractor_lib[book]'" in command.stderr
