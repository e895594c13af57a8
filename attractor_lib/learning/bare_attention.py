"""A closed form for bare attention too: the gradient of its one layer, written out by hand.

Derived in 15_linear_predictor. It is the chain rule, of course; what makes it short is that there
is no depth and no time for an error to pass through.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from attractor_lib.baselines import BareAttention
from attractor_lib.learning.rules import Gradients
from attractor_lib.states import check_mask


@torch.no_grad()
def bare_attention_rule(
    model: BareAttention, state: Tensor, target: Tensor | None = None, sites: Tensor | None = None
) -> tuple[Tensor, Gradients]:
    """The prediction of bare attention compared with the data; for each head, beta = 1/sqrt(r)::

        z_i = E s_i + e + p_i ,    q, k, v = W z + w
        o_i = sum_j a_ij v_j ,     a_ij = softmax_j(beta q_i . k_j)
        y_i = O o_i + o0 ,         h_i = R y_i + r0
        L   = mean over examples of 1/2 sum_{i in sites} |r_i|^2 ,     r = h(s) - x

        g_i  = O^T R^T r_i          the residual at a site's own pooled values
        z_ij = beta a_ij (g_i . v_j - sum_k a_ik g_i . v_k)     how attention answers
        dq_i = sum_j z_ij k_j ,   dk_j = sum_i z_ij q_i ,   dv_j = sum_i a_ij g_i

    and every matrix gets the product of what it reads and what is asked of its output. Unlike the
    prediction rule it is not local in site: dk_j and dv_j sum over who listens, and all sites share
    the matrices.

    Args:
        model: a `BareAttention`.
        state: s (batch, N, d).
        target: x (batch, N, d), what the prediction is to equal; None for the state itself.
        sites: boolean, (N,) or (batch, N): the sites i that are predicted; None for all.

    Returns:
        The loss (a scalar) and the gradients of the model's parameters by name.

    Raises:
        ValueError: for an empty batch, or a state, target or sites of another shape.
    """
    x = state if target is None else target
    N = len(model.positions)
    if state.ndim != 3 or len(state) == 0 or state.shape[1] != N or x.shape != state.shape:
        raise ValueError(
            f"state and target must be of one shape (batch >= 1, {N}, d), got "
            f"{tuple(state.shape)} and {tuple(x.shape)}"
        )
    if sites is None:
        sites = torch.ones(N, dtype=torch.bool, device=state.device)
    sites = check_mask(sites, state, "sites").expand(state.shape[:2])
    layer, n_heads = model.attention, model.attention.num_heads
    z = model.embed(state) + model.positions
    q, k, v = _by_head(F.linear(z, layer.in_proj_weight, layer.in_proj_bias), n_heads)
    beta = q.shape[-1] ** -0.5
    a = (beta * (q @ k.mT)).softmax(-1)
    o = _joined(a @ v)
    y = layer.out_proj(o)
    r = (model.read_out(y) - x) * sites[..., None]
    loss, r = r.square().sum() / (2 * len(state)), r / len(state)
    dy = r @ model.read_out.weight
    g = dy @ layer.out_proj.weight
    (g_head,) = _by_head(g, n_heads, parts=1)
    response = g_head @ v.mT
    response = beta * a * (response - (a * response).sum(-1, keepdim=True))
    asked = response @ k, response.mT @ q, a.mT @ g_head
    dqkv = torch.cat([_joined(part) for part in asked], -1)
    dz = dqkv @ layer.in_proj_weight
    return loss, {
        "positions": dz.sum(0),
        **_of_linear("embed.weight", "embed.bias", state, dz),
        **_of_linear("read_out.weight", "read_out.bias", y, r),
        **_of_linear("attention.in_proj_weight", "attention.in_proj_bias", z, dqkv),
        **_of_linear("attention.out_proj.weight", "attention.out_proj.bias", o, dy),
    }


def _by_head(values: Tensor, n_heads: int, parts: int = 3) -> tuple[Tensor, ...]:
    """(batch, N, parts * D) to `parts` of (batch, heads, N, D / heads)."""
    return values.unflatten(-1, (parts, n_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def _joined(values: Tensor) -> Tensor:
    """(batch, heads, N, r) to (batch, N, heads * r)."""
    return values.transpose(1, 2).flatten(2)


def _of_linear(weight: str, bias: str, inputs: Tensor, asked: Tensor) -> Gradients:
    """The gradients of a linear map: what is asked of its outputs, by what it reads."""
    inputs, asked = inputs.flatten(0, 1), asked.flatten(0, 1)
    return {weight: asked.mT @ inputs, bias: asked.sum(0)}
