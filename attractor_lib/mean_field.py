"""Mean field of Hopfield networks of vector spins: first step, capacity, and the whole transient.

N sites, P = alpha N random patterns, N to infinity at a fixed load alpha (patterns per *site*). All
is derived in 17_mean_field. Two averages over h = kappa e + z, z standard normal in R^d and e a
unit vector, carry the statics; each is one integral over an angle::

    1/|h| = sqrt(2/pi) int_0^inf exp(-s^2 |h|^2 / 2) ds ,     s = tan(theta)
    E[h.e/|h|] = kappa sqrt(2/pi) int_0^{pi/2} exp(-kappa^2 sin^2(theta) / 2) cos^d(theta) dtheta
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from attractor_lib.checks import check_number, check_whole
from attractor_lib.states import check_norms, project

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(120)


def _angular(kappa: float, dim: int, factor) -> float:
    """sqrt(2/pi) int_0^{pi/2} factor(sin^2 theta) exp(-kappa^2 sin^2(theta) / 2) cos^d(theta)."""
    end = min(math.pi / 2, 14 / math.sqrt(kappa**2 + dim))  # beyond it the rest is below 1e-15
    theta = end / 2 * (_NODES + 1)
    s2 = np.sin(theta) ** 2
    values = factor(s2) * np.exp(-(kappa**2) * s2 / 2) * np.cos(theta) ** dim
    return math.sqrt(2 / math.pi) * end / 2 * float(_WEIGHTS @ values)


def mean_alignment(kappa: float, dim: int) -> float:
    """E[n . e] of n = P[kappa e + z], z standard normal in R^d::

        A_d(kappa) = kappa sqrt(2/pi) int_0^{pi/2} exp(-kappa^2 sin^2(theta)/2) cos^d(theta) dtheta

    It rises from 0 to 1; A_1 = erf(kappa / sqrt 2), and kappa / sqrt(kappa^2 + d) for large d.

    Args:
        kappa: signal over the standard deviation of the noise in one component, >= 0.
        dim: d >= 1.

    Raises:
        ValueError: for other numbers.
    """
    check_number("kappa", kappa, 0)
    check_whole("dim", dim, 1)
    return kappa * _angular(kappa, dim, np.ones_like)


def mean_response(kappa: float, dim: int) -> float:
    """(1/d) E tr dn/dh of n = P[h], h = kappa e + z: (1 - 1/d) E[1/|h|], written for all d::

        c_d(kappa) = (1/d) sqrt(2/pi) int_0^{pi/2} exp(-kappa^2 sin^2(theta)/2) cos^d(theta)
                                                   [d - kappa^2 sin^2(theta)] dtheta

    At d = 1 it is sqrt(2/pi) exp(-kappa^2/2), the mean of the derivative 2 delta(h) of a sign.

    Args, Raises: as for `mean_alignment`.
    """
    check_number("kappa", kappa, 0)
    check_whole("dim", dim, 1)
    return _angular(kappa, dim, lambda s2: dim - kappa**2 * s2) / dim


def first_step(m0: float, load: float, dim: int) -> float:
    """Overlap after one update from an overlap m0, else random, without a self-coupling::

        h = m0 xi + (sqrt(alpha)/d) z ,     m(1) = E[P[h] . xi] = A_d(m0 d / sqrt(alpha))

    Args:
        m0: overlap of every site with its pattern, 0 to 1.
        load: alpha > 0 [patterns per site].
        dim: d >= 1.

    Raises:
        ValueError: for other numbers.
    """
    check_number("m0", m0, 0, 1)
    check_number("load", load, 0, open_low=True)
    check_whole("dim", dim, 1)
    return mean_alignment(m0 * dim / math.sqrt(load), dim)


def denoising_load(m0: float, dim: int) -> float:
    """alpha*: the load up to which the first update raises the overlap, m(1) > m0::

        A_d(kappa) = m0 ,     alpha* = (m0 d / kappa)^2

    For large d it is d (1 - m0^2).

    Args:
        m0: overlap of the start, above 0 and below 1.
        dim: d >= 1.

    Returns:
        alpha* [patterns per site].

    Raises:
        ValueError: for other numbers.
    """
    check_number("m0", m0, 0, 1, open_low=True)
    check_whole("dim", dim, 1)
    if m0 == 1:
        raise ValueError("m0 must be below 1, where no update can raise the overlap, got 1")
    kappa = _bisect(lambda k: mean_alignment(k, dim) - m0, 0.0, 1e6)
    return (m0 * dim / kappa) ** 2


def _bisect(f, low: float, high: float) -> float:
    """Where f changes sign between low and high."""
    falls = f(high) <= 0  # asked at the end where f is never zero
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (f(middle) > 0) == falls else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Retrieval:
    """The fixed point near a pattern.

    Attributes:
        m: overlap with the pattern.
        response: C = (1/d) E tr dx/dh, below 1.
        noise: sigma, standard deviation of the crosstalk in one component.
    """

    m: float
    response: float
    noise: float


def load_of(kappa: float, dim: int) -> float:
    """The load at which a fixed point has signal over noise kappa = m / sigma::

        sqrt(alpha) = d [A_d/kappa - c_d]
                    = kappa^2 sqrt(2/pi) int_0^{pi/2} exp(-kappa^2 sin^2(theta)/2)
                                                      sin^2(theta) cos^d(theta) dtheta

    For large d it is kappa^4 / (kappa^2 + d)^3.

    Args, Raises: as for `mean_alignment`.

    Returns:
        alpha [patterns per site].
    """
    check_number("kappa", kappa, 0)
    check_whole("dim", dim, 1)
    return (kappa**2 * _angular(kappa, dim, lambda s2: s2)) ** 2


def _critical(dim: int) -> float:
    """kappa at the largest load, by golden section between a third and three times the peak."""
    low, high = 0.5 * math.sqrt(dim), 6 * math.sqrt(dim)
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(100):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (a, high) if load_of(a, dim) < load_of(b, dim) else (low, b)
    return (low + high) / 2


def critical_load(dim: int) -> float:
    """alpha_c, the largest load with a retrieval state, the maximum of `load_of` over kappa.

    At d = 1 Hopfield's 0.138; 4/(27 d) for large d. Replica symmetric, at zero temperature.

    Args:
        dim: d >= 1.

    Returns:
        alpha_c [patterns per site].

    Raises:
        ValueError: for another dim.
    """
    check_whole("dim", dim, 1)
    return load_of(_critical(dim), dim)


def retrieval(load: float, dim: int) -> Retrieval | None:
    """The retrieval state at a load, None beyond the critical one::

        h = m xi + sigma z ,     m = E[P[h] . xi] ,     C = (1/d) E tr dP[h]/dh
        sigma = (sqrt(alpha)/d) / (1 - C)

    The reaction of the network on a site is parallel to its token and drops out of P.

    Args:
        load: alpha > 0 [patterns per site].
        dim: d >= 1.

    Raises:
        ValueError: for other numbers.
    """
    check_number("load", load, 0, open_low=True)
    check_whole("dim", dim, 1)
    peak = _critical(dim)
    if load > load_of(peak, dim):
        return None
    far = 2 * (peak + dim + 1 / math.sqrt(load))  # there the load is below the one that is asked
    kappa = _bisect(lambda k: load_of(k, dim) - load, peak, far)
    m = mean_alignment(kappa, dim)
    return Retrieval(m, mean_response(kappa, dim) * kappa / m, m / kappa)


class SingleSite:
    """The single-site process, many samples at once, and its response to a field::

        h(t)   = m(t) xi + eta(t) + gamma x(t) + sum_{s<t} Gamma(t,s) x(s)
        x(t+1) = P[h(t)]
        dx(t+1)/dh(s) v = (1 - x x^T)/|h(t)| [ delta_ts v + gamma dx(t)/dh(s) v
                                               + sum_{r<=t} Gamma(t,r) dx(r)/dh(s) v ]

    where xi is the first unit vector of R^d, and x on the right is x(t+1).

    Args:
        x0: (samples, d), the tokens at t = 0, of norm 1.
        probe: (samples, d), v: one vector a sample. With E[v v^T] = 1, the mean of
            v . dx(t)/dh(s) v is that of the trace.
        gamma: weight of the self-term, >= 0.

    Attributes:
        x: list of (samples, d), x(0) ... x(t).
        moved: list of (t, samples, d): entry t holds dx(t)/dh(s) v for s = 0 ... t - 1.

    Raises:
        ValueError: for other tokens, probes or gamma.
    """

    def __init__(self, x0: Tensor, probe: Tensor, gamma: float = 0.0):
        if x0.ndim != 2 or x0.shape[1] < 2 or x0.shape != probe.shape:
            raise ValueError(
                "x0 and probe must both have shape (samples, d >= 2), "
                f"got {tuple(x0.shape)} and {tuple(probe.shape)}"
            )
        check_number("gamma", gamma, 0)
        self.x, self.moved = [check_norms(x0, "x0")], [x0.new_zeros(0, *x0.shape)]
        self.probe, self.gamma = probe, gamma

    def step(self, m: float, eta: Tensor, memory: Tensor) -> Tensor:
        """x(t+1), which it also keeps.

        Args:
            m: m(t).
            eta: (samples, d), the noise eta(t).
            memory: (t,), the row Gamma(t, s) for s = 0 ... t - 1.
        """
        now, t = self.x[-1], len(self.x) - 1
        if memory.shape != (t,):
            raise ValueError(f"memory must have shape ({t},), got {tuple(memory.shape)}")
        h = eta + self.gamma * now
        h[:, 0] += m
        push = torch.zeros(t + 1, *now.shape, dtype=now.dtype, device=now.device)
        push[:t], push[t] = self.gamma * self.moved[t], self.probe
        for s in range(t):
            h += memory[s] * self.x[s]
            push[:s] += memory[s] * self.moved[s]
        n = project(h, otherwise=now)
        push -= (push * n).sum(-1, keepdim=True) * n
        self.x.append(n)
        self.moved.append(push / h.norm(dim=-1, keepdim=True))
        return n

    def response(self) -> Tensor:
        """G(t, s) for the last t, s = 0 ... t - 1: (t,)."""
        return (self.moved[-1] * self.probe).sum(-1).mean(-1) / self.probe.shape[1]


@dataclass(frozen=True)
class MeanFieldTrajectory:
    """What `dynamics` finds. Times run from 0 to n_steps.

    Attributes:
        m: (n_steps + 1), overlap with the pattern.
        correlation: (n_steps + 1, n_steps + 1), Q(t, s) = E[x(t) . x(s)].
        response: (n_steps + 1, n_steps + 1), G(t, s) = (1/d) E tr dx(t)/dh(s), zero for s >= t.
    """

    m: Tensor
    correlation: Tensor
    response: Tensor


@torch.no_grad()
def dynamics(
    m0: float,
    load: float,
    dim: int,
    n_steps: int,
    generator: torch.Generator,
    gamma: float = 0.0,
    n_samples: int = 20_000,
) -> MeanFieldTrajectory:
    """Dynamical mean field, exact for N to infinity; the only error is that of the samples::

        h(t) = m(t) xi + eta(t) + gamma x(t) + sum_{s<t} Gamma(t,s) x(s) ,     x(t+1) = P[h(t)]
        <eta_a(t) eta_b(s)> = delta_ab (alpha/d^2) [ (1-G)^-1 Q (1-G)^-T ](t,s)
        Gamma = (alpha/d) [ (1-G)^-1 - 1 ]
        m(t) = E[x(t).xi] ,     Q(t,s) = E[x(t).x(s)] ,     G(t,s) = (1/d) E tr dx(t)/dh(s)

    from x(0) = m0 xi + sqrt(1 - m0^2) u, u a random unit vector across xi. Solved forward in t:
    eta(t) and Gamma(t, .) need Q and G up to t only. Q's Cholesky factor comes from Gram-Schmidt of
    the sampled x(0) ... x(t), which stays sound where x hardly moves.

    Args:
        m0: overlap of the start, 0 to 1.
        load: alpha >= 0 [patterns per site].
        dim: d >= 2. At d = 2 the response has no finite variance: take more samples.
        n_steps: at least 1.
        generator: the samples lie on its device.
        gamma: weight of a self-term gamma x(t) in the field, >= 0.
        n_samples: single sites, at least 2. Memory: n_samples d n_steps^2 / 2 numbers.

    Raises:
        ValueError: for other numbers.
    """
    check_number("m0", m0, 0, 1)
    check_number("load", load, 0)
    for name, value, least in (
        ("dim", dim, 2),
        ("n_steps", n_steps, 1),
        ("n_samples", n_samples, 2),
    ):
        check_whole(name, value, least)
    if m0 == load == gamma == 0:
        raise ValueError("m0, load and gamma must not all be 0: no site has a field then")
    if not isinstance(generator, torch.Generator):
        raise ValueError(f"generator must be a torch.Generator, got {generator!r}")
    draw = {"generator": generator, "device": generator.device, "dtype": torch.float64}
    normal = lambda: torch.randn(n_samples, dim, **draw)
    x0 = normal()
    x0[:, 0] = 0
    x0 = math.sqrt(1 - m0**2) * F.normalize(x0, dim=-1)
    x0[:, 0] = m0
    sites = SingleSite(x0, math.sqrt(dim) * F.normalize(normal(), dim=-1), gamma)
    times = n_steps + 1
    Q, G, root = (torch.zeros(times, times, dtype=torch.float64) for _ in range(3))
    m, basis, z = [], [], []
    for t in range(times):
        x = sites.x[t]
        m.append(x[:, 0].mean().item())
        Q[t, : t + 1] = Q[: t + 1, t] = torch.stack([(x * y).sum(-1).mean() for y in sites.x])
        G[t, :t] = sites.response() if t else 0
        root[t, : t + 1] = _gram_schmidt(basis, x / math.sqrt(n_samples))
        if t == n_steps:
            break
        z.append(normal())
        factor, memory = crosstalk(G[: t + 1, : t + 1], root[: t + 1, : t + 1], load, dim)
        eta = sum(f * z_s for f, z_s in zip(factor.tolist(), z))
        sites.step(m[t], eta, memory)
    return MeanFieldTrajectory(torch.tensor(m, dtype=torch.float64), Q, G)


def crosstalk(G: Tensor, root: Tensor, load: float, dim: int) -> tuple[Tensor, Tensor]:
    """What the other patterns send to a site at the last of t + 1 times::

        eta(t) = sum_s factor(s) z(s) ,     factor   = (sqrt(alpha)/d) [ (1-G)^-1 root ](t, .)
                                            Gamma    = (alpha/d) [ (1-G)^-1 - 1 ](t, .)

    Args:
        G: (t + 1, t + 1), the response so far, strictly lower triangular.
        root: (t + 1, t + 1), lower triangular, Q = root root^T.
        load: alpha [patterns per site].
        dim: d.

    Returns:
        factor (t + 1,) and the row of Gamma (t,).
    """
    one = torch.eye(len(G), dtype=G.dtype)
    amplified = torch.linalg.solve_triangular(one - G, one, upper=False)[-1]
    return math.sqrt(load) / dim * (amplified @ root), load / dim * amplified[:-1]


def _gram_schmidt(basis: list[Tensor], x: Tensor) -> Tensor:
    """Coordinates of x in the basis, which it completes by the rest of x (zero where none is)."""
    rest, found = x.clone(), x.new_zeros(len(basis) + 1)
    for _ in range(2):  # twice: the first pass leaves rounding of the size of the small rest
        for s, e in enumerate(basis):
            along = (rest * e).sum()
            rest -= along * e
            found[s] += along
    found[-1] = length = rest.norm()
    basis.append(rest / length if length > 1e-12 else torch.zeros_like(rest))
    return found
