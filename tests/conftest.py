import itertools
import math
import os

import pytest
import torch
from pdf import open_browser
from playwright.sync_api import Error, sync_playwright
from torch.nn import functional as F

from attractor_lib.couplings import Full, LowRank, SharedFactors, Tied, symmetric
from attractor_lib.model import AttractorNetwork, LogSumExp, Mean, Square

BATCH, N, D, HEADS, RANK = 7, 5, 11, 3, 2  # distinct, so that swapped axes fail


def random_states(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)


def randomised(network: AttractorNetwork, seed: int = 1) -> AttractorNetwork:
    """float64, couplings of order one and a bias that is not zero: nothing is small enough to hide
    an error.
    """
    network, generator = network.double(), torch.Generator().manual_seed(seed)
    for p in network.parameters():
        p.copy_(
            torch.randn(p.shape, generator=generator, dtype=torch.float64) / math.sqrt(p.shape[-1])
        )
    return network


def random_network(
    rank: int | None,
    beta: float = 1.7,
    gamma: float = 0.3,
    heads: int = HEADS,
    n: int = N,
    d: int = D,
):
    return randomised(AttractorNetwork(n, d, heads, rank, beta, gamma))


# Every kind of couplings (heads, N, d), potential, and who hears whom: the equations are tested for
# all of them.
COUPLINGS = {
    "full": Full.random,
    "low rank": lambda *sizes: LowRank.random(*sizes, RANK),
    "shared factors": lambda *sizes: SharedFactors.random(*sizes, RANK, 4),
    "symmetric": lambda *sizes: Tied(Full.random(*sizes).J, symmetric),
}
POTENTIALS = [LogSumExp(), Square(), Mean()]
HEARS = {
    "all others": lambda n: ~torch.eye(n, dtype=torch.bool),
    "itself too": lambda n: torch.ones(n, n, dtype=torch.bool),
    "those before": lambda n: torch.ones(n, n, dtype=torch.bool).tril(-1),  # the first hears none
    "some": lambda n: torch.rand(n, n, generator=torch.Generator().manual_seed(5)) < 0.5,
}


def every_network(heads: int = HEADS, n: int = N, d: int = D, beta: float = 1.7) -> list:
    """A network for each kind of couplings, potential and `hears`; couplings that were tied are
    tied again.
    """
    networks = []
    for (kind, couplings), phi, (heard, hears) in itertools.product(
        COUPLINGS.items(), POTENTIALS, HEARS.items()
    ):
        form = {"couplings": couplings(heads, n, d), "potential": phi, "hears": hears(n)}
        network = randomised(AttractorNetwork(n, d, beta=beta, gamma=0.3, **form))
        if kind == "symmetric":
            network.couplings.J.copy_(symmetric(network.couplings.J))
        networks.append(pytest.param(network, id=f"{kind}-{phi}-{heard}"))
    return networks


@pytest.fixture(params=[None, RANK], ids=["full", "low-rank"])
def network(request):
    return random_network(request.param)


@pytest.fixture
def x():
    return random_states(BATCH, N, D)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if "browser" in item.fixturenames:
            item.add_marker("browser")


@pytest.fixture(
    scope="module"
)  # not the session: while playwright runs, notebooks would be executed within its event loop
def browser():
    with sync_playwright() as playwright:
        try:
            browser = open_browser(playwright)
        except Error as error:
            if "Executable doesn't exist" in str(error) and not os.environ.get(
                "CI"
            ):  # a gate that leaves this out checks nothing
                pytest.skip("no Chromium on this machine: `make browser` fetches one")
            raise
        yield browser
        browser.close()
