"""The equations as batched matrix products of torch, laid out by hand: for any network.

Keys are stored as one product for each site j leaves them, (N, batch, heads, [N,] r), j first. What
follows reads them where they lie, and at full rank the gradient overwrites them. Low rank has one
matrix of keys (N, r) for each example and head; full rank has one for each site i that acts, too.
Sums over examples go straight into the gradients, block by block.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from attractor_lib.states import blocks

COMPUTES = "field", "pooled", "prediction_rule", "energy_rule"


def serves(network, x: Tensor) -> bool:
    """Any network and state."""
    return True


def _sites_first(w: Tensor) -> Tensor:
    """(heads, [N,] N, r, d) copied to lie as (N, heads, [N,] r, d): a matrix for each site."""
    return w.movedim(-3, 0).contiguous()


class _Layout:
    """Queries, keys and sums of a network, as the products leave them."""

    def __init__(self, network):
        self.network, self.pairwise = network, network.couplings.pairwise
        c = network.couplings
        self.V = _sites_first(c.J if self.pairwise else c.V)
        self.U = None if self.pairwise else _sites_first(c.U)

    def queries(self, x: Tensor) -> Tensor:
        """q (batch, heads, N, r)."""
        return (
            self.network.couplings.queries(x)
            if self.pairwise
            else _acted(self.U, x).permute(1, 2, 0, 3)
        )

    def keys(self, x: Tensor) -> Tensor:
        """k (batch, heads, [N,] N, r), a view."""
        return _acted(self.V, x).movedim(0, -2)

    def rows(self, q: Tensor) -> Tensor:
        """(batch, heads, N, r) as a matrix for each set of keys: of one row, or of all N."""
        return q.reshape(-1, 1 if self.pairwise else q.shape[2], q.shape[-1])

    def products(self, q: Tensor, k: Tensor) -> Tensor:
        """q_i . k_ij (batch, heads, N, N)."""
        product = torch.bmm(self.rows(q), k.flatten(0, -3).transpose(1, 2))
        return product.view(*q.shape[:3], k.shape[-2])

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return (
            self.products(q, k).mul_(self.network.beta).masked_fill(~self.network.hears, -math.inf)
        )

    def pooled(self, a: Tensor, k: Tensor) -> Tensor:
        """o_i = sum_j a_ij k_ij (batch, heads, N, r)."""
        return torch.bmm(self.rows(a), k.flatten(0, -3)).view(*a.shape[:3], k.shape[-1])

    def keys_gradient(self, k: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
        """Sum over (c, v) of c_ij v_i (N, batch, heads, [N,] r); in place of pairwise keys."""
        if self.pairwise:
            dk = k.movedim(-2, 0)
            for n, (c, v) in enumerate(terms):
                c = c.movedim(-1, 0)[..., None]
                torch.mul(c, v, out=dk) if n == 0 else dk.addcmul_(c, v)
            return dk
        dk = sum(torch.bmm(c.flatten(0, 1).transpose(1, 2), v.flatten(0, 1)) for c, v in terms)
        return dk.view(-1, self.network.n_heads, *dk.shape[1:]).movedim(-2, 0)


def _acted(w: Tensor, x: Tensor) -> Tensor:
    """w_j x_j for all j, heads (and i): (N, batch, heads, [N,] r), one product a site."""
    return torch.bmm(x.transpose(0, 1), w.flatten(1, -2).transpose(1, 2)).unflatten(
        2, w.shape[1:-1]
    )


class _Sums:
    """Gradients of J, or of U and V, and of the bias, to which blocks of examples add."""

    def __init__(self, layout: _Layout):
        self.layout, self.dV = layout, torch.zeros_like(layout.V)
        self.dU = None if layout.pairwise else torch.zeros_like(layout.U)

    def add(self, s: Tensor, of_queries: list, of_keys: Tensor) -> None:
        """As ``couplings.gradient``; of_keys as `_Layout.keys_gradient` leaves it."""
        if not self.layout.pairwise:
            for o, y in of_queries:
                _add_outer(self.dU, o.permute(2, 0, 1, 3), y)
        _add_outer(self.dV, of_keys, s)

    def by_name(self) -> dict[str, Tensor]:
        c, V = self.layout.network.couplings, self.dV.movedim(0, -3).contiguous()
        return (
            c.chain_rule(J=V)
            if self.layout.pairwise
            else c.chain_rule(U=self.dU.movedim(0, -3).contiguous(), V=V)
        )


def _add_outer(total: Tensor, d: Tensor, s: Tensor) -> None:
    """total (N, ..., d) += sum over examples of d_j s_j^T; d (N, batch, ...), s (batch, N, d)."""
    total.flatten(1, -2).baddbmm_(d.flatten(2).transpose(1, 2), s.transpose(0, 1))


def field(network, x: Tensor) -> Tensor:
    """`AttractorNetwork.field` of a valid state x (batch, N, d)."""
    return torch.cat([network.read_out(o) for o in _pooled(network, x)])


def pooled(network, x: Tensor) -> Tensor:
    """`AttractorNetwork.pooled` of a valid state x (batch, N, d)."""
    return torch.cat([o.transpose(1, 2) for o in _pooled(network, x)])


def _pooled(network, x: Tensor):
    layout = _Layout(network)
    for (b,) in blocks(network, x):
        k = layout.keys(b)
        yield layout.pooled(network.weights(layout.scores(layout.queries(b), k)), k)


def prediction_rule(
    network, state: Tensor, target: Tensor, sites: Tensor
) -> tuple[Tensor, dict, Tensor]:
    """`prediction_rule` of a valid example: loss, gradients of the couplings, of the bias."""
    layout = _Layout(network)
    sums, loss, db = _Sums(layout), state.new_zeros(()), torch.zeros_like(network.bias)
    for s, x, chosen in blocks(network, state, target, sites):
        q, k = layout.queries(s), layout.keys(s)
        t = layout.scores(q, k)
        a = network.weights(t)
        o = layout.pooled(a, k)
        r = (network.read_out(o) - x) * chosen[..., None]
        loss += r.square().sum() / 2
        r = F.pad(r / len(state), (0, network.n_known))
        g = layout.queries(r)
        z = network.phi.response(t, a, layout.products(g, k)).mul_(network.beta)
        db += network.spins(r).sum(0)
        of_queries = [] if layout.pairwise else [(o, r), (layout.pooled(z, k), s)]
        sums.add(s, of_queries, layout.keys_gradient(k, (a, g), (z, q)))
    return loss / len(state), sums.by_name(), db


def energy_rule(
    network, state: Tensor, target: Tensor, sites: Tensor
) -> tuple[Tensor, dict, Tensor]:
    """`energy_rule` of a valid example: loss, gradients of the couplings, of the bias."""
    layout = _Layout(network)
    sums, loss, db = _Sums(layout), state.new_zeros(()), torch.zeros_like(network.bias)
    for s, x, chosen in blocks(network, state, target, sites):
        tokens = network.with_known(x, s)
        q, k = layout.queries(tokens), layout.keys(s)
        t = layout.scores(q, k)
        loss += (network.energies(t, x) * chosen).sum()
        a = (network.weights(t) / -len(state)).mul_(chosen[:, None, :, None])
        db -= (x * chosen[..., None]).sum(0) / len(state)
        sums.add(
            s,
            [] if layout.pairwise else [(layout.pooled(a, k), tokens)],
            layout.keys_gradient(k, (a, q)),
        )
    return loss / len(state), sums.by_name(), db
