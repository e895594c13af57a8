"""How concentrated tokens x are around given directions u: kappa of largest likelihood.

A model that predicts has a direction for each token, not a density. One von Mises-Fisher
distribution around each makes a density of it; what is fitted is kappa alone
(23_density_or_prediction), from the cosines x . u, in three ways::

    fit_concentration         one kappa for all
    fit_concentration_factor  kappa = c |h|, more where the field h = |h| u is longer
    fit_concentration_mixture a few kappas, each with the probability that it is the one

`AroundField` is all three for every site of a network.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from attractor_lib.distributions.von_mises_fisher import (
    log_normaliser,
    log_normaliser_and_ratio,
    mean_length,
)

_LARGEST_COSINE = 1 - 1e-9  # no kappa is the largest for tokens that are hit exactly


@torch.no_grad()
def fit_concentration(mean_cosine: Tensor, dim: int) -> Tensor:
    """kappa of largest likelihood for tokens whose cosine with their mean direction is r on
    average::

        d/dkappa mean log p = r - A_d(kappa) = 0 ;     kappa = 0 for r <= 0

    By Newton's method with A' = 1 - A^2 - (d - 1) A / kappa, from the bound below,
    r (d - 2) / (1 - r^2) <= kappa: A is concave, so no step goes too far.

    Args:
        mean_cosine: r below 1, of any shape, float32 or float64; each is a fit of its own.
        dim: d >= 2.

    Returns:
        kappa of r's shape and dtype. Rounding of r near 1 limits it, as kappa is about
        (d - 1) / (2 - 2 r).

    Raises:
        ValueError: for r of 1 or more, where no kappa is the largest, or NaN; for another dtype or
            d.
    """
    _check(mean_cosine, "mean_cosine")
    if mean_cosine.numel() and not mean_cosine.max() < 1:  # NaN fails too
        raise ValueError(
            f"mean_cosine must be below 1 for a finite kappa, got {mean_cosine.max():.6g}"
        )
    r = mean_cosine.double().clamp_min(0)
    return _rising_newton(
        lambda kappa: _mean_length_and_slope(kappa, dim), r, r * (dim - 2) / (1 - r.square())
    ).to(mean_cosine.dtype)


@torch.no_grad()
def fit_concentration_factor(length: Tensor, score: Tensor, dim: int) -> float:
    """c of largest likelihood for tokens x around fields h with kappa = c |h|, one c for all::

        d/dc mean log p = mean(x . h) - mean(|h| A_d(c |h|)) = 0 ;     c = 0 for mean(x . h) <= 0

    The likelihood is concave in c. Where all lengths are 1, c is `fit_concentration` of the mean
    score.

    Args:
        length: ``|h|`` >= 0, of any shape, float32 or float64.
        score: x . h, of that shape and dtype.
        dim: d >= 2.

    Raises:
        ValueError: for a score of another shape or dtype, or not finite; for a mean score that is
            not below the mean length, where no c is the largest; for another length or d.
    """
    _check(length, "length")
    if length.numel() and not (length.min() >= 0 and length.max() < math.inf):
        raise ValueError(
            f"length must be finite and >= 0, got values from {length.min():.3g} to "
            f"{length.max():.3g}"
        )
    if (score.shape, score.dtype) != (length.shape, length.dtype) or not score.isfinite().all():
        raise ValueError(
            f"score must be finite, {length.dtype} of shape {tuple(length.shape)} like length, got "
            f"{score.dtype} of shape {tuple(score.shape)}"
        )
    h, goal = length.double(), score.double().mean()
    if not goal < h.mean():
        raise ValueError(
            "score must be below length on average for a finite factor, got means of "
            f"{goal:.6g} and {h.mean():.6g}"
        )

    def mean_and_slope(c: Tensor) -> tuple[Tensor, Tensor]:
        a, slope = _mean_length_and_slope(c * h, dim)
        return (h * a).mean(), (h.square() * slope).mean()

    start = fit_concentration((goal / h.mean()).reshape(1), dim)[0] / h.max()
    return _rising_newton(mean_and_slope, goal.clamp_min(0), start).item()


@torch.no_grad()
def fit_concentration_mixture(
    cosine: Tensor, dim: int, n_components: int = 3, n_steps: int = 60
) -> tuple[Tensor, Tensor]:
    """A few concentrations around one direction, p(x) = sum_n q_n vMF(x; u, kappa_n), by EM::

        r_mn    = q_n exp(kappa_n t_m) / Z_d(kappa_n), divided by its sum over n
        q_n     = mean_m r_mn ,     A_d(kappa_n) = sum_m r_mn t_m / sum_m r_mn

    The likelihood falls in no step. It starts from n_components equal shares of the cosines in
    their order. A component that hits its tokens exactly has no largest kappa: its mean cosine is
    held at 1 - 1e-9.

    Args:
        cosine: t = x . u of n tokens, (n,), n >= n_components, float32 or float64.
        dim: d >= 2.
        n_components: how many.
        n_steps: of EM.

    Returns:
        The probabilities q and the concentrations kappa, (n_components,) each, float64.

    Raises:
        ValueError: for fewer tokens than components, or cosines that are not finite or of another
            dtype.
    """
    _check(cosine, "cosine")
    if cosine.ndim != 1 or not 1 <= n_components <= len(cosine) or not cosine.isfinite().all():
        raise ValueError(
            f"cosine must be finite, (n,) with n >= n_components = {n_components} >= 1, got shape "
            f"{tuple(cosine.shape)}"
        )
    t = cosine.double()
    share = torch.arange(len(t), device=t.device) * n_components // len(t)
    r = F.one_hot(share, n_components).double()[t.argsort().argsort()]
    for _ in range(n_steps):
        weight = r.sum(0)
        mean = (r * t[:, None]).sum(0) / weight.clamp_min(torch.finfo(t.dtype).tiny)
        kappa = fit_concentration(mean.clamp_max(_LARGEST_COSINE), dim)
        q = weight / len(t)
        r = _log_parts(t, q, kappa, dim).softmax(-1)
    return q, kappa


@torch.no_grad()
def mixture_log_density(cosine: Tensor, q: Tensor, kappa: Tensor, dim: int) -> Tensor:
    """log sum_n q_n vMF(x; u, kappa_n) of each token, in nats, for t = x . u (...).

    q and kappa are as from `fit_concentration_mixture`, (n_components,), or (N, n_components) for a
    fit of its own in each of the last N columns of t.
    """
    return _log_parts(cosine.to(kappa.dtype), q, kappa, dim).logsumexp(-1)


def _log_parts(t: Tensor, q: Tensor, kappa: Tensor, dim: int) -> Tensor:
    return q.log() + kappa * t[..., None] - log_normaliser(kappa, dim)


@dataclass(frozen=True)
class AroundField:
    """The densities around the field h_i of each site i, fitted by `AroundField.fit`.

    Attributes:
        kappa: of one kappa a site, (N,).
        factor: c_i of kappa_i = c_i ``|h_i|``, (N,).
        probabilities, kappas: of a few kappas a site, (N, n_components) each.
        dim: d.
    """

    kappa: Tensor
    factor: Tensor
    probabilities: Tensor
    kappas: Tensor
    dim: int

    @classmethod
    def fit(
        cls, field: Tensor, target: Tensor, sites: Tensor, n_components: int = 3, n_steps: int = 30
    ) -> "AroundField":
        """Each site's concentrations of largest likelihood.

        Args:
            field: h (batch, N, d), of any norm above 0.
            target: x (batch, N, d), tokens on the sphere, which h must not have seen.
            sites: boolean (batch, N): the tokens that count, n_components a site at least.
            n_components, n_steps: of the few kappas and their EM.
        """
        length, score = _around(field, target)
        columns = [(h[at], xh[at]) for h, xh, at in zip(length.mT, score.mT, sites.mT, strict=True)]
        dim = field.shape[-1]
        kappa = torch.stack([fit_concentration((xh / h).mean(), dim) for h, xh in columns])
        factor = kappa.new_tensor([fit_concentration_factor(h, xh, dim) for h, xh in columns])
        few = [fit_concentration_mixture(xh / h, dim, n_components, n_steps) for h, xh in columns]
        return cls(kappa, factor, *(torch.stack(of) for of in zip(*few, strict=True)), dim)

    def log_densities(self, field: Tensor, target: Tensor) -> dict[str, Tensor]:
        """log p(x_i) of tokens x around fields h, (batch, N, d) each, in nats: (batch, N) float64,
        by "one kappa", "kappa = c |h|" and "few kappas".
        """
        length, score = _around(field, target)
        by_length = self.factor * length
        return {
            "one kappa": self.kappa * score / length - log_normaliser(self.kappa, self.dim),
            "kappa = c |h|": self.factor * score - log_normaliser(by_length, self.dim),
            "few kappas": mixture_log_density(
                score / length, self.probabilities, self.kappas, self.dim
            ),
        }

    def mean(self, field: Tensor) -> Tensor:
        """E[x_i] = A_d(kappa_i) h_i / ``|h_i|`` with one kappa a site, (batch, N, d)."""
        return mean_length(self.kappa, self.dim)[:, None].to(field) * F.normalize(field, dim=-1)


def _around(field: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """|h| and x . h in float64, the cosine at most 1 - 1e-9: a token hit exactly bounds no
    kappa.
    """
    h, x = field.double(), F.normalize(target.double(), dim=-1)
    length = h.norm(dim=-1)
    return length, torch.minimum((h * x).sum(-1), _LARGEST_COSINE * length)


def _mean_length_and_slope(kappa: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """A_d(kappa) and its derivative, by its limit where rounding would leave nothing of it."""
    ratio = log_normaliser_and_ratio(kappa, dim)[1]
    a = kappa * ratio
    limit = (dim - 1) / (2 * kappa.clamp_min(1).square())
    return a, torch.where(kappa > 1e6, limit, 1 - a.square() - (dim - 1) * ratio)


def _rising_newton(function, goal: Tensor, start: Tensor) -> Tensor:
    """Where a rising, concave function has the value of the goal, from a start not beyond it."""
    x = start
    for _ in range(100):  # from far below each step doubles x; then digits double
        value, slope = function(x)
        step = ((goal - value) / slope.clamp_min(torch.finfo(x.dtype).tiny)).clamp_min(0)
        x = x + step
        if (step <= 1e-14 * x).all():
            break
    return x


def _check(values: Tensor, name: str) -> None:
    if not isinstance(values, Tensor) or values.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{name} must be a tensor of float32 or float64, got "
            f"{getattr(values, 'dtype', type(values).__name__)}"
        )
