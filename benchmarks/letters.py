"""Letters: the causal network's probabilities and rule, in both forms, beside autograd.

The floor has the matrix products with all pairs of sites; "of pairs heard" has those that are done,
which leave out most pairs that no site hears.
"""

from functools import partial

import torch
from measure import compared

from attractor_lib.analysis import operations
from attractor_lib.causal import CausalNetwork, causal_rule

PROFILES = {
    "quick": {"rounds": 5, "sizes": [(32, 256)]},
    "full": {"rounds": 25, "sizes": [(32, 64), (32, 256), (128, 256)]},
}
V, HEADS, RANK = 65, 8, 16


def rows(device, rounds, sizes):
    for batch, context in sizes:
        for form in ("field", "exact"):
            case = {"batch": batch, "context": context, "form": form}
            functions, work = problem(device, **case)
            done = {what: operations(functions["closed form", what]) for what in work}
            for row in compared(case, functions, work, rounds=rounds, device=device):
                row["of pairs heard"] = (
                    row["times the floor"] * work[row["what"]] / done[row["what"]]
                )
                yield row


def problem(device, batch, context, form):
    """What is timed, by (by, what), and the operations of its products, by what."""
    network = CausalNetwork(V, context, n_heads=HEADS, rank=RANK, exact=form == "exact").to(device)
    letters = torch.randint(V, (batch, context), generator=torch.Generator().manual_seed(0))
    letters = letters.to(device)
    functions = {
        ("closed form", "log conditionals"): partial(network.log_conditionals, letters),
        ("closed form", "rule"): partial(causal_rule, network, letters),
        ("autograd", "rule"): partial(by_autograd, network, letters),
    }
    pairs, sites = batch * HEADS * context**2, batch * HEADS * context
    scores, read_out = 2 * pairs * RANK, 2 * sites * RANK * V
    if form == "field":
        return functions, {
            "log conditionals": 2 * scores + read_out,
            "rule": 6 * scores + 3 * read_out,
        }
    mixed = 2 * pairs * V
    return functions, {
        "log conditionals": scores + mixed + read_out,
        "rule": 3 * scores + 3 * mixed + 3 * read_out,
    }


def by_autograd(network, letters):
    """The gradients of the rule's loss, by autograd."""
    network.requires_grad_(True)
    loss = -network.log_conditionals(letters).gather(-1, letters[..., None]).mean()
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    network.requires_grad_(False)
    return loss.detach(), gradients
