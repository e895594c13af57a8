"""Sources of letters whose probabilities are known, so that a model can be told from the best one.

Each has ``sample(n, length, generator)``, texts (n, length), and ``log_conditionals(letters)``, the
true log p(letter t | those before) (batch, T, n_letters). No model can surpass its mean at the
letters themselves, which is minus the entropy of a letter, up to sampling.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from attractor_lib.causal import check_letters, known_letters
from attractor_lib.checks import check_number, check_whole


class MarkovSource:
    """Each letter depends on the `order` letters before it, by a table drawn at random.

    Args:
        n_letters: V.
        order: of the chain.
        sharpness: rows of the table are softmax(sharpness times Gaussian numbers).
        seed: of the table.

    Attributes:
        table: (V + 1, ... V + 1, V), log probabilities by the letters before, the nearest first; V
            stands for "before the text".
    """

    def __init__(self, n_letters: int, order: int, sharpness: float = 2.0, seed: int = 0):
        for name, value, least in (("n_letters", n_letters, 2), ("order", order, 1)):
            check_whole(name, value, least)
        self.n_letters, self.order = n_letters, order
        shape = (n_letters + 1,) * order + (n_letters,)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        self.table = (sharpness * drawn).log_softmax(-1)

    def sample(self, n: int, length: int, generator: torch.Generator) -> Tensor:
        """Texts (n, length)."""
        text = torch.full((n, self.order + length), self.n_letters)
        for t in range(self.order, self.order + length):
            before = text[:, t - self.order : t].flip(-1).unbind(-1)
            text[:, t] = self.table[before].exp().multinomial(1, generator=generator)[:, 0]
        return text[:, self.order :]

    def log_conditionals(self, letters: Tensor) -> Tensor:
        """The true ones, in float64."""
        check_letters(letters, self.n_letters)
        return self.table[known_letters(letters, self.order, self.n_letters).unbind(-1)]


@dataclass(frozen=True)
class CopySource:
    """A letter is the one `lag` places before it with probability 1 - error + error/V, else any.

    No n-gram shorter than the lag knows anything of it.

    Args:
        n_letters: V.
        lag: how far back.
        error: how often a letter is drawn afresh, 0 < error <= 1.
    """

    n_letters: int
    lag: int
    error: float = 0.1

    def __post_init__(self):
        check_whole("n_letters", self.n_letters, 2)
        check_whole("lag", self.lag, 1)
        check_number("error", self.error, 0, 1, open_low=True)

    def sample(self, n: int, length: int, generator: torch.Generator) -> Tensor:
        """Texts (n, length)."""
        text = torch.randint(self.n_letters, (n, length), generator=generator)
        afresh = torch.rand(n, length, generator=generator) < self.error
        for t in range(self.lag, length):
            text[:, t] = torch.where(afresh[:, t], text[:, t], text[:, t - self.lag])
        return text

    def log_conditionals(self, letters: Tensor) -> Tensor:
        """The true ones, in float64."""
        letters = check_letters(letters, self.n_letters).long()
        each = self.error / self.n_letters
        p = torch.full((*letters.shape, self.n_letters), each, dtype=torch.float64)
        p[:, self.lag :].scatter_(-1, letters[:, : -self.lag, None], 1 - self.error + each)
        p[:, : self.lag] = 1 / self.n_letters
        return p.log()
