"""What a run does in the end: it rests, cycles, still converges, drifts, or none of these.

Beside it, which basins overlap. All labels are read off the tail of a trajectory, its last w steps.
D(x, y) = max_i ``|x_i - y_i|``, tau is the tolerance. Derived and shown on networks in
11_failure_signatures.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attractor_lib.analysis import overlap
from attractor_lib.dynamics import Trajectory, run

LABELS = ("fixed point", "cycle", "slow convergence", "drift", "not converged")


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found for each example, all (batch,) but `labels`.

    Attributes:
        labels: names from `LABELS`.
        period: 1 at a fixed point, p >= 2 on a cycle, 0 otherwise.
        path_left: the length of the path still ahead if the residuals go on to fall as in the tail;
            inf if they do not fall.
        steps_left: the steps after which that path is shorter than tau; 0 at a fixed point or
            cycle, inf if unknown.
        straightness: ``|x(T) - x(T-w)|`` over the length of the path between; 1 on a straight line,
            about w^(-1/2) on a random walk.
    """

    labels: list[str]
    period: Tensor
    path_left: Tensor
    steps_left: Tensor
    straightness: Tensor

    def shares(self) -> dict[str, float]:
        """The share of each label; they sum to 1, since no example is left out. No run: all 0."""
        return {label: self.labels.count(label) / max(1, len(self.labels)) for label in LABELS}


