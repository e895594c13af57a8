"""Many tokens: heads of low rank, N from 16 to 256, beside torch's fused attention.

attention   o = softmax(beta q k^T) k alone, the core of a field, by torch's
            `scaled_dot_product_attention`, which takes the mask j != i as a tensor; and unmasked
attention's gradient
            the same, with the gradients of q and k by autograd
field, rule of the whole network: by the fastest kernel, the batched one, and autograd, through the
            library's attention and through the fused one, between the same queries and keys
memory      the peak of the rule as N and the batch grow, with its exponent; see `scaling`

Single precision; on a CPU the fused attention is torch's flash kernel. Heads times rank, and N
times the batch, are the same in all rows but the last ones.
"""

from functools import partial

import scaling
import torch
from measure import FIELDS, RULES, compared, example, products
from torch.nn.functional import scaled_dot_product_attention

from attractor_lib.analysis import operations
from attractor_lib.model import AttractorNetwork

D, TOKENS = 50, 2048
PROFILES = {
    "quick": {"sites": [16, 64, 256], "rounds": 5, "largest": 512},
    "full": {"sites": [16, 64, 256], "rounds": 25, "largest": 1024},
}


def rows(device, sites, rounds, largest, before=None):
    for n_sites in sites:
        for heads, rank in ((16, 16), (4, 64)):
            case = {"batch": TOKENS // n_sites, "n_sites": n_sites, "dim": D}
            case |= {"heads": heads, "rank": rank}
            yield from compared(
                case, *problem(device, **case), rounds=rounds, device=device, before=before
            )
    yield from memory(device, largest)


def problem(device, batch, n_sites, dim, heads, rank):
    """What is timed, by (by, what), and its operations, by what."""
    network = AttractorNetwork(n_sites, dim, heads, rank).to(device)
    data = example(batch, n_sites, dim, device)
    cores, work = attention(network, data[0])
    fields = {(by, "field"): partial(f, network, data[0]) for by, f in FIELDS.items()}
    rules = {(by, "rule"): partial(f, network, *data) for by, f in RULES.items()}
    functions = {key: f for key, f in (fields | rules).items() if key[0] != "equations"}
    work |= {what: products(network, batch, what) for what in ("field", "rule")}
    return cores | functions, work


def attention(network, x):
    """The core between the queries and keys of x; as `problem`."""
    q, k = network.couplings.queries(x).contiguous(), network.couplings.keys(x)[:, :, 0]
    k, functions = k.contiguous(), {}
    for by, mask in (("fused attention", network.hears), ("fused attention, unmasked", None)):
        core = partial(scaled_dot_product_attention, attn_mask=mask, scale=network.beta)
        functions[by, "attention"] = partial(core, q, k, k)
        functions[by, "attention's gradient"] = partial(gradient, core, q, k)
    counted = {what: operations(f) for (_, what), f in functions.items()}
    return functions, counted


def gradient(core, q, k):
    """The gradients of q and k by autograd, for a dL/do that is q."""
    q, k = (t.detach().requires_grad_() for t in (q, k))
    return torch.autograd.grad(core(q, k, k), (q, k), q.detach())


def memory(device, largest):
    """Peak memory of a rule at growing N, and at a growing batch."""
    base = {"batch": 8, "N": 64, "d": D, "heads": 16}
    sizes = [n for n in (64, 128, 256, 512, 1024) if n <= largest]
    for axis, of_axis in (("N", sizes), ("batch", [n // 4 for n in sizes])):
        for model in ("rank 16", "rank 16, autograd", "rank 16, fused attention"):
            for point in scaling.curve(model, axis, of_axis, 1, device, base):
                kept = "model", "axis", "size", "batch", "N", "d", "heads", "MB", "exponent of MB"
                yield {"what": "memory", **{column: point[column] for column in kept}}
