"""The von Mises-Fisher distribution on the sphere S^(d-1), |x| = |mu| = 1::

    p(x)       = exp(kappa mu . x) / Z_d(kappa)
    Z_d(kappa) = (2 pi)^(d/2) I_(d/2-1)(kappa) / kappa^(d/2-1)   (at kappa = 0 the sphere's surface)
    E[x]       = A_d(kappa) mu ,   A_d = d log Z_d / d kappa = I_(d/2)(kappa) / I_(d/2-1)(kappa)

I_nu is the modified Bessel function. It over- and underflows, so only logarithms and ratios are
computed, by two steps (07_exact_pseudo_likelihood). At an order mu = nu + n of at least 20, Debye's
uniform expansion, with r = sqrt(mu^2 + kappa^2) and p = mu / r::

    log(I_mu / kappa^mu) = r - mu log(mu + r) - log(2 pi r) / 2 + log sum_k u_k(p) / mu^k
    rho_mu = 1 / (mu + r) - [sum_k (u_k(p) / 2 + p u_k'(p)) / mu^k] / [r^2 sum_k u_k(p) / mu^k]

then down to nu, where the recurrence of the smooth ratio rho_nu = I_(nu+1) / (kappa I_nu) damps
every error::

    rho_(nu-1) = 1 / (2 nu + kappa^2 rho_nu)
    log(I_(nu-1) / kappa^(nu-1)) = log(I_nu / kappa^nu) - log rho_(nu-1)

Accuracy for kappa from 0 to 1e5 and d from 2 to 1,000, log Z relative to max(1, |log Z|) and A
relative to itself: 1e-13 in float64, 2e-6 in float32.
"""

import math
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from attractor_lib.checks import check_whole
from attractor_lib.states import check_norms

_LEAST_ORDER = 20  # of Debye's expansion
# The first that is left out is of the order of rounding.
_TERMS = {torch.float64: 11, torch.float32: 5}


def log_normaliser(kappa: Tensor, dim: int) -> Tensor:
    """log Z_d(kappa), of any shape, for kappa >= 0 (float32 or float64) and d = dim >= 2. Raises
    ValueError otherwise.
    """
    return log_normaliser_and_ratio(kappa, dim)[0]


def mean_length(kappa: Tensor, dim: int) -> Tensor:
    """A_d(kappa) = ``|E[x]|``, from 0 at kappa = 0 to 1.

    Args:
        kappa: at least 0, float32 or float64.
        dim: d >= 2.

    Raises:
        ValueError: for anything else.
    """
    return kappa * log_normaliser_and_ratio(kappa, dim)[1]