@torch.no_grad()
def diagnose(
    motion: Trajectory | Callable[[Tensor], Tensor],
    x0: Tensor | None = None,
    n_steps: int = 400,
    window: int | None = None,
    max_period: int = 16,
    tolerance: float = 1e-4,
) -> Diagnosis:
    """The first of these labels that holds, for each example.

    1. period p, the smallest p from 1 to max_period for which each state of the tail is within tau
       of the one at the same phase of the last period, D(x(T-k), x(T - k mod p)) < tau for
       k = 0 ... w: **fixed point** for p = 1, **cycle** for p >= 2, if the last step is no shorter
       than tau. The tail holds at least two periods.
    2. At stride p = 1, then 2, the residuals r(t) = D(x(t), x(t-p)) fall: log r falls from each
       quarter of the tail to the next, and r = c rho^t or r = c t^(-q), whichever fits better,
       explains at least half of its variance. Then the path left, the sum of r over all later
       strides by that fit, is below tau: **fixed point** or **cycle** as above; or below 2, the
       diameter of the sphere: **slow convergence**. (Stride 2 finds damped oscillations.)
    3. straightness >= 0.9: **drift**. On a great circle that is less than a quarter turn in the
       tail.
    4. **not converged**: chaos, a quasi-periodic motion, a period above max_period; see
       `lyapunov_exponent`.

    Args:
        motion: a trajectory of `run` that kept its states (batch, N, d), or a step function; then
            x0 (batch, N, d) and n_steps say what to run, and only the tail is kept in memory.
        window: w, at least 8 and 2 max_period; by default a quarter of the run, and no less than
            these.

    Raises:
        ValueError: for states of another shape, NaN or infinity, or a run that is shorter than the
            window.
    """
    total = n_steps if callable(motion) else len(motion.residuals)
    least = max(8, 2 * max_period)
    window = max(least, total // 4) if window is None else window
    if max_period < 1 or not tolerance > 0:
        raise ValueError(
            f"max_period must be at least 1 and tolerance > 0, got {max_period} and {tolerance}"
        )
    if window < least:
        raise ValueError(
            f"window must be at least 8 and 2 max_period = {2 * max_period}, got {window}"
        )
    if total < window:
        raise ValueError(f"the run must have at least {window} steps (the window), got {total}")
    if callable(motion):
        if x0 is None:
            raise ValueError("a step function needs a start x0 of shape (batch, N, d), got None")
        if total > window:
            x0 = run(motion, x0, total - window, observe=lambda x: x.new_zeros(())).final
        motion = run(motion, x0, window)
    x = motion.states[-window - 1 :]
    if x.ndim != 4:
        raise ValueError(
            f"the trajectory must hold states (n_steps + 1, batch, N, d), got {tuple(x.shape)}"
        )
    if not x.isfinite().all():
        raise ValueError("the states must be finite, got NaN or infinity")

    period = torch.zeros(x.shape[1], dtype=torch.long, device=x.device)
    moves = _distance(x[-1], x[-2]) >= tolerance
    # downwards, so that the smallest period is the one that stays
    for p in range(max_period, 0, -1):
        phase = [window - k % p for k in range(window, -1, -1)]
        repeats = _distance(x, x[phase]).amax(0) < tolerance
        period[repeats & (moves if p > 1 else True)] = p
    path_left, steps_left = (
        torch.full(period.shape, torch.inf, dtype=torch.float64, device=x.device) for _ in range(2)
    )
    for stride in (2, 1):
        left, steps = _still_ahead(
            _distance(x[stride:], x[:-stride]).double(), total, stride, tolerance
        )
        better = left < 2
        path_left, steps_left = (
            torch.where(better, left, path_left),
            torch.where(better, steps, steps_left),
        )
        period[(period == 0) & (left < tolerance) & (moves if stride > 1 else True)] = stride
    steps_left[period > 0] = 0
    flat = x.flatten(2)
    length = flat.diff(dim=0).norm(dim=-1).sum(0)
    straightness = torch.where(length > 0, (flat[-1] - flat[0]).norm(dim=-1) / length, length)
    code = torch.where(straightness >= 0.9, 3, 4)
    code = torch.where(path_left < 2, 2, code)
    code = torch.where(period > 0, (period > 1).long(), code)
    return Diagnosis(
        [LABELS[c] for c in code.tolist()], period, path_left, steps_left, straightness
    )


def _distance(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).norm(dim=-1).amax(-1)


def _still_ahead(r: Tensor, total: int, stride: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Path left and steps until it is below the tolerance, for residuals r (times, batch) at the
    end of the run.
    """
    log_r = r.clamp_min(torch.finfo(r.dtype).tiny).log()
    quarters = torch.stack([q.mean(0) for q in log_r.tensor_split(4)])
    t = torch.arange(total - len(r) + 1, total + 1, dtype=r.dtype, device=r.device)
    slope, at_end, misfit = zip(*(_line(u, log_r) for u in (t, t.log())))
    geometric = misfit[0] <= misfit[1]
    rho, q = (stride * slope[0]).exp(), -slope[1]
    now = torch.where(geometric, at_end[0], at_end[1]).exp()
    left = torch.where(
        geometric,
        now * rho / (1 - rho),
        torch.where(q > 1, now * total / stride / (q - 1), torch.inf),
    )
    excess = (left / tolerance).clamp_min(1)
    steps = torch.where(geometric, excess.log() / -slope[0], total * (excess ** (1 / (q - 1)) - 1))
    told = torch.minimum(misfit[0], misfit[1]) <= 0.5 * (log_r - log_r.mean(0)).square().sum(0)
    falls = told & (quarters.diff(dim=0) < 0).all(0)
    return tuple(torch.where(falls, v, torch.inf) for v in (left, steps))


def _line(u: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Least squares y (times, batch) = slope (u - mean) + mean: slope, value at the last u, sum of
    squared misfits.
    """
    u = (u - u.mean())[:, None]
    slope = (u * y).sum(0) / u.square().sum()
    fit = y.mean(0) + slope * u
    return slope, fit[-1], (y - fit).square().sum(0)


@torch.no_grad()
def lyapunov_exponent(
    update: Callable[[Tensor], Tensor],
    x0: Tensor,
    n_steps: int = 400,
    epsilon: float = 1e-4,
    seed: int = 0,
) -> Tensor:
    """Mean log growth a step of the distance between a run and one displaced by epsilon: (batch,).

    The displacement is put back to epsilon after each step, and the first half of the steps is left
    out as transient. Above 0: neighbours part, chaos. 0: a quasi-periodic motion or a drift. Below:
    what is reached attracts. States are (batch, N, d) on the sphere. What falls below the rounding
    error in a step, log(1e-7 / epsilon) in single precision, is not told apart.
    """
    if n_steps < 2 or not epsilon > 0:
        raise ValueError(f"n_steps must be at least 2 and epsilon > 0, got {n_steps} and {epsilon}")
    generator = torch.Generator(x0.device).manual_seed(seed)
    first = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
    x, apart, tiny = x0, first, torch.finfo(x0.dtype).tiny
    growth = []
    for _ in range(n_steps):
        y = x + epsilon * apart / apart.flatten(1).norm(dim=1)[:, None, None].clamp_min(tiny)
        y = y / y.norm(dim=-1, keepdim=True)
        before = (y - x).flatten(1).norm(dim=1).clamp_min(tiny)
        x, y = update(x), update(y)
        apart = y - x
        distance = apart.flatten(1).norm(dim=1)
        growth.append((distance / before).clamp_min(torch.finfo(x.dtype).eps).log())
        apart = torch.where((distance == 0)[:, None, None], first, apart)
    return torch.stack(growth[n_steps // 2 :]).mean(0)


@torch.no_grad()
def overlapping_basins(
    update: Callable[[Tensor], Tensor],
    examples: Tensor,
    corrupt: Callable,
    n_steps: int = 400,
    n_starts: int = 4,
    same: float = 0.99,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Whether basins overlap, by the last states of runs from each example and from starts near it.

    A run that is not at rest ends where it is at that time: read both numbers beside `diagnose`.

    Args:
        corrupt: (tokens, generator) -> (state, sites), what "near" means; see
            ``attractor_lib.corruption``.

    Returns:
        Merged (n,), how many runs of other examples end in the same state, an overlap of at least
        `same`; and split (n,), how many of the n_starts starts near the example end in another
        state than the example itself does.
    """
    if len(examples) < 2 or n_starts < 1:
        raise ValueError(
            f"expected at least 2 examples and 1 start near each, got {len(examples)} and "
            f"{n_starts}"
        )
    generator = torch.Generator(examples.device).manual_seed(seed)
    nothing = {"n_steps": n_steps, "observe": lambda x: x.new_zeros(())}
    ends = run(update, examples, **nothing).final
    alike = torch.stack([overlap(end, ends) >= same for end in ends])
    near = [run(update, corrupt(examples, generator)[0], **nothing).final for _ in range(n_starts)]
    split = torch.stack([overlap(end, ends) < same for end in near]).sum(0)
    return alike.sum(1) - 1, split
