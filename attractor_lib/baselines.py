"""What the attractor network is compared with, made of torch's own layers and trained by backpropagation."""

import torch
from torch import Tensor, nn

from attractor_lib.learning import Gradients


class _TokenModel(nn.Module):
    """Linear embedding + learned positions -> the layer of a subclass -> linear read-out."""

    def __init__(self, n_sites: int, dim: int, width: int = 64, n_heads: int = 8, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # torch's layers draw from the global generator only
            torch.manual_seed(seed)
            self.embed, self.read_out = nn.Linear(dim, width), nn.Linear(width, dim)
            self.positions = nn.Parameter(0.3 * torch.randn(n_sites, width))
            self.build(width, n_heads)

    def forward(self, x: Tensor) -> Tensor:
        """Predicted tokens (batch, N, d) for tokens x (batch, N, d)."""
        return self.read_out(self.layer(self.embed(x) + self.positions))


class BareAttention(_TokenModel):
    """One standard attention layer between embedding with positions and read-out. No MLP, no residual."""

    def build(self, width: int, n_heads: int) -> None:
        self.attention = nn.MultiheadAttention(width, n_heads, batch_first=True)

    def layer(self, z: Tensor) -> Tensor:
        return self.attention(z, z, z, need_weights=False)[0]


class TransformerBlock(_TokenModel):
    """One full transformer block: attention, an MLP of 4 x width, residuals, and a layer norm before each, as in GPT-2."""

    def build(self, width: int, n_heads: int) -> None:
        self.block = nn.TransformerEncoderLayer(width, n_heads, 4 * width, dropout=0.0, activation="gelu",
                                                batch_first=True, norm_first=True)

    def layer(self, z: Tensor) -> Tensor:
        return self.block(z)


def backpropagation(model: nn.Module, state: Tensor, target: Tensor, sites: Tensor) -> tuple[Tensor, Gradients]:
    """The loss of `prediction_rule`, mean over examples of 1/2 sum_{i in sites} |r_i|^2, and autograd's gradients."""
    residual = (model(state) - target) * sites[..., None]
    loss = residual.square().sum() / (2 * len(state))
    names, parameters = zip(*model.named_parameters())
    return loss.detach(), dict(zip(names, torch.autograd.grad(loss, parameters)))
