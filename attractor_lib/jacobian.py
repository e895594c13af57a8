r"""How the field and the update answer to a small change of the state (16_why_transient).

With messages m_ij = J_ij x_j, w_ij = J_ij^T x_i, and the Hessian H of the potential, of which the
softmax has H_jk = a_j (delta_jk - a_k)::

    dh_i/dx_j = sum_h [ a_ij J_ij + beta (sum_k H_jk m_ik) w_ij^T ]                     j != i
    dh_i/dx_i = sum_h beta sum_jk H_jk m_ik m_ij^T
    D         = (1 - n_i n_i^T) / |y_i| (dh_i/dx_j + gamma delta_ij) ,   y = h + gamma x ,  n = P[y]

The blocks on the diagonal are symmetric, the Hessians of -e_i; the others are not each other's
transposes, as no global energy is behind them (01_local_energies).
"""

import torch
from torch import Tensor, einsum

from attractor_lib.model import AttractorNetwork


@torch.no_grad()
def field_jacobian(network: AttractorNetwork, x: Tensor) -> Tensor:
    """dh_i/dx_j at states x (batch, N, d), any tokens taken as independent: (batch, N, d, N, d).

    The projection is not in it, nor gamma. Of (N d)^2 numbers an example: 100 examples of 16
    tokens of 50 components take half a gigabyte in float64, so give it a few at a time.

    Raises:
        ValueError: for a state that the network refuses, or a network with known components.
    """
    if network.n_known:
        raise ValueError(f"expected a network with n_known=0, got n_known={network.n_known}")
    J = network.couplings.dense()
    q, k = network.couplings.queries(network.check(x)), network.couplings.keys(x)
    t = network.scores(q, k)
    a = network.weights(t)
    m, w = einsum("hijab,mjb->mhija", J, x), einsum("hijab,mia->mhijb", J, x)
    # sum_k H_jk m_ik for each component of the messages: (batch, heads, i, a, j)
    answer = network.phi.response(t[..., None, :], a[..., None, :], m.mT.contiguous())
    jacobian = einsum("mhij,hijab->miajb", a, J)
    jacobian += network.beta * einsum("mhiaj,mhijb->miajb", answer, w)
    own = network.beta * einsum("mhiaj,mhijb->miab", answer, m)
    sites = torch.arange(network.n_sites, device=x.device)
    jacobian[:, sites, :, sites] += own.transpose(0, 1)
    return jacobian


@torch.no_grad()
def update_jacobian(network: AttractorNetwork, x: Tensor) -> Tensor:
    """D, the derivative of the update P[h + gamma x] by the state: (batch, N, d, N, d).

    Raises:
        ValueError: for a network whose space is not the sphere, a state that it refuses, or one
            where a site has no field, as the update jumps there.
    """
    if not network.space.unit:
        raise ValueError(f"expected a network on the sphere, got {network.space}")
    jacobian = field_jacobian(network, x)
    y = network.field(x) + network.gamma * x
    sites = torch.arange(network.n_sites, device=x.device)
    jacobian[:, sites, :, sites] += network.gamma * torch.eye(network.dim).to(x)
    norm = y.norm(dim=-1, keepdim=True)
    if not norm.all():
        raise ValueError("x must give every site a field, got one without, where P is not smooth")
    n = y / norm
    across = jacobian - einsum("mia,mic,micjb->miajb", n, n, jacobian)
    return across / norm[..., None, None]
