"""The prediction rule and a whole training step, in every way that there is to compute them.

The closed form by the fastest kernel, by the batched one, and by the equations as they are written;
autograd on the same model, through the library's attention and through torch's fused one. Each
against its floor, its own matrix products at the rate of one large matrix product; transformer
blocks, against theirs, are beside them. What is slow takes part in the small batch only: the
equations, the fused attention of full heads, the blocks.
"""

from functools import partial

from measure import RULES, compared, example, products, training_step

from attractor_lib.analysis import operations
from attractor_lib.baselines import TransformerBlock, backpropagation
from attractor_lib.couplings import Full, LowRank, SharedFactors
from attractor_lib.model import AttractorNetwork

N, SMALL = 16, 250
SIZES = [(SMALL, 50), (SMALL, 33), (2000, 50), (2000, 33)]  # examples, components
PROFILES = {"quick": {"sizes": SIZES[:3], "rounds": 5}, "full": {"sizes": SIZES, "rounds": 25}}
COUPLINGS = {
    "1 full head": partial(Full.random, 1),
    "4 full heads": partial(Full.random, 4),
    "16 heads of rank 16": partial(LowRank.random, 16, rank=16),
    "16 heads of rank 16, shared factors": partial(SharedFactors.random, 16, rank=16),
}
WIDTHS = {"transformer block 64": 64, "transformer block 256": 256}


def rows(device, sizes, rounds, before=None):
    for batch, dim in sizes:
        for model in [*COUPLINGS, *(WIDTHS if batch <= SMALL else ())]:
            case = {"batch": batch, "n_sites": N, "dim": dim, "model": model}
            yield from compared(
                case, *problem(device, **case), rounds=rounds, device=device, before=before
            )


def problem(device, batch, n_sites, dim, model):
    """What is timed, by (by, what), and its operations, by what."""
    data = example(batch, n_sites, dim, device)
    if model in WIDTHS:
        block = TransformerBlock(n_sites, dim, WIDTHS[model]).to(device)
        step = training_step(block, backpropagation, data)
        return {("autograd", "step"): step}, {"step": operations(step)}
    couplings = COUPLINGS[model](n_sites=n_sites, dim=dim)
    network = AttractorNetwork(n_sites, dim, couplings=couplings).to(device)
    functions = {}
    for by, rule in RULES.items():
        slow = by == "equations" or (by == "fused attention" and couplings.pairwise)
        if batch <= SMALL or not slow:
            functions[by, "rule"] = partial(rule, network, *data)
            functions[by, "step"] = training_step(network, rule, data)
    work = products(network, batch, "rule")
    return functions, {"rule": work, "step": work}
