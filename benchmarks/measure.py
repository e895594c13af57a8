"""What the benchmarks share: interleaved timing, floors, and the rate of one large matrix
product.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from attractor_lib.analysis import operations
from attractor_lib.learning import prediction_rule
from attractor_lib.trainer import make_optimizer


def example(batch, N, d, device, seed=0):
    """Random state and target, and all sites: what the work is does not depend on what the numbers
    are.
    """
    generator = torch.Generator().manual_seed(seed)
    state, target = (
        F.normalize(torch.randn(batch, N, d, generator=generator), dim=-1).to(device)
        for _ in range(2)
    )
    return state, target, torch.ones(batch, N, dtype=torch.bool, device=device)


def training_step(model, rule, batch):
    """A function that takes one step of the training loop: the rule's gradients, then Adam's step
    (of size zero).
    """
    optimizer, parameters = (
        make_optimizer("Adam", model.parameters(), 0.0),
        dict(model.named_parameters()),
    )

    def step():
        _, gradients = rule(model, *batch)
        for name, p in parameters.items():
            p.grad = gradients[name].contiguous()
        optimizer.step()

    return step


def by_autograd(network, state, target, sites):
    """The gradients of the prediction rule's loss, by autograd through `network.field`."""
    network.requires_grad_(True)
    loss = ((network.field(state) - target) * sites[..., None]).square().sum() / (2 * len(state))
    gradients = dict(
        zip(dict(network.named_parameters()), torch.autograd.grad(loss, list(network.parameters())))
    )
    network.requires_grad_(False)
    return loss.detach(), gradients


def rule_products(network, batch) -> int:
    """Operations of the prediction rule's matrix products; at full rank the two that the floor is
    made of.
    """
    if network.couplings.pairwise:
        return 4 * network.n_heads * batch * network.n_sites**2 * network.dim**2
    device = network.bias.device
    return operations(
        lambda: prediction_rule(network, *example(batch, network.n_sites, network.dim, device))
    )


def large_product(device):
    """A function that multiplies two large matrices, and its operations."""
    size = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    return lambda: a @ b, 2 * size**3


def interleaved(
    functions: dict[str, Callable], rounds: int, device, repeats=4
) -> dict[str, list[float]]:
    """Seconds of a call, for each function and round. The functions take turns, so a busy machine
    slows all alike; in its turn each is called several times, as in training: the first finds the
    cache full of other things.
    """
    seconds = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(repeats):
                function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append((time.perf_counter() - began) / repeats)
    return seconds


def median_ratio(of: list[float], to: list[float]) -> float:
    """The median over rounds of the ratio of two times of the same round."""
    return statistics.median(a / b for a, b in zip(of, to))
