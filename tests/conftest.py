import math
import os

import pytest
import torch
from pdf import open_browser
from playwright.sync_api import Error, sync_playwright
from torch.nn import functional as F

from attractor_lib.model import AttractorNetwork

BATCH, N, D, HEADS, RANK = 7, 5, 11, 3, 2  # distinct, so that swapped axes fail


def random_states(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)


def random_network(rank: int | None, beta: float = 1.7, gamma: float = 0.3, heads: int = HEADS, n: int = N, d: int = D):
    """float64, couplings of order one and a bias that is not zero: nothing is small enough to hide an error."""
    generator = torch.Generator().manual_seed(1)
    network = AttractorNetwork(n, d, heads, rank, beta, gamma, generator).double()
    for p in network.parameters():
        p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / math.sqrt(p.shape[-1]))
    return network


@pytest.fixture(params=[None, RANK], ids=["full", "low-rank"])
def network(request):
    return random_network(request.param)


@pytest.fixture
def x():
    return random_states(BATCH, N, D)


@pytest.fixture(scope="module")  # not the session: while playwright runs, notebooks would be executed within its event loop
def browser():
    with sync_playwright() as playwright:
        try:
            browser = open_browser(playwright)
        except Error as error:
            if "Executable doesn't exist" in str(error) and not os.environ.get("CI"):  # a gate that leaves this out checks nothing
                pytest.skip("no Chromium on this machine: `make browser` fetches one")
            raise
        yield browser
        browser.close()
