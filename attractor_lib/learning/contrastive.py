"""Contrastive divergence: the energy rule on the data minus the same on states reached from them.

Derived in 08_contrastive_divergence. As everywhere in the library: closed forms, no autograd,
nothing kept of the way to the negatives.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attractor_lib.checkpoint import load_state, name_of, state_of
from attractor_lib.checks import check_whole
from attractor_lib.learning.pseudo_likelihood import gibbs_sweep
from attractor_lib.learning.rules import Gradients, energy_rule
from attractor_lib.model import AttractorNetwork
from attractor_lib.states import check_example, clamp

Sampler = Callable[[AttractorNetwork, Tensor, Tensor | None], Tensor]


@torch.no_grad()
def mean_energy(network: AttractorNetwork, state: Tensor) -> Tensor:
    """E = mean over examples of sum_i e_i(state): every pair of sites enters twice.

    Args:
        network: an `AttractorNetwork`.
        state: (batch, N, d), tokens on the sphere.

    Returns:
        A scalar.
    """
    return network.local_energies(state).sum(1).mean()


@torch.no_grad()
def contrast(
    network: AttractorNetwork, data: Tensor, negatives: Tensor
) -> tuple[Tensor, Tensor, Gradients]:
    """Both energies, and the gradient of their difference, the negatives held fixed::

        L = E(data) - E(negatives)
        dL/dJ_ij = -<a_ij x_i x_j^T>_data + <a_ij x_i x_j^T>_negatives

    Args:
        network: an `AttractorNetwork`.
        data: (batch, N, d), tokens on the sphere.
        negatives: (batch', N, d), likewise; either enters by its own mean.

    Returns:
        E(data) and E(negatives), scalars, and the gradients of the network's parameters by name.

    Raises:
        ValueError: for a state that the network refuses or an empty batch.
    """
    low, attracted = energy_rule(network, data)
    high, repelled = energy_rule(network, negatives)
    return low, high, {name: attracted[name] - repelled[name] for name in attracted}


def own_update(network: AttractorNetwork, state: Tensor, clamped: Tensor | None = None) -> Tensor:
    """One step of the network's own dynamics, ``network.update``: a deterministic sampler.

    Args:
        network: an `AttractorNetwork`.
        state: (batch, N, d), tokens on the sphere.
        clamped: boolean, (N,) or (batch, N): sites that stand.

    Returns:
        The next state, (batch, N, d).
    """
    return clamp(network.update(state), state, clamped)


@dataclass(frozen=True, eq=False)
class GibbsSampler:
    """One Gibbs sweep: every site in turn drawn from its exact conditional (one full-rank head)::

        p(x_i | x_rest) proportional to exp(-beta e_i)

    The sweep is ``pseudo_likelihood.gibbs_sweep``.

    Args:
        generator: on the network's device. Its state is part of a checkpoint, its seed of the name.

    Raises:
        ValueError: for a generator that is none.
    """

    generator: torch.Generator

    def __post_init__(self):
        if not isinstance(self.generator, torch.Generator):
            raise ValueError(f"generator must be a torch.Generator, got {self.generator!r}")

    def __repr__(self) -> str:
        return f"GibbsSampler(seed={self.generator.initial_seed()})"

    def __call__(
        self, network: AttractorNetwork, state: Tensor, clamped: Tensor | None = None
    ) -> Tensor:
        return gibbs_sweep(network, state, self.generator, clamped)

    def state_dict(self) -> dict:
        return {"generator": state_of(self.generator)}

    def load_state_dict(self, state: dict) -> None:
        load_state(self.generator, state["generator"])


@dataclass(eq=False)
class ContrastiveDivergence:
    """CD-k: a rule that lowers the energy of the data and raises that of the negatives::

        L = E(data) - E(negatives)
        negatives = k steps of the sampler, from the state that the rule is given

    With ``no_corruption`` that state is the example itself. The gradient is that of L with the
    negatives held fixed: no error passes through the k steps. As the conditionals of this network
    are in general those of no joint distribution, L is not a bound on a likelihood, and its
    gradient is the exact gradient of none (08_contrastive_divergence).

    Args:
        sample: a function (network, state, clamped) -> state, one step: `own_update` or a
            `GibbsSampler`.
        n_steps: k >= 1.
        chains: if given, persistent chains (n, N, d): the negatives start from them instead and are
            written back into them (PCD). They are part of a checkpoint, as the sampler's state is.

    Attributes:
        energies: E(data) and E(negatives) of the last call, two scalars; None before the first.

    Raises:
        ValueError: for n_steps < 1, a sampler that is no function or changes the shape, and for
            chains together with sites that are not all to be restored.
    """

    sample: Sampler
    n_steps: int
    chains: Tensor | None = None
    energies: tuple[Tensor, Tensor] | None = field(default=None, init=False)

    def __post_init__(self):
        if not callable(self.sample) or isinstance(self.sample, type):
            raise ValueError(
                "sample must be a function (network, state, clamped) -> state, such as own_update "
                f"or GibbsSampler(generator), got {self.sample!r}"
            )
        check_whole("n_steps", self.n_steps, 1)

    def __repr__(self) -> str:
        persistent = "" if self.chains is None else f", chains={len(self.chains)}"
        sample = name_of(self.sample)
        return f"ContrastiveDivergence({sample}, n_steps={self.n_steps}{persistent})"

    @torch.no_grad()
    def negatives(
        self, network: AttractorNetwork, state: Tensor, sites: Tensor | None = None
    ) -> Tensor:
        """k steps from `state`, or from the chains.

        Args:
            network: an `AttractorNetwork`.
            state: (batch, N, d), tokens on the sphere.
            sites: boolean, (N,) or (batch, N): the sites that move; None for all.

        Returns:
            The states reached, (batch, N, d) or as many as there are chains.
        """
        clamped = None if sites is None or sites.all() else ~sites
        if self.chains is not None:
            if clamped is not None:
                raise ValueError(
                    "chains must run with every site free, got sites that are not to be restored"
                )
            state = self.chains
        x = state
        for _ in range(self.n_steps):
            x = self.sample(network, x, clamped)
            if not isinstance(x, Tensor) or x.shape != state.shape:
                got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
                raise ValueError(
                    f"sample must return states of shape {tuple(state.shape)}, got {got}"
                )
        if self.chains is not None:
            self.chains.copy_(x)
        return x

    @torch.no_grad()
    def __call__(
        self, network: AttractorNetwork, state: Tensor, target: Tensor, sites: Tensor | None = None
    ) -> tuple[Tensor, Gradients]:
        """L and the gradients by name: data = `target`, negatives from `state`."""
        sites = check_example(network, state, target, sites)
        low, high, gradients = contrast(network, target, self.negatives(network, state, sites))
        self.energies = low, high
        return low - high, gradients

    def state_dict(self) -> dict:
        return {"sample": state_of(self.sample), "chains": self.chains}

    def load_state_dict(self, state: dict) -> None:
        load_state(self.sample, state["sample"])
        if self.chains is not None:
            self.chains.copy_(state["chains"])
