"""What the attractor network is compared with: torch's own layers, by backpropagation."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attractor_lib.causal import check_letters, known_letters
from attractor_lib.checks import check_whole
from attractor_lib.learning import Gradients
from attractor_lib.states import exclude_self


class _TokenModel(nn.Module):
    """Linear embedding + learned positions -> the layer of a subclass -> linear read-out."""

    def __init__(self, n_sites: int, dim: int, width: int = 64, n_heads: int = 8, seed: int = 0):
        super().__init__()
        self.n_heads = n_heads
        # torch's layers draw from the global generator only
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed, self.read_out = nn.Linear(dim, width), nn.Linear(width, dim)
            self.positions = nn.Parameter(0.3 * torch.randn(n_sites, width))
            self.build(width, n_heads)

    def forward(self, x: Tensor) -> Tensor:
        """Predicted tokens (batch, N, d) for tokens x (batch, N, d)."""
        return self.read_out(self.layer(self.embed(x) + self.positions))

    def extra_repr(self) -> str:
        return f"n_heads={self.n_heads}"


class BareAttention(_TokenModel):
    """Embedding with positions, one standard attention layer, read-out. No MLP, no residual."""

    def build(self, width: int, n_heads: int) -> None:
        self.attention = nn.MultiheadAttention(width, n_heads, batch_first=True)

    def layer(self, z: Tensor) -> Tensor:
        return self.attention(z, z, z, need_weights=False)[0]


def _block(width: int, n_heads: int, dropout: float = 0.0) -> nn.TransformerEncoderLayer:
    form = {"activation": "gelu", "batch_first": True, "norm_first": True}
    return nn.TransformerEncoderLayer(width, n_heads, 4 * width, dropout=dropout, **form)


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

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, n_loops={self.n_loops}"


class CausalStack(nn.Module):
    """Transformer blocks that read a text: each letter is predicted from those before it.

    Args:
        n_letters: V; a letter more stands for "before the text".
        context: the longest text.
        width, n_layers, n_heads: of the blocks; a layer norm follows the last one, and letters
            begin as small as positions, as in GPT-2.
        dropout: in the blocks, while training.
        seed: of the initial parameters.
    """

    def __init__(
        self,
        n_letters: int,
        context: int,
        width: int = 64,
        n_layers: int = 1,
        n_heads: int = 4,
        dropout: float = 0.0,
        seed: int = 0,
    ):
        super().__init__()
        self.n_letters, self.context, self.n_heads = n_letters, context, n_heads
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed = nn.Embedding(n_letters + 1, width)
            self.embed.weight.data.mul_(0.02)
            self.positions = nn.Parameter(0.02 * torch.randn(context, width))
            self.blocks = nn.ModuleList(_block(width, n_heads, dropout) for _ in range(n_layers))
            self.norm, self.read_out = nn.LayerNorm(width), nn.Linear(width, n_letters)

    def log_conditionals(self, letters: Tensor) -> Tensor:
        """log p(letter t | those before) (batch, T, V) of whole numbers (batch, T), T <= context.

        Raises:
            ValueError: for longer texts, and letters that are none.
        """
        length = check_letters(letters, self.n_letters).shape[1]
        if length > self.context:
            raise ValueError(f"letters must be at most {self.context} a text, got {length}")
        before = F.pad(letters.long(), (1, 0), value=self.n_letters)[:, :-1]
        z = self.embed(before) + self.positions[:length]
        later = nn.Transformer.generate_square_subsequent_mask(length, device=z.device)
        for block in self.blocks:
            z = block(z, src_mask=later.to(z), is_causal=True)
        return self.read_out(self.norm(z)).log_softmax(-1)

    def forward(self, letters: Tensor) -> Tensor:
        return self.log_conditionals(letters)

    def extra_repr(self) -> str:
        return f"context={self.context}, n_heads={self.n_heads}"


class NGram:
    """Counts of letters after the n - 1 letters before, with back-off (Witten and Bell)::

        p_n(v | c) = (count of v after c + T(c) p_{n-1}(v | c')) / (count of c + T(c))

    where c' leaves out c's first letter, T(c) is how many different letters follow c, and p_0 is
    uniform. After a c that was not seen p_n is p_{n-1}.

    Args:
        text: whole numbers (T,), counted; T >= 1.
        n: >= 1, and so small that (V + 1)^(n - 1) is a 64-bit number.
        n_letters: V.

    Raises:
        ValueError: for numbers out of range and letters that are none.
    """

    def __init__(self, text: Tensor, n: int, n_letters: int):
        check_whole("n", n, 1)
        if (n_letters + 1) ** (n - 1) >= 2**63:
            raise ValueError(f"n must be smaller for {n_letters} letters, got {n}")
        text = check_letters(text[None], n_letters, "text")[0].long()
        if not len(text):
            raise ValueError("text must hold at least one letter, got none")
        self.n, self.n_letters, self.tables = n, n_letters, []
        for known in range(n):
            contexts, which = self._keys(text[None], known)[0].unique(return_inverse=True)
            counts = torch.zeros(len(contexts), n_letters)
            counts.index_put_((which, text), torch.ones(()), accumulate=True)
            self.tables.append((contexts, counts))

    def _keys(self, letters: Tensor, known: int) -> Tensor:
        """The letters before each, as one number (batch, T)."""
        if not known:
            return torch.zeros_like(letters)
        before = known_letters(letters, known, self.n_letters)
        return (before * (self.n_letters + 1) ** torch.arange(known)).sum(-1)

    def log_conditionals(self, letters: Tensor) -> Tensor:
        """log p(letter t | those before): (batch, T, V)."""
        letters = check_letters(letters, self.n_letters).long()
        p = torch.full((*letters.shape, self.n_letters), 1 / self.n_letters)
        for known, (contexts, counts) in enumerate(self.tables):
            keys = self._keys(letters, known)
            at = torch.searchsorted(contexts, keys).clamp(max=len(contexts) - 1)
            found = counts[at] * (contexts[at] == keys)[..., None]
            kinds = (found > 0).sum(-1, keepdim=True)
            total = found.sum(-1, keepdim=True) + kinds
            p = torch.where(total > 0, (found + kinds * p) / total.clamp(min=1), p)
        return p.log()


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
        self.n_patterns = n_patterns

    def forward(self, x: Tensor) -> Tensor:
        """Predicted tokens (batch, N, d) for tokens x (batch, N, d)."""
        a = (self.beta * x.flatten(1) @ self.stored.mT).softmax(-1)
        return (a @ self.retrieved + self.bias).view_as(x)

    def extra_repr(self) -> str:
        return f"n_patterns={self.n_patterns}"


def backpropagation(
    model: nn.Module, state: Tensor, target: Tensor, sites: Tensor
) -> tuple[Tensor, Gradients]:
    """The loss of `prediction_rule` for any model, and autograd's gradients.

    Raises:
        ValueError: for an empty batch, and a target of another shape.
    """
    if target.shape != state.shape or not len(state):
        got = f"{tuple(state.shape)} and {tuple(target.shape)}"
        raise ValueError(f"state and target must have one shape (batch >= 1, N, d), got {got}")
    residual = (model(state) - target) * sites[..., None]
    loss = residual.square().sum() / (2 * len(state))
    names, parameters = zip(*model.named_parameters())
    return loss.detach(), dict(zip(names, torch.autograd.grad(loss, parameters)))


def likelihood(
    model: nn.Module, letters: Tensor, target: Tensor, sites: Tensor
) -> tuple[Tensor, Gradients]:
    """The loss of `causal_rule` for any model of texts, and autograd's gradients.

    Raises:
        ValueError: for another target, and where no letter counts.
    """
    if not (target is letters or torch.equal(target, letters)):
        raise ValueError("target must be the letters themselves, got others")
    if not sites.any():
        raise ValueError("at least one letter must count, got none")
    log_p = model.log_conditionals(letters).gather(-1, letters.long()[..., None])[..., 0]
    loss = -(log_p * sites).sum() / sites.sum()
    names, parameters = zip(*model.named_parameters())
    return loss.detach(), dict(zip(names, torch.autograd.grad(loss, parameters)))
