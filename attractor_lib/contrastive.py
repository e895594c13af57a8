"""Contrastive divergence: the energy rule on the data minus the same on states that the network reaches from them.

Derived in notebook 08_contrastive_divergence. As everywhere in the library: closed forms, no autograd, nothing kept of
the way to the negatives.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attractor_lib.learning import Gradients, check_example, energy_rule
from attractor_lib.model import AttractorNetwork
from attractor_lib.pseudo_likelihood import gibbs_sweep

Sampler = Callable[[AttractorNetwork, Tensor, Tensor | None], Tensor]


@torch.no_grad()
def mean_energy(network: AttractorNetwork, state: Tensor) -> Tensor:
    """E = mean over examples of sum_i e_i(state), a scalar, for states (batch, N, d). Every pair of sites enters twice,
    once in the energy of either site."""
    return network.local_energies(state).sum(1).mean()


@torch.no_grad()
def contrast(network: AttractorNetwork, data: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor, Gradients]:
    """Both energies, and the gradient of their difference L = E(data) - E(negatives), the negatives held fixed:

        dL/dJ_ij = -<a_ij x_i x_j^T>_data + <a_ij x_i x_j^T>_negatives      (section "The rule" of the notebook)

    data, negatives: (batch, N, d) and (batch', N, d), tokens on the sphere; each enters by its own mean.
    Returns E(data), E(negatives) (scalars) and the gradients of the network's parameters by name. Raises ValueError for
    a state that the network refuses or an empty batch.
    """
    low, attracted = energy_rule(network, data)
    high, repelled = energy_rule(network, negatives)
    return low, high, {name: attracted[name] - repelled[name] for name in attracted}


def own_update(network: AttractorNetwork, state: Tensor, clamped: Tensor | None = None) -> Tensor:
    """One step of the network's own dynamics, ``network.update``: a deterministic sampler. Clamped sites stand."""
    new = network.update(state)
    return new if clamped is None else torch.where(clamped[..., None], state, new)


@dataclass(frozen=True)
class GibbsSampler:
    """One Gibbs sweep: every site in turn drawn from its exact conditional p(x_i | x_rest) proportional to
    exp(-beta e_i) (``pseudo_likelihood.gibbs_sweep``: one full-rank head).

    generator: on the network's device. It is not part of a checkpoint of the trainer, so that a training which is
        taken up again draws other negatives than an uninterrupted one.
    """

    generator: torch.Generator = field(repr=False)

    def __post_init__(self):
        if not isinstance(self.generator, torch.Generator):
            raise ValueError(f"generator must be a torch.Generator, got {self.generator!r}")

    def __call__(self, network: AttractorNetwork, state: Tensor, clamped: Tensor | None = None) -> Tensor:
        return gibbs_sweep(network, state, self.generator, clamped)


@dataclass(frozen=True)
class ContrastiveDivergence:
    """CD-k: a rule for ``trainer.train`` that lowers the energy of the data and raises that of the negatives.

        L = E(data) - E(negatives),     negatives = k steps of the sampler, started at the state that the rule is given

    With ``no_corruption`` that state is the example itself. The gradient is that of L with the negatives held fixed: no
    error passes through the k steps. As the conditionals of this network are in general those of no joint distribution,
    L is not a bound on a likelihood, and its gradient is the exact gradient of none; see the notebook.

    sample: a function (network, state, clamped) -> state, one step: ``own_update`` or a ``GibbsSampler``.
    n_steps: k >= 1.
    chains: if given, persistent chains (n, N, d): the negatives start from them instead and are written back into
        them (PCD). Like a sampler's generator they are not part of a checkpoint.
    record: if given, a list to which each call appends (E(data), E(negatives)), two floats.
    Raises ValueError for n_steps < 1, a sampler that is no function or changes the shape, and for chains together with
    sites that are not all to be restored.
    """

    sample: Sampler
    n_steps: int
    chains: Tensor | None = field(default=None, repr=False, compare=False)
    record: list | None = field(default=None, repr=False, compare=False)

    def __post_init__(self):
        if not callable(self.sample) or isinstance(self.sample, type):
            raise ValueError("sample must be a function (network, state, clamped) -> state, such as own_update or "
                             f"GibbsSampler(generator), got {self.sample!r}")
        if not isinstance(self.n_steps, int) or self.n_steps < 1:
            raise ValueError(f"n_steps must be a whole number >= 1, got {self.n_steps!r}")

    def __repr__(self) -> str:
        sample = getattr(self.sample, "__name__", None) or repr(self.sample)
        persistent = "" if self.chains is None else f", chains={len(self.chains)}"
        return f"ContrastiveDivergence({sample}, n_steps={self.n_steps}{persistent})"

    @torch.no_grad()
    def negatives(self, network: AttractorNetwork, state: Tensor, sites: Tensor | None = None) -> Tensor:
        """k steps from `state` (batch, N, d), or from the chains; sites outside `sites`, (N,) or (batch, N), stand."""
        clamped = None if sites is None or sites.all() else ~sites.expand(state.shape[:2])
        if self.chains is not None:
            if clamped is not None:
                raise ValueError("chains must run with every site free, got sites that are not to be restored")
            state = self.chains
        x = state
        for _ in range(self.n_steps):
            x = self.sample(network, x, clamped)
            if not isinstance(x, Tensor) or x.shape != state.shape:
                got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
                raise ValueError(f"sample must return states of shape {tuple(state.shape)}, got {got}")
        if self.chains is not None:
            self.chains.copy_(x)
        return x

    @torch.no_grad()
    def __call__(self, network: AttractorNetwork, state: Tensor, target: Tensor,
                 sites: Tensor | None = None) -> tuple[Tensor, Gradients]:
        """L and the gradients by name: data = `target`, negatives from `state`, both (batch, N, d) on the sphere."""
        sites = check_example(network, state, target, sites)
        low, high, gradients = contrast(network, target, self.negatives(network, state, sites))
        if self.record is not None:
            self.record.append((low.item(), high.item()))
        return low - high, gradients
