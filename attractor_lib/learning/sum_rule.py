r"""All partners together: the classical pseudo-likelihood of vector spins, beside the mixture.

With the plain sum of messages in place of attention, h_i = sum_j J_ij x_j + b_i over the j that i
hears, the conditional is one von Mises-Fisher distribution around it, exactly normalised
(23_density_or_prediction)::

    p(x_i | x_rest) = exp(beta x_i . h_i) / Z_d(kappa_i) ,     kappa_i = beta |h_i|

With J_ij = J_ji^T these are the conditionals of one joint distribution, p proportional to
exp(beta/2 sum_ij x_i . J_ij x_j), and their product is its pseudo-likelihood (Besag 1975). The
network is one of ``pseudo_likelihood``, with one head of full rank; its attention plays no part.
"""

import torch
from torch import Tensor

from attractor_lib.distributions.von_mises_fisher import log_normaliser_and_ratio
from attractor_lib.learning.pseudo_likelihood import check_network
from attractor_lib.learning.rules import Gradients, by_parameter
from attractor_lib.model import AttractorNetwork
from attractor_lib.states import check_example


@torch.no_grad()
def sum_field(network: AttractorNetwork, state: Tensor) -> Tensor:
    """h_i = sum over the j that i hears of J_ij s_j, + b_i, for s (batch, N, d): (batch, N, d)."""
    check_network(network)
    J = network.couplings.J[0] * network.hears[..., None, None]
    return torch.einsum("ijab,mjb->mia", J, network.check(state)) + network.bias


@torch.no_grad()
def sum_log_conditional(network: AttractorNetwork, state: Tensor, target: Tensor) -> Tensor:
    """log p(target_i | state_rest) for each site, (batch, N), a density on S^(d-1) in nats."""
    check_example(network, state, network.check(target, "target"), None)
    h = network.beta * sum_field(network, state)
    return (target * h).sum(-1) - log_normaliser_and_ratio(h.norm(dim=-1), network.dim)[0]


@torch.no_grad()
def sum_mean(network: AttractorNetwork, state: Tensor) -> Tensor:
    """E[x_i | state_rest] = A_d(kappa_i) h_i / |h_i|, (batch, N, d), inside the sphere."""
    h = network.beta * sum_field(network, state)
    return log_normaliser_and_ratio(h.norm(dim=-1), network.dim)[1][..., None] * h


@torch.no_grad()
def sum_rule(
    network: AttractorNetwork,
    state: Tensor,
    target: Tensor | None = None,
    sites: Tensor | None = None,
) -> tuple[Tensor, Gradients]:
    """Pseudo-likelihood with all partners together::

        L        = mean over examples of - sum_{i in sites} log p(x_i | s_rest)
        dL/dh_i  = -beta [ x_i - A_d(kappa_i) h_i / |h_i| ] = dL/db_i
        dL/dJ_ij = dL/dh_i s_j^T

    Args:
        network: one head of full rank.
        state: s (batch, N, d), tokens on the sphere.
        target: x (batch, N, d), tokens on the sphere; None for the state itself.
        sites: boolean, (N,) or (batch, N): the sites i that are predicted; None for all.

    Returns:
        The loss (a scalar, nats) and the gradients of the network's parameters by name.

    Raises:
        ValueError: for another network, or an example that is not as above.
    """
    check_network(network)
    target = state if target is None else network.check(target, "target")
    sites = check_example(network, state, target, sites)
    h = network.beta * sum_field(network, state)
    log_z, ratio = log_normaliser_and_ratio(h.norm(dim=-1), network.dim)
    loss = ((log_z - (target * h).sum(-1)) * sites).sum() / len(state)
    push = network.beta * (ratio[..., None] * h - target) * sites[..., None] / len(state)
    dJ = torch.einsum("mia,mjb->ijab", push, state) * network.hears[..., None, None]
    of_couplings = network.couplings.chain_rule(J=dJ[None])
    return loss, by_parameter(of_couplings, push.sum(0))