@torch.no_grad()
def log_normaliser_and_ratio(kappa: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """log Z_d(kappa) and A_d(kappa) / kappa (1/d at kappa = 0), for the cost of one of them."""
    _check(kappa, dim)
    nu = dim / 2 - 1
    steps = max(0, math.ceil(_LEAST_ORDER - nu))
    mu = nu + steps
    squared = kappa.square()
    r = (squared + mu**2).sqrt()
    beyond = squared / (r + mu)  # r - mu, without cancellation
    u, v = _debye(mu / r, mu)
    rho = 1 / (mu + r) - v / (u * r.square())
    # What is constant in kappa is summed apart, in double precision: in float32 it would drown the
    # rest.
    constant = (
        dim / 2 * math.log(2 * math.pi)
        + mu
        - mu * math.log(2 * mu)
        - math.log(2 * math.pi * mu) / 2
    )
    varying = beyond - mu * (beyond / (2 * mu)).log1p() - (r / mu).log() / 2 + u.log()
    for n in range(steps):
        above = 2 * (mu - n)
        rho = 1 / (above + squared * rho)
        constant, varying = constant + math.log(above), varying - (above * rho).log()
    return varying + constant, rho


@torch.no_grad()
def sample(direction: Tensor, kappa: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One draw (..., d) for each mean direction (..., d) and concentration kappa (...), >= 0.

    By rejection: a uniform vector y is pushed towards the direction by a Moebius map of its cosine
    t = y . mu to w = (x_0 + t) / (1 + x_0 t), and kept with probability
    exp(kappa (w - x_0)) [(1 - x_0 w) / (1 - x_0^2)]^(d-1). This is Wood's algorithm, whose beta
    variate is the cosine of a uniform vector; kappa = 0 keeps every one. dtype and device are the
    direction's.

    Raises:
        ValueError: for a kappa of another shape, dtype or device, negative or not finite, a
            direction off the sphere, or d < 2.
    """
    shape, dtype, device = direction.shape[:-1], direction.dtype, direction.device
    if direction.ndim == 0 or (kappa.shape, kappa.dtype, kappa.device) != (shape, dtype, device):
        raise ValueError(
            f"kappa must be {dtype} of shape {tuple(shape)} on {device} like direction, "
            f"got {kappa.dtype} of shape {tuple(kappa.shape)} on {kappa.device}"
        )
    dim = direction.shape[-1]
    _check(kappa, dim)
    check_norms(direction, "direction")
    mean, k = direction.reshape(-1, dim), kappa.reshape(-1)
    b = (dim - 1) / (2 * k + (4 * k.square() + (dim - 1) ** 2).sqrt())
    # x_0, 1 - x_0, 1 - x_0^2
    x0, to_x0, to_x0_squared = (1 - b) / (1 + b), 2 * b / (1 + b), 4 * b / (1 + b).square()
    drawn, left = torch.empty_like(mean), torch.arange(len(mean), device=device)
    draw = {"generator": generator, "dtype": dtype, "device": device}
    while len(left):
        y = torch.randn((len(left), dim), **draw)
        y = y / y.norm(dim=-1, keepdim=True)
        t = (y * mean[left]).sum(-1).clamp(-1, 1)
        tangent = y - t[:, None] * mean[left]
        # 1 - w, without cancellation
        to_w = to_x0[left] * (1 - t) / (to_x0[left] + x0[left] * (1 + t))
        x = (1 - to_w)[:, None] * mean[left] + (to_w * (2 - to_w)).sqrt()[:, None] * _unit(tangent)
        log_kept = (
            k[left] * (to_x0[left] - to_w)
            + (dim - 1) * ((to_x0[left] + x0[left] * to_w) / to_x0_squared[left]).log()
        )
        kept = torch.rand(len(left), **draw).log() < log_kept
        kept |= k[left] == 0
        drawn[left[kept]] = _unit(x[kept])
        left = left[~kept]
    return drawn.view(direction.shape)


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


def _check(kappa: Tensor, dim: int) -> None:
    check_whole("dim", dim, 2)
    if not isinstance(kappa, Tensor) or kappa.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            "kappa must be a tensor of float32 or float64, got "
            f"{getattr(kappa, 'dtype', type(kappa).__name__)}"
        )
    if kappa.numel() and not (kappa.min() >= 0 and kappa.max() < math.inf):  # NaN fails too
        raise ValueError(
            f"kappa must be finite and >= 0, got values from {kappa.min():.3g} to {kappa.max():.3g}"
        )


def _debye(p: Tensor, mu: float) -> tuple[Tensor, Tensor]:
    """sum_k u_k(p) / mu^k and sum_k (u_k(p) / 2 + p u_k'(p)) / mu^k, each as one polynomial in
    p.
    """
    u, v = torch.zeros_like(p), torch.zeros_like(p)
    for c_u, c_v in reversed(_polynomials(mu, _TERMS[p.dtype])):
        u.mul_(p).add_(c_u)
        v.mul_(p).add_(c_v)
    return u, v


@lru_cache
def _polynomials(mu: float, terms: int) -> list[tuple[float, float]]:
    """The coefficients of p^0, p^1, ... in the two sums over so many k."""
    u, v = ([0.0] * (3 * terms - 2) for _ in range(2))
    for k, row in enumerate(_coefficients()[:terms]):
        for n, (c_u, c_v) in enumerate(row):
            u[k + 2 * n] += c_u / mu**k
            v[k + 2 * n] += c_v / mu**k
    return list(zip(u, v, strict=True))


@lru_cache
def _coefficients() -> list[list[tuple[float, float]]]:
    """For each k, the coefficients of p^k, p^(k+2), ..., p^(3k) in two polynomials, exactly.

    They are u_k(p) and u_k(p) / 2 + p u_k'(p), from::

        u_(k+1)(p) = p^2 (1 - p^2) u_k'(p) / 2 + (1/8) int_0^p (1 - 5 s^2) u_k(s) ds ,   u_0 = 1
    """
    rows, u = [], [Fraction(1)]
    for k in range(max(_TERMS.values())):
        rows.append([(float(c), float(c * (Fraction(1, 2) + k + 2 * n))) for n, c in enumerate(u)])
        following = [Fraction(0)] * (len(u) + 1)
        for n, c in enumerate(u):
            e = k + 2 * n  # u_k holds c p^e
            following[n] += c * (Fraction(e, 2) + Fraction(1, 8 * (e + 1)))
            following[n + 1] -= c * (Fraction(e, 2) + Fraction(5, 8 * (e + 3)))
        u = following
    return rows
