"""The recurrent dynamics: an update applied again and again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from attractor_lib.states import check_mask, clamp


@dataclass(frozen=True)
class Trajectory:
    """What `run` saw. Time counts update steps.

    Attributes:
        states: (n_steps + 1, batch, ...): the states at t = 0, 1, ..., or what `observe` made of
            them.
        residuals: (n_steps, batch): max over sites of ``|x_i(t+1) - x_i(t)|``.
        converged: (batch,): whether the last residual is below the tolerance. Those that are not
            stay in every average.
        final: (batch, N, d): the last state.
    """

    states: Tensor
    residuals: Tensor
    converged: Tensor
    final: Tensor


@torch.no_grad()
def run(
    update: Callable[[Tensor], Tensor] | Sequence[Callable[[Tensor], Tensor]],
    x0: Tensor,
    n_steps: int,
    clamped: Tensor | None = None,
    observe: Callable[[Tensor], Tensor] = lambda x: x,
    tolerance: float = 1e-4,
) -> Trajectory:
    """The trajectory of x0 under an update::

        x(t+1) = update(x(t)) ,     t = 0 ... n_steps - 1

    Args:
        update: any function from states to states of the same shape, such as ``network.update``; or
            a sequence of n_steps such functions, one for each step.
        x0: (batch, N, d).
        n_steps: at least 1.
        clamped: boolean, (N,) or (batch, N): sites held at their value in x0.
        observe: what to keep of each state, so that a long run need not keep every token; by
            default the state itself.
        tolerance: an example has converged when no token moved by more than this in the last step.

    Returns:
        A `Trajectory`.

    Raises:
        ValueError: for another shape of x0 or clamped, n_steps < 1, a sequence of another length,
            or an update that changes the shape.
    """
    if x0.ndim != 3:
        raise ValueError(f"x0 must have shape (batch, N, d), got {tuple(x0.shape)}")
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1, got {n_steps}")
    if clamped is not None:
        check_mask(clamped, x0, "clamped")
    updates = [update] * n_steps if callable(update) else list(update)
    if len(updates) != n_steps:
        raise ValueError(
            f"update must be one function or one for each of the {n_steps} steps, "
            f"got {len(updates)}"
        )
    x, seen, residuals = x0, [observe(x0)], []
    for step in tqdm(updates, desc="update", unit="step", disable=None, delay=2, leave=False):
        new = step(x)
        if new.shape != x.shape:
            raise ValueError(
                f"update must return states of shape {tuple(x.shape)}, got {tuple(new.shape)}"
            )
        new = clamp(new, x0, clamped)
        residuals.append((new - x).norm(dim=-1).amax(-1))
        x = new
        seen.append(observe(x))
    converged = residuals[-1] < tolerance
    return Trajectory(torch.stack(seen), torch.stack(residuals), converged, x)
