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

from attractor_lib.model import AttractorNetwork, sites_first, sites_last

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
    loss, total = state.new_zeros(()), _zeros(network)
    U, V = network.matrices()
    for x, in network.blocks(state):
        q, k = network.queries(x, U), network.keys(x, V)
        scores = network.scores(q, k)
        a = network.weights(scores) / -len(state)
        loss -= network.potential(scores).sum() / network.beta
        loss -= (network.bias * x).sum() + network.gamma / 2 * x.square().sum()
        total["bias"] -= x.sum(0) / len(state)
        if network.rank is None:
            _add_outer(total["couplings"], _keys_gradient(network, k, (a, q)), x)
        else:
            _add_outer(total["U"], network.pooled(a, k).permute(2, 0, 1, 3), x)
            _add_outer(total["V"], _keys_gradient(network, k, (a, q)), x)
    return loss / len(state), _gradients(network, total)


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
    if path := network.fast_path(state):
        return path.prediction_rule(network, state, target, sites)
    loss, total = state.new_zeros(()), _zeros(network)
    U, V = network.matrices()
    for s, x, chosen in network.blocks(state, target, sites):
        q, k = network.queries(s, U), network.keys(s, V)
        a = network.weights(network.scores(q, k))
        o = network.pooled(a, k)
        r = (network.output(o) - x) * chosen[..., None]
        loss += r.square().sum() / 2
        r /= len(state)
        g = network.queries(r, U)
        u = network.products(g, k)
        z = network.weights_gradient(a, u, mean=(a * u).sum(-1, keepdim=True))
        total["bias"] += r.sum(0)
        if network.rank is None:
            _add_outer(total["couplings"], _keys_gradient(network, k, (a, g), (z, q)), s)
        else:
            _add_outer(total["U"], o.permute(2, 0, 1, 3), r)
            _add_outer(total["U"], network.pooled(z, k).permute(2, 0, 1, 3), s)
            _add_outer(total["V"], _keys_gradient(network, k, (a, g), (z, q)), s)
    return loss / len(state), _gradients(network, total)


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


def _keys_gradient(network: AttractorNetwork, k: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """dL/dk_ij (N, batch, heads, N, d): the sum over the terms (c, v) of c_ij v_i; dL/dk_j (N, batch, heads, r): also over i.

    The site j comes first. At full rank it overwrites the keys: it has their size, and they are in the cache.
    """
    if network.rank is None:
        dk = k.movedim(-2, 0)
        for n, (c, v) in enumerate(terms):
            c = c.movedim(-1, 0)[..., None]
            torch.mul(c, v, out=dk) if n == 0 else dk.addcmul_(c, v)
        return dk
    dk = sum(torch.bmm(c.flatten(0, 1).transpose(1, 2), v.flatten(0, 1)) for c, v in terms)
    return dk.view(-1, network.n_heads, *dk.shape[1:]).movedim(-2, 0)


def _add_outer(total: Tensor, d: Tensor, s: Tensor) -> None:
    """total (N, ..., d) += sum over examples of d_j s_j^T, for d (N, batch, ...) and s (batch, N, d)."""
    total.flatten(1, -2).baddbmm_(d.flatten(2).transpose(1, 2), s.transpose(0, 1))


def _zeros(network: AttractorNetwork) -> Gradients:
    acting = ("couplings",) if network.rank is None else ("U", "V")
    zeros = {name: network.bias.new_zeros(sites_first(getattr(network, name)).shape) for name in acting}
    return {**zeros, "bias": torch.zeros_like(network.bias)}


def _gradients(network: AttractorNetwork, total: Gradients) -> Gradients:
    return network.pull_back({name: g if name == "bias" else sites_last(g).contiguous() for name, g in total.items()})


def _check_batch(network: AttractorNetwork, state: Tensor) -> None:
    network.check(state, "state")
    if len(state) == 0:
        raise ValueError("state must hold at least one example, got an empty batch")
