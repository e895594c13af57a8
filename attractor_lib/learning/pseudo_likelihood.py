r"""The exact conditionals of a network with one head of full rank, to learn and sample with.

exp(-beta e_i) normalised over the sphere is a mixture of von Mises-Fisher distributions, one
component for each other site. With m_ij = J_ij x_j + b_i, kappa_ij = beta |m_ij|, and j != i
throughout,

::

    p(x_i | x_rest) = sum_j exp(beta x_i . m_ij) / sum_j Z_d(kappa_ij)
                    = sum_j w_ij vMF(x_i; m_ij / |m_ij|, kappa_ij)
    w_ij            = softmax_j log Z_d(kappa_ij)
    a_ij            = softmax_j beta x_i . m_ij      attention: component j's responsibility

as derived in 07_exact_pseudo_likelihood; where `hears` is another, j runs over the sites that i
hears. gamma drops out, since |x_i| = 1. Z_d and A_d are those of
``attractor_lib.distributions.von_mises_fisher``. Every function works in the dtype and on the
device of the network, and raises ValueError for a network with several heads or of low rank, where
the product over heads has no such normaliser, for one with another energy, for d < 2, and for a
state that the network refuses.
"""

import math

import torch
from torch import Tensor

from attractor_lib.distributions.von_mises_fisher import log_normaliser_and_ratio, sample
from attractor_lib.learning.rules import Gradients, by_parameter
from attractor_lib.model import AttractorNetwork
from attractor_lib.states import blocks, check_example, check_mask, project


@torch.no_grad()
def log_conditional(
    network: AttractorNetwork, state: Tensor, target: Tensor | None = None
) -> Tensor:
    """log p(target_i | state_rest) for each site i, (batch, N), a density on S^(d-1) in nats::

        log p = log sum_j exp(beta x_i . m_ij) - log sum_j Z_d(kappa_ij) ,   m_ij = J_ij s_j + b_i

    The sites are scored each by itself, given the state of the others. Uniform on the sphere is
    -log Z_d(0).

    Args:
        state: s (batch, N, d), tokens on the sphere. Site i does not see its own token.
        target: x (batch, N, d), tokens on the sphere; None for the state itself.
    """
    check_network(network)
    target = state if target is None else target
    _check_target(network, state, target, None)
    parts = []
    J = _by_partner(network)
    for s, x in blocks(network, state, target):
        m, log_z, _ = _components(network, J, s)
        parts.append(_scores(network, x, m).logsumexp(0) - log_z.logsumexp(0))
    return torch.cat(parts)


@torch.no_grad()
def predicted_mean(network: AttractorNetwork, state: Tensor) -> Tensor:
    """E[x_i | state_rest] = sum_j w_ij A_d(kappa_ij) m_ij / |m_ij|, (batch, N, d), in the sphere.

    The prediction of smallest squared error under the model. 1 - |E x_i|^2 is the variance that the
    model expects. A site does not see its own token.

    Args:
        state: (batch, N, d), tokens on the sphere.
    """
    check_network(network)
    network.check(state, "state")
    parts = []
    J = _by_partner(network)
    for (s,) in blocks(network, state):
        m, log_z, ratio = _components(network, J, s)
        parts.append(m.mul_((network.beta * log_z.softmax(0) * ratio)[..., None]).sum(0))
    return torch.cat(parts)


@torch.no_grad()
def pseudo_likelihood_rule(
    network: AttractorNetwork,
    state: Tensor,
    target: Tensor | None = None,
    sites: Tensor | None = None,
) -> tuple[Tensor, Gradients]:
    """Exact pseudo-likelihood, the data minus the model's own expectation::

        L        = mean over examples of - sum_{i in sites} log p(x_i | s_rest)
        dL/dm_ij = -beta [ a_ij x_i - w_ij A_d(kappa_ij) m_ij / |m_ij| ]
        dL/dJ_ij = dL/dm_ij s_j^T ,   dL/db_i = sum_j dL/dm_ij

    a_ij is taken at the target: the responsibility of component j for it. The model enters by its
    exact expectation, so nothing is sampled, and no bound on the couplings is needed. For
    ``train``, in place of ``prediction_rule``.

    Args:
        network: one head of full rank.
        state: s (batch, N, d), tokens on the sphere: the clean example, or one with hidden or noisy
            tokens.
        target: x (batch, N, d), tokens on the sphere; None for the state itself.
        sites: boolean, (N,) or (batch, N): the sites i that are predicted; None for all.

    Returns:
        The loss (a scalar, nats) and the gradients of the network's parameters by name.

    Raises:
        ValueError: besides, for a target or sites of another shape, or an empty batch.
    """
    check_network(network)
    target = state if target is None else target
    sites = _check_target(network, state, target, sites)
    J = _by_partner(network)
    loss, dJ, db = state.new_zeros(()), torch.zeros_like(J), torch.zeros_like(network.bias)
    for s, x, chosen in blocks(network, state, target, sites):
        m, log_z, ratio = _components(network, J, s)
        scores = _scores(network, x, m)
        loss -= ((scores.logsumexp(0) - log_z.logsumexp(0)) * chosen).sum()
        a = network.beta * scores.softmax(0) * chosen
        w = network.beta**2 * log_z.softmax(0) * ratio * chosen  # A / |m| = beta A / kappa
        dm = m.mul_(w[..., None]).addcmul_(a[..., None], x, value=-1)  # in the place of m
        dJ.baddbmm_(dm.flatten(2).transpose(1, 2), s.transpose(0, 1))
        db += dm.sum((0, 1))
    dJ = dJ.unflatten(1, network.bias.shape).transpose(0, 1)[None].contiguous()
    of_couplings = network.couplings.chain_rule(J=dJ / len(state))
    return loss / len(state), by_parameter(of_couplings, db / len(state))


