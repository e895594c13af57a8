"""Who computes an equation: itself as it is written, or a kernel that equals it, faster.

An equation is a function (network, state, ...): the field, a learning rule. A kernel is a module
that has some of them under the same names, in ``COMPUTES``, and says by ``serves(network, x)`` for
which networks and states it can stand in. `serving` asks the kernels, fastest first. With ``only``
some of them, or none, may serve: ``with only():`` is the equations as they are written.
"""

from collections.abc import Callable
from contextlib import contextmanager
from functools import wraps
from types import ModuleType

import torch
from torch import Tensor

from attractor_lib.kernels import batched, cuda
from attractor_lib.states import blocks

try:
    from attractor_lib.kernels import cpu
except ModuleNotFoundError as error:
    if error.name not in ("numba", "scipy", "threadpoolctl"):  # the extra `fast`
        raise
    cpu = None

_allowed = KERNELS = {
    name: kernel
    for name, kernel in (("cuda", cuda), ("cpu", cpu), ("batched", batched))
    if kernel is not None
}


@contextmanager
def only(*names: str):
    """Within it, only these kernels may serve; with no name, the equations themselves.

    Raises:
        ValueError: for a name that is none, or needs what is not installed.
    """
    global _allowed
    if unknown := set(names) - set(KERNELS):
        there = " and ".join(KERNELS)
        raise ValueError(f"kernels are {there} here, got {', '.join(sorted(unknown))}")
    before, _allowed = _allowed, {name: kernel for name, kernel in KERNELS.items() if name in names}
    try:
        yield
    finally:
        _allowed = before


def serving(network, x: Tensor, equation: str = "field") -> ModuleType | None:
    """The fastest kernel that computes this equation for the network at x, or None."""
    kernels = (kernel for kernel in _allowed.values() if equation in kernel.COMPUTES)
    return next((kernel for kernel in kernels if kernel.serves(network, x)), None)


def accelerated(equation: Callable) -> Callable:
    """The equation (network, x), x checked, by the kernel that serves it, or by itself."""

    @wraps(equation)
    def fastest(network, x: Tensor) -> Tensor:
        kernel = serving(network, network.check(x), equation.__name__)
        return getattr(kernel, equation.__name__)(network, x) if kernel else equation(network, x)

    return fastest


def in_blocks(equation: Callable) -> Callable:
    """The equation (network, x), x checked, block by block: memory does not grow with x."""

    @wraps(equation)
    def by_blocks(network, x: Tensor) -> Tensor:
        return torch.cat([equation(network, b) for (b,) in blocks(network, network.check(x))])

    return by_blocks
