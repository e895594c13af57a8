"""What the attractor network is compared with: torch's own layers, by backpropagation."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attractor_lib.learning import Gradients
from attractor_lib.states import exclude_self


class _TokenModel(nn.Module):
    """Linear embedding + learned positions -> the layer of a subclass -> linear read-out."""

    def __init__(self, n_sites: int, dim: int, width: int = 64, n_heads: int = 8, seed: int = 0):
        super().__init__()
        # torch's layers draw from the global generator only
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed, self.read_out = nn.Linear(dim, width), nn.Linear(width, dim)
            self.positions = nn.Parameter(0.3 * torch.randn(n_sites, width))
            self.build(width, n_heads)

    def forward(self, x: Tensor) -> Tensor:
        """Predicted tokens (batch, N, d) for tokens x (batch, N, d)."""
        return self.read_out(self.layer(self.embed(x) + self.positions))


class BareAttention(_TokenModel):
    """Embedding with positions, one standard attention layer, read-out. No MLP, no residual."""

    def build(self, width: int, n_heads: int) -> None:
        self.attention = nn.MultiheadAttention(width, n_heads, batch_first=True)

    def layer(self, z: Tensor) -> Tensor:
        return self.attention(z, z, z, need_weights=False)[0]


def _block(width: int, n_heads: int) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        width, n_heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )


class TransformerBlock(_TokenModel):
    """One transformer block: attention, MLP of 4 x width, residuals, layer norms first (GPT-2)."""

    def build(self, width: int, n_heads: int) -> None:
        self.block = _block(width, n_heads)

    def layer(self, z: Tensor) -> Tensor:
        return self.block(z)


class TransformerStack(_TokenModel):
    """Transformer blocks on top of each other, trained end to end.

    Args:
        n_layers: different blocks.
        n_loops: how often the state goes through all of them. With one layer and several loops the
            weights are tied over depth (a looped, or universal, transformer).
        last_norm: whether a layer norm follows the last block, as in GPT-2.
    """

    def __init__(
        self,
        *sizes: int,
        n_layers: int = 2,
        n_loops: int = 1,
        last_norm: bool = False,
        seed: int = 0,
    ):
        self.n_layers, self.n_loops, self.last_norm = n_layers, n_loops, last_norm
        super().__init__(*sizes, seed=seed)

    def build(self, width: int, n_heads: int) -> None:
        self.blocks = nn.ModuleList(_block(width, n_heads) for _ in range(self.n_layers))
        self.norm = nn.LayerNorm(width) if self.last_norm else nn.Identity()

    def layer(self, z: Tensor) -> Tensor:
        for _ in range(self.n_loops):
            for block in self.blocks:
                z = block(z)
        return self.norm(z)


class EnergyTransformer(_TokenModel):
    """The block of the Energy Transformer (Hoover et al., 2023).

    n_steps of descent on one energy of all tokens, by backpropagation through the steps::

        g = layer norm of z with a scalar gain,   Q_h = W^Q_h g,   K_h = W^K_h g
        E = -(1/beta) sum_h sum_i log sum_{j != i} exp(beta K_hj . Q_hi)
            - 1/2 sum_i |relu(xi g_i)|^2
        z <- z - step dE/dg

    with beta = 1/sqrt(width of a head), and xi of 4 x width memories. step starts at 0.1 and is
    learned.
    """

    n_steps = 4

    def build(self, width: int, n_heads: int) -> None:
        self.gain, self.shift = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(width))
        self.query, self.key = (
            nn.Parameter(width**-0.5 * torch.randn(n_heads, width // n_heads, width))
            for _ in range(2)
        )
        self.memories = nn.Parameter(width**-0.5 * torch.randn(4 * width, width))
        self.step = nn.Parameter(torch.tensor(0.1))

    def descent(self, g: Tensor) -> Tensor:
        """-dE/dg (batch, N, width)."""
        q, k = (torch.einsum("hrc,mic->mhir", w, g) for w in (self.query, self.key))
        beta = q.shape[-1] ** -0.5
        a = exclude_self(beta * (q @ k.mT)).softmax(-1)
        attention = torch.einsum("mhir,hrc->mic", a @ k, self.query) + torch.einsum(
            "mhir,hrc->mic", a.mT @ q, self.key
        )
        return attention + torch.relu(g @ self.memories.mT) @ self.memories

    def layer(self, z: Tensor) -> Tensor:
        for _ in range(self.n_steps):
            z = z + self.step * self.descent(self.gain * F.layer_norm(z, z.shape[-1:]) + self.shift)
        return z


class HopfieldLayer(nn.Module):
    """A modern Hopfield layer with learned patterns (Ramsauer et al., 2021)::

        prediction = sum_m softmax_m(beta r_m . x) y_m + b,   beta = sqrt(N)

    The whole example asks, patterns answer: n_patterns stored r_m to compare with and y_m to
    retrieve, each of the shape of an example (N, d).
    """

    def __init__(self, n_sites: int, dim: int, n_patterns: int = 256, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.stored = nn.Parameter(
            (n_sites * dim) ** -0.5 * torch.randn(n_patterns, n_sites * dim, generator=generator)
        )
        self.retrieved = nn.Parameter(
            (n_sites * dim) ** -0.5 * torch.randn(n_patterns, n_sites * dim, generator=generator)
        )
        self.bias = nn.Parameter(torch.zeros(n_sites * dim))
        self.beta = n_sites**0.5

    def forward(self, x: Tensor) -> Tensor:
        """Predicted tokens (batch, N, d) for tokens x (batch, N, d)."""
        a = (self.beta * x.flatten(1) @ self.stored.mT).softmax(-1)
        return (a @ self.retrieved + self.bias).view_as(x)


def backpropagation(
    model: nn.Module, state: Tensor, target: Tensor, sites: Tensor
) -> tuple[Tensor, Gradients]:
    """The loss of `prediction_rule` for any model, and autograd's gradients."""
    residual = (model(state) - target) * sites[..., None]
    loss = residual.square().sum() / (2 * len(state))
    names, parameters = zip(*model.named_parameters())
    return loss.detach(), dict(zip(names, torch.autograd.grad(loss, parameters)))