@torch.no_grad()
def draw_site(
    network: AttractorNetwork, state: Tensor, site: int, generator: torch.Generator | None = None
) -> Tensor:
    """x_i for one site i, (batch, d), drawn from p(x_i | state_rest).

    A component j is drawn from w_ij, then its von Mises-Fisher distribution. Only the J_ij of that
    i act, so N calls multiply by as many couplings as one update.

    Args:
        state: (batch, N, d), tokens on the sphere.
        site: i, from 0 to N - 1.
        generator: on the network's device.
    """
    check_network(network)
    network.check(state, "state")
    if not 0 <= site < network.n_sites:
        raise ValueError(f"site must be from 0 to {network.n_sites - 1}, got {site}")
    others = network.hears[site]
    m = (
        torch.einsum("jab,mjb->mja", network.couplings.J[0, site, others], state[:, others])
        + network.bias[site]
    )
    log_z = log_normaliser_and_ratio(network.beta * m.norm(dim=-1), network.dim)[0]
    j = torch.multinomial(log_z.softmax(-1), 1, generator=generator)
    m = m.gather(1, j[..., None].expand(-1, -1, network.dim))[:, 0]
    return sample(project(m, otherwise=state[:, site]), network.beta * m.norm(dim=-1), generator)


@torch.no_grad()
def gibbs_sweep(
    network: AttractorNetwork,
    state: Tensor,
    generator: torch.Generator | None = None,
    clamped: Tensor | None = None,
) -> Tensor:
    """One sweep of the Gibbs sampler: sites 0 ... N - 1 in turn, each drawn from p(x_i | others).

    Its cost is that of N calls of `draw_site`, not of N updates. For N > 2 the conditionals are in
    general not those of one joint distribution, so what repeated sweeps settle to may depend on the
    order of the sites.

    Args:
        state: (batch, N, d), tokens on the sphere; it is left as it is.
        generator: on the network's device.
        clamped: boolean, (N,) or (batch, N): sites that keep their token.

    Returns:
        The new state (batch, N, d).

    Raises:
        ValueError: for `clamped` of another shape or dtype.
    """
    check_network(network)
    x = network.check(state, "state").clone()
    if clamped is None:
        clamped = torch.zeros(network.n_sites, dtype=torch.bool, device=x.device)
    check_mask(clamped, x, "clamped")
    for i in range(network.n_sites):
        held = clamped[..., i]
        if not held.all():
            x[:, i] = torch.where(
                held.expand(len(x))[:, None], x[:, i], draw_site(network, x, i, generator)
            )
    return x


def _by_partner(network: AttractorNetwork) -> Tensor:
    """J_ij for each j that sends, (N, N d, d): a product of one matrix gives all its messages."""
    return network.couplings.J[0].transpose(0, 1).flatten(1, 2)


def _components(network: AttractorNetwork, J: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """m_ij, log Z_d(kappa_ij), and A_d(kappa_ij) / kappa_ij, j first: (N, batch, N, [d]).

    log Z is -inf where i does not hear j.
    """
    m = (
        torch.bmm(s.transpose(0, 1), J.transpose(1, 2))
        .unflatten(2, network.bias.shape)
        .add_(network.bias)
    )
    log_z, ratio = log_normaliser_and_ratio(network.beta * m.norm(dim=-1), network.dim)
    return m, log_z.masked_fill(~network.hears.mT[:, None], -math.inf), ratio


def _scores(network: AttractorNetwork, x: Tensor, m: Tensor) -> Tensor:
    """beta x_i . m_ij, -inf where i does not hear j, j first: (N, batch, N)."""
    return (network.beta * (m * x).sum(-1)).masked_fill(~network.hears.mT[:, None], -math.inf)


def check_network(network: AttractorNetwork) -> None:
    """ValueError if the conditionals of the network have no exact normaliser here."""
    c = network.couplings
    if c.n_heads != 1 or not c.pairwise:
        raise ValueError(
            "network must have one head of full rank for its conditionals to be normalised "
            f"exactly, got {c}"
        )
    if network.n_known:
        raise ValueError(f"network must have n_known=0, got {network.n_known}")
    if not (network.phi.fused and network.space.unit):
        raise ValueError(
            f"network must have the log-sum-exp energy on the sphere, got {network.phi} and "
            f"{network.space}"
        )
    if network.hears.diagonal().any() or not network.all_hear:
        raise ValueError(
            "each site must hear some other and not itself for its conditional to be a mixture "
            "over others"
        )


def _check_target(
    network: AttractorNetwork, state: Tensor, target: Tensor, sites: Tensor | None
) -> Tensor:
    sites = check_example(network, state, target, sites)
    network.check(target, "target")
    return sites
