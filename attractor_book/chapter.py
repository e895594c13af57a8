"""What chapters share beside the science: their data, random states, closing tables, stored
results.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attractor_book.parameters import chapter_parameters
from attractor_book.results import save_results
from attractor_lib.analysis import restoration_error
from attractor_lib.data import load_images
from attractor_lib.embedding import PatchEmbedding
from attractor_lib.trainer import select_device


class ImageTokens(NamedTuple):
    """Images as tokens: to train on, and to measure on, with the images of the latter."""

    embedding: PatchEmbedding
    tokens: Tensor
    test: Tensor
    images: Tensor


def image_tokens(
    name: str,
    device: torch.device,
    n_train: int | None = None,
    n_test: int | None = None,
    n_validation: int = 0,
    patch_size: int = 7,
    n_frequencies: int | None = None,
    side: int | None = None,
) -> ImageTokens:
    """Embedding, train tokens, and the tokens and images to measure on.

    Args:
        name: of the data set, for ``load_images``.
        device: where they lie.
        n_train, n_test: the first so many train and test images, all if None.
        n_validation: the last so many train images are left out of training and measured on in
            place of the test images; 0 for none.
        patch_size, n_frequencies: of the `PatchEmbedding`.
        side: of the square in the middle of each image that is used [pixels], all if None.

    Raises:
        ValueError: for one validation image, of which no spread can be told, and for a side that
            is longer than the images'.
    """
    require(n_validation != 1, f"n_validation must be 0 or at least 2, got {n_validation}")
    train, test = (load_images(name, split).to(device) for split in ("train", "test"))
    if side is not None:
        most = train.shape[-1]
        require(1 <= side <= most, f"side must be from 1 to {most}, that of {name}, got {side}")
        cut = (train.shape[-1] - side) // 2
        train, test = (x[..., cut : cut + side, cut : cut + side] for x in (train, test))
    if n_validation:
        train, test = train[:-n_validation], train[-n_validation:]
    channels = train.shape[1] if train.ndim == 4 else 1
    embedding = PatchEmbedding(train.shape[-1], patch_size, n_frequencies, channels)
    images = test if n_validation else test[:n_test]
    tokens, test = embedding.encode(train[:n_train]), embedding.encode(images)
    return ImageTokens(embedding, tokens, test, images)


def mnist(device: torch.device, *sizes, **named) -> ImageTokens:
    """`image_tokens` of MNIST."""
    return image_tokens("MNIST", device, *sizes, **named)


def require(holds, message: str) -> None:
    """ValueError with this message, unless it holds: what a parameter's range cannot say."""
    if not holds:
        raise ValueError(message)


def random_states(
    *shape: int, seed: int | torch.Generator, device: torch.device | str = "cpu"
) -> Tensor:
    """Unit vectors along the last axis, in float64; drawn on the CPU, so that every device has the
    same.
    """
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    return F.normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1).to(
        device
    )


def randomised(network: nn.Module, std: float, seed: int | torch.Generator) -> nn.Module:
    """The network in float64 with Gaussian parameters, the bias too: of order one, so that no term
    is small.
    """
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    for p in network.double().parameters():
        p.copy_(std * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return network


def autograd(network: nn.Module, loss) -> dict[str, Tensor]:
    """The gradients of loss() by autograd, by the names of the network's parameters: what closed
    forms must equal.
    """
    parameters = dict(network.named_parameters())
    network.requires_grad_(True)
    gradients = torch.autograd.grad(loss(), list(parameters.values()))
    network.requires_grad_(False)
    return dict(zip(parameters, gradients))


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference between two sets of gradients of the same names."""
    if set(a) != set(b):
        raise ValueError(f"both must have the same names, got {sorted(a)} and {sorted(b)}")
    return max((a[name] - b[name]).abs().max().item() for name in a)


def own_derivatives(energies, x: Tensor) -> Tensor:
    """d e_i / d x_i for every site i, by autograd, the other sites held.

    Args:
        energies: x (batch, N, d) -> e (batch, N).
    """
    x = x.detach().clone().requires_grad_()
    e = energies(x)
    by_site = (torch.autograd.grad(e_i.sum(), x, retain_graph=True)[0] for e_i in e.T)
    return torch.stack([g[:, i] for i, g in enumerate(by_site)], 1)


def decoded(embedding: PatchEmbedding, tokens: Tensor) -> Tensor:
    """The images (..., *image_shape) of tokens (..., N, d), on the CPU."""
    return embedding.decode(tokens.flatten(0, -3)).unflatten(0, tokens.shape[:-2]).cpu()


def errors_in_time(
    models: dict[str, Callable], tokens: Tensor, corrupt: Callable, embedding, n_steps: int, **about
) -> list[dict]:
    """Mean errors after 1 ... n_steps updates by each model, as rows for a chapter's results.

    Args:
        models: updates, or predictions, by name.
        tokens, corrupt, embedding, n_steps: as for `restoration_error`.
        about: columns that are the same in every row.
    """
    return [
        {"model": name, **about, "t": t, "error": error}
        for name, model in models.items()
        for t, error in enumerate(
            restoration_error(model, tokens, corrupt, embedding, n_steps).mean(1).tolist()
        )
        if t
    ]


def numbered(examples) -> list[str]:
    """'1 of 8', '2 of 8' ...: the values of a control that chooses an example."""
    return [f"{n} of {len(examples)}" for n in range(1, len(examples) + 1)]


def mean_and_deviation(values, digits: int = 4) -> str:
    """'mean ± standard deviation', for ``pivot_table(aggfunc=...)``; a single value stands
    alone.
    """
    values = np.asarray(values, dtype=float)
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def provenance_table(provenance: pd.DataFrame, *parameters: str) -> pd.DataFrame:
    """Of each stored run: file, date, device, threads, torch, these parameters, and how long it
    took.
    """
    return provenance[["file", "date", "device", "threads", "torch", *parameters, "seconds"]]


def save_chapter(results_file: str, rows: list[dict], began: float) -> None:
    """Store the rows of the chapter that calls it with its parameters; nothing if `results_file` is
    empty.

    Args:
        results_file: the chapter's parameter.
        rows: one dictionary a measurement.
        began: ``time.perf_counter()`` at the chapter's start.
    """
    if not results_file:
        return
    parameters = chapter_parameters()
    for name in ("results_file", "only"):  # where it goes, and what is in its rows
        parameters.pop(name, None)
    if "device" in parameters:
        parameters["device"] = str(select_device(parameters["device"]))
    save_results(results_file, rows, parameters, time.perf_counter() - began)
