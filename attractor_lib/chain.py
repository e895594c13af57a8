"""The whole chain: embedding -> recurrent multi-head self-attention -> output."""

import torch
from torch import Tensor, nn

from attractor_lib.dynamics import Trajectory, run
from attractor_lib.embedding import PatchEmbedding
from attractor_lib.model import AttractorNetwork
from attractor_lib.states import check_mask, clamp


class AttractorChain(nn.Module):
    """Images in, images out::

        x_i(0)   = E_i(patch i)                                       embedding, to the sphere
        x_i(t+1) = P[ sum_h sum_j a^h_i<-j J^h_ij x_j(t) + b_i ]      recurrent attention
        image    = E^-1(x(n_steps))                                   output, patch by patch

    Nothing but J and b is trained by a rule. E is fixed: all pixels, or low frequencies; or each
    site has learned it from its own patches alone (`embedding.principal_components`). The output is
    its inverse, so that there is nothing more to train there.

    Args:
        embedding: E, and its inverse.
        network: J and b.
        fill: (N, d), the tokens that stand in where patches are hidden; without it none may be.

    Raises:
        ValueError: for a network or a fill of other sizes than the embedding's.
    """

    def __init__(
        self, embedding: PatchEmbedding, network: AttractorNetwork, fill: Tensor | None = None
    ):
        super().__init__()
        sizes = embedding.n_sites, embedding.dim
        if (network.n_sites, network.dim) != sizes:
            got = f"{network.n_sites} and {network.dim}"
            raise ValueError(f"network must have {sizes[0]} sites of {sizes[1]}, got {got}")
        if fill is not None and tuple(fill.shape) != sizes:
            raise ValueError(f"fill must have shape {sizes}, got {tuple(fill.shape)}")
        self.embedding, self.network = embedding, network
        self.register_buffer("fill", fill)

    def run(self, images: Tensor, n_steps: int, hidden: Tensor | None = None) -> Trajectory:
        """Tokens at each step: what ``dynamics.run`` returns, from these images on.

        Args:
            images: (batch, *image_shape), values in [0, 1].
            n_steps: at least 1.
            hidden: boolean, (N,) or (batch, N): the patches that are not given. The others are
                clamped. None for all given and none clamped, as for noise.

        Raises:
            ValueError: for hidden patches without a fill; and what embedding and network refuse.
        """
        x = self.embedding.encode(images)
        if hidden is None:
            return run(self.network.update, x, n_steps)
        if self.fill is None:
            raise ValueError("hidden must be None, as there is no fill to stand in")
        x = clamp(self.fill.expand_as(x), x, ~check_mask(hidden, x, "hidden"))
        return run(self.network.update, x, n_steps, clamped=~hidden)

    def forward(self, images: Tensor, n_steps: int = 1, hidden: Tensor | None = None) -> Tensor:
        """Images after n_steps; arguments as for `run`. Tokens that are given stay as they are, and
        so do their patches as far as the embedding keeps them.
        """
        with torch.no_grad():
            return self.embedding.decode(self.run(images, n_steps, hidden).final)
