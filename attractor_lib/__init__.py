"""Self-attention as an attractor network: transient memories, learning without backpropagation."""

import os

# A thread that waits for others sleeps soon. By default OpenMP's threads keep a core busy for
# milliseconds, and two trainings side by side slow one another several times over. To be set before
# torch loads OpenMP: import attractor_lib first, or set it in the environment.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from attractor_lib.corruption import AddNoise, HideTokens, mean_token, no_corruption
from attractor_lib.data import Alphabet, load_images, load_text
from attractor_lib.dynamics import run
from attractor_lib.embedding import PatchEmbedding
from attractor_lib.learning import energy_rule, prediction_rule
from attractor_lib.model import AttractorNetwork
from attractor_lib.trainer import TrainingConfig, train

__version__ = "0.6.0"

__all__ = [
    "AddNoise",
    "Alphabet",
    "AttractorNetwork",
    "HideTokens",
    "PatchEmbedding",
    "TrainingConfig",
    "energy_rule",
    "load_images",
    "load_text",
    "mean_token",
    "no_corruption",
    "prediction_rule",
    "run",
    "train",
]
