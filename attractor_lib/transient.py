r"""Laws of the transient: what the dynamics does near an image, part after part (16_why_transient).

From an image x, with queries q_i = U_i x_i, keys k_ij = V_j x_j and the state y(t), y(0) = x::

    t_ij = beta q_i(y) . k_ij(y) ,     y_i <- P[ sum_j a_ij J_ij y_j + b_i + gamma y_i ]

the network itself. A law changes one of its parts::

    query held       t_ij = beta q_i(x) . k_ij(y)
    messages held    k_ij(x) for k_ij(y), in the scores and in the sum
    scores linear    t_ij = beta [ q_i(y) . k_ij(x) + q_i(x) . k_ij(y) - q_i(x) . k_ij(x) ]

With the query held attention does not see the site's own token move. With the messages held every
site moves alone, as in a modern Hopfield network that stores them. With linear scores one product
of two displacements is dropped and nothing else.
"""

from collections.abc import Callable

import torch
from torch import Tensor, einsum

from attractor_lib.model import AttractorNetwork

LAWS = ("query held", "messages held", "scores linear")


def law(network: AttractorNetwork, image: Tensor, name: str) -> Callable[[Tensor], Tensor]:
    """The update of y near the images x (batch, N, d), as above: (batch, N, d) to (batch, N, d).

    At y = x each is the update of the network.

    Args:
        name: one of `LAWS`.

    Raises:
        ValueError: for another name, or images that the network refuses.
    """
    if name not in LAWS:
        raise ValueError(f"name must be one of {', '.join(LAWS)}, got {name!r}")
    q0, k0 = network.couplings.queries(network.check(image, "image")), network.couplings.keys(image)

    @torch.no_grad()
    def update(y: Tensor) -> Tensor:
        q, k = network.couplings.queries(y), network.couplings.keys(y)
        if name == "query held":
            t = network.scores(q0, k)
        elif name == "messages held":
            k = k0
            t = network.scores(q, k0)
        else:
            t = network.scores(q - q0, k0) + network.scores(q0, k)
        o = einsum("mhij,mhijr->mhir", network.weights(t), k)
        return network.moved(y, network.read_out(o))

    return update


def linear_law(D: Tensor, residual: Tensor, n_steps: int) -> Tensor:
    """The overlap with the image, t = 0 ... n_steps, by the Jacobian there: (n_steps + 1, batch)::

        u(t+1) = D u(t) + r ,     u(0) = 0 ,     m(t) = 1 - |u(t)|^2 / 2N

    Args:
        D: (batch, N, d, N, d), of the update at the image.
        residual: r (batch, N, d), the update of the image less the image.

    Raises:
        ValueError: for shapes that do not belong together, or n_steps < 1.
    """
    if D.shape != residual.shape + residual.shape[1:] or n_steps < 1:
        raise ValueError(
            "expected D (batch, N, d, N, d), residual (batch, N, d) and n_steps >= 1, got "
            f"{tuple(D.shape)}, {tuple(residual.shape)} and {n_steps}"
        )
    u, m = torch.zeros_like(residual), []
    for _ in range(n_steps + 1):
        m.append(1 - u.square().sum((1, 2)) / (2 * residual.shape[1]))
        u = einsum("miajb,mjb->mia", D, u) + residual
    return torch.stack(m)


def own_blocks(D: Tensor) -> Tensor:
    """The part dx_i(t+1)/dx_i(t) of D (batch, N, d, N, d), zeros elsewhere: a site's answer to its
    own token.
    """
    own, sites = torch.zeros_like(D), torch.arange(D.shape[1], device=D.device)
    own[:, sites, :, sites] = D[:, sites, :, sites]
    return own


def spectrum(D: Tensor) -> Tensor:
    """The eigenvalues of D (batch, N, d, N, d), by falling modulus: (batch, N d), complex."""
    values = torch.linalg.eigvals(D.flatten(3).flatten(1, 2))
    return values.gather(-1, values.abs().argsort(-1, descending=True))


def growing_modes(D: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues with modulus above 1 and their modes, of one Jacobian D (N, d, N, d).

    Returns:
        The eigenvalues (k,), by falling modulus, and the modes (k, N, d), of norm 1, both complex.
    """
    values, vectors = torch.linalg.eig(D.flatten(2).flatten(0, 1))
    order = values.abs().argsort(descending=True)
    order = order[values[order].abs() > 1]
    return values[order], vectors[:, order].mT.unflatten(1, D.shape[:2])


def share_within(residual: Tensor, modes: Tensor) -> Tensor:
    """Of the square of the residual (N, d), the part within the span of the modes (k, N, d)."""
    if len(modes) == 0:
        return residual.new_zeros(())
    planes = torch.cat([modes.real, modes.imag]).flatten(1)
    U, S, _ = torch.linalg.svd(planes.mT, full_matrices=False)
    basis = U[:, S > 1e-8 * S[0]]
    return (basis.mT @ residual.flatten()).square().sum() / residual.square().sum()


def crossing_time(m: Tensor, threshold: float) -> Tensor:
    """When the overlap m (n_steps + 1, batch) is first below the threshold: (batch,).

    Linear between updates; 0 if it starts there, infinite if it never is.
    """
    if m.ndim != 2 or len(m) < 2:
        raise ValueError(f"m must have shape (n_steps + 1 >= 2, batch), got {tuple(m.shape)}")
    below = m < threshold
    t = below.long().argmax(0).clamp(min=1)
    one = torch.arange(m.shape[1], device=m.device)
    before, after = m[t - 1, one], m[t, one]
    time = t - 1 + ((before - threshold) / (before - after)).clamp(0, 1)
    time = torch.where(below[0], 0, time)
    return torch.where(below.any(0), time, torch.inf)
