"""Learning rules that are local in site and in time: closed forms, no autograd, nothing through layers or steps.

With query q_i, key k_ij, o_i = sum_j a_ij k_ij, residual r_i, g_i = U_i r_i (r_i itself at full rank) and
z_ij = beta a_ij (g_i . k_ij - g_i . o_i), the prediction rule is, as derived in notebook 03_learning_without_backprop,

    dL/dk_ij = a_ij g_i + z_ij q_i        what the loss asks of the key that site j shows to site i
    dL/dq_i  = sum_j z_ij k_ij            what it asks of the query (low rank only)
    dL/dU_i  = o_i r_i^T + dL/dq_i s_i^T,   dL/dJ_ij = dL/dk_ij s_j^T,   dL/dV_j = sum_i dL/dk_ij s_j^T

and the energy rule has dL/dk_ij = -a_ij q_i and dL/dq_i = -o_i in their place.
"""

import torch
from torch import Tensor

from attractor_lib.model import AttractorNetwork

Gradients = dict[str, Tensor]


@torch.no_grad()
def energy_rule(network: AttractorNetwork, state: Tensor) -> tuple[Tensor, Gradients]:
    """The paper's loss read literally: L = mean over examples of sum_i e_i(state).

        dL/dJ_ij = -a_ij x_i x_j^T        (descending it is an attention-weighted Hebbian rule)

    It is unbounded below in the couplings: hold their norm fixed while training (``TrainingConfig.coupling_norm``).

    state: (batch, N, d), tokens on the sphere. Returns the loss (a scalar) and the gradients of the network's
    parameters by name. Raises ValueError for a state that the network refuses or an empty batch.
    """
    _check_batch(network, state)
    loss, total = state.new_zeros(()), {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for x, in network.blocks(state):
        q, k = network.queries(x), network.keys(x)
        scores = network.scores(q, k)
        a = network.weights(scores)
        loss -= network.potential(scores).sum() / network.beta
        loss -= (network.bias * x).sum() + network.gamma / 2 * x.square().sum()
        total["bias"] -= x.sum(0)
        if network.rank is None:
            total["couplings"] -= _outer(network, torch.einsum("mhij,mhir->mhijr", a, q), x)
        else:
            total["V"] -= _outer(network, torch.einsum("mhij,mhir->mhjr", a, q), x)
            total["U"] -= torch.einsum("mhir,mia->hira", network.pooled(a, k), x)
    return loss / len(state), {name: g / len(state) for name, g in total.items()}


@torch.no_grad()
def prediction_rule(network: AttractorNetwork, state: Tensor, target: Tensor,
                    sites: Tensor | None = None) -> tuple[Tensor, Gradients]:
    """The field h(s), before projection and without gamma s, compared with the data:
    L = mean over examples of 1/2 sum_{i in sites} |r_i|^2, r = h(s) - x.

        dL/dJ_ij = [ a_ij r_i + beta a_ij (r_i . m_ij - r_i . sum_k a_ik m_ik) s_i ] s_j^T ,   m_ij = J_ij s_j

    state: s (batch, N, d), tokens on the sphere: the clean example, one with hidden or noisy tokens, or one that the
        network produced.
    target: x (batch, N, d), what the field is to equal; finite, any norm.
    sites: boolean, (N,) or (batch, N): the sites i that are predicted; None for all.

    Returns the loss (a scalar) and the gradients of the network's parameters by name. Raises ValueError for a state
    that the network refuses, a target or sites of another shape, NaN, or an empty batch.
    """
    sites = check_example(network, state, target, sites)
    loss, total = state.new_zeros(()), {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for s, x, chosen in network.blocks(state, target, sites):
        q, k = network.queries(s), network.keys(s)
        a = network.weights(network.scores(q, k))
        o = network.pooled(a, k)
        r = (network.output(o) - x) * chosen[..., None]
        g = r[:, None].expand_as(o) if network.rank is None else torch.einsum("hira,mia->mhir", network.U, r)
        u = torch.einsum(f"mhir,mh{network.pair}r->mhij", g, k)
        z = network.weights_gradient(a, u, mean=(g * o).sum(-1, keepdim=True))
        loss += r.square().sum() / 2
        total["bias"] += r.sum(0)
        if network.rank is None:  # c_ij g_i + z_ij q_i in one product: the messages are written once, not twice
            dk = torch.einsum("mhijc,mhicr->mhijr", torch.stack([a, z], -1), torch.stack([g, q], -2))
            total["couplings"] += _outer(network, dk, s)
        else:
            dk = torch.einsum("mhij,mhir->mhjr", a, g) + torch.einsum("mhij,mhir->mhjr", z, q)
            total["V"] += _outer(network, dk, s)
            total["U"] += torch.einsum("mhir,mia->hira", o, r)
            total["U"] += torch.einsum("mhir,mia->hira", network.pooled(z, k), s)
    return loss / len(state), {name: g / len(state) for name, g in total.items()}


def check_example(network: AttractorNetwork, state: Tensor, target: Tensor, sites: Tensor | None) -> Tensor:
    """The sites (batch, N) that a rule is to predict, once state, target and sites are found valid; else ValueError."""
    _check_batch(network, state)
    if (target.shape, target.dtype, target.device) != (state.shape, state.dtype, state.device):
        raise ValueError(f"target must be {state.dtype} of shape {tuple(state.shape)} on {state.device}, "
                         f"got {target.dtype} of shape {tuple(target.shape)} on {target.device}")
    if not target.isfinite().all():
        raise ValueError("target must be finite, got NaN or infinity")
    if sites is None:
        sites = torch.ones(state.shape[1], dtype=torch.bool, device=state.device)
    if sites.dtype != torch.bool or sites.shape not in (state.shape[:2], state.shape[1:2]) or sites.device != state.device:
        raise ValueError(f"sites must be boolean of shape {tuple(state.shape[1:2])} or {tuple(state.shape[:2])} on "
                         f"{state.device}, got {sites.dtype} of shape {tuple(sites.shape)} on {sites.device}")
    return sites.expand(state.shape[:2])


def _outer(network: AttractorNetwork, dk: Tensor, s: Tensor) -> Tensor:
    """sum over examples of dk_ij s_j^T: the gradient of J (full rank) or of V (low rank)."""
    return torch.einsum(f"mh{network.pair}r,mjb->h{network.pair}rb", dk, s)


def _check_batch(network: AttractorNetwork, state: Tensor) -> None:
    network.check(state, "state")
    if len(state) == 0:
        raise ValueError("state must hold at least one example, got an empty batch")
