"""Learning rules that are local in site and in time: closed forms, no autograd.

Derived in 03_learning_without_backprop. A rule is a function (network, state, target, sites) ->
(loss, gradients), the gradients by the names of the network's parameters.
"""

from collections.abc import Callable
from functools import wraps
from inspect import signature

import torch
from torch import Tensor, einsum
from torch.nn import functional as F

from attractor_lib.kernels import serving
from attractor_lib.states import blocks, check_example

Gradients = dict[str, Tensor]


def by_parameter(of_couplings: Gradients, db: Tensor) -> Gradients:
    """Gradients by the names of the network's parameters."""
    return {"bias": db, **{f"couplings.{name}": g for name, g in of_couplings.items()}}


def closed_form(equation: Callable) -> Callable:
    """A rule from its equation: the loss and gradients of a block of examples, summed over them.

    Input is checked, sums over blocks become means over examples, and where a kernel serves, it
    does all that. The equation returns the loss, the gradients of the couplings by name, and that
    of the bias.
    """

    @torch.no_grad()
    @wraps(equation)
    def rule(
        network, state: Tensor, target: Tensor | None = None, sites: Tensor | None = None
    ) -> tuple[Tensor, Gradients]:
        target = network.spins(state) if target is None else target
        sites = check_example(network, state, target, sites)
        if kernel := serving(network, state, equation.__name__):
            loss, of_couplings, db = getattr(kernel, equation.__name__)(
                network, state, target, sites
            )
        else:
            loss, of_couplings, db = _mean(
                [equation(network, *block) for block in blocks(network, state, target, sites)],
                len(state),
            )
        return loss, by_parameter(of_couplings, db)

    rule.__signature__ = signature(rule, follow_wrapped=False)
    return rule


def _mean(parts: list[tuple], n: int) -> tuple[Tensor, Gradients, Tensor]:
    loss, of_couplings, db = zip(*parts, strict=True)
    couplings = {name: sum(of[name] for of in of_couplings) / n for name in of_couplings[0]}
    return sum(loss) / n, couplings, sum(db) / n


@closed_form
def prediction_rule(
    network, s: Tensor, x: Tensor, sites: Tensor
) -> tuple[Tensor, Gradients, Tensor]:
    """The field compared with the data; with g_i = U_i r_i (r_i itself at full rank)::

        L    = mean over examples of 1/2 sum_{i in sites} |r_i|^2 ,     r = h(s) - x
        z_ij = beta a_ij (g_i . k_ij - sum_j' a_ij' g_i . k_ij')     how attention answers
        dL/dk_ij = a_ij g_i + z_ij q_i ,     dL/dq_i = sum_j z_ij k_ij

    At full rank, with m_ij = J_ij s_j, that is::

        dL/dJ_ij = [ a_ij r_i + beta a_ij (r_i . m_ij - r_i . sum_k a_ik m_ik) s_i ] s_j^T

    Args:
        network: an `AttractorNetwork`.
        state: s (batch, N, d), tokens on the sphere: the clean example, one with hidden or noisy
            tokens, or one that the network produced.
        target: x (batch, N, d), what the field is to equal; finite, any norm, without the
            components that are known. None for the state itself.
        sites: boolean, (N,) or (batch, N): the sites i that are predicted; None for all.

    Returns:
        The loss (a scalar) and the gradients of the network's parameters by name.

    Raises:
        ValueError: for a state that the network refuses, a target or sites of another shape, NaN,
            or an empty batch.
    """
    c = network.couplings
    q, k = c.queries(s), c.keys(s)
    t = network.scores(q, k)
    a = network.weights(t)
    o = einsum("mhij,mhijr->mhir", a, k)
    r = (network.read_out(o) - x) * sites[..., None]
    loss, db = r.square().sum() / 2, r.sum(0)
    r = F.pad(r, (0, network.n_known))  # nothing is asked of what is known
    g = c.queries(r)
    z = network.beta * network.phi.response(t, a, einsum("mhir,mhijr->mhij", g, k))
    dq = einsum("mhij,mhijr->mhir", z, k)
    return (loss, c.gradient(s, of_queries=[(o, r), (dq, s)], of_keys=[(a, g), (z, q)]), db)


@closed_form
def energy_rule(network, s: Tensor, x: Tensor, sites: Tensor) -> tuple[Tensor, Gradients, Tensor]:
    """The paper's loss read literally, each site's energy at its token x_i, the others at s::

        L = mean over examples of sum_{i in sites} e_i(x_i | s)
        dL/dJ_ij = -a_ij x_i s_j^T ,     a_ij at x_i

    Descending it is an attention-weighted Hebbian rule. It is unbounded below in the couplings:
    hold their norm fixed while training (``TrainingConfig.coupling_norm``).

    Args:
        network: an `AttractorNetwork`.
        state: s (batch, N, d), tokens on the sphere.
        target: x (batch, N, d), the tokens whose energy is lowered; None for the state itself.
        sites: boolean, (N,) or (batch, N): the sites i whose energy counts; None for all.

    Returns:
        The loss (a scalar) and the gradients of the network's parameters by name.

    Raises:
        ValueError: for a state that the network refuses, a target or sites of another shape, NaN,
            or an empty batch.
    """
    c = network.couplings
    tokens = network.with_known(x, s)
    q, k = c.queries(tokens), c.keys(s)
    t = network.scores(q, k)
    c_ij = -network.weights(t) * sites[:, None, :, None]
    o = einsum("mhij,mhijr->mhir", c_ij, k)
    loss = (network.energies(t, x) * sites).sum()
    return (
        loss,
        c.gradient(s, of_queries=[(o, tokens)], of_keys=[(c_ij, q)]),
        -(x * sites[..., None]).sum(0),
    )
