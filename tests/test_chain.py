"""The chain from images to images is its three parts, one after the other."""

import pytest
import torch

from attractor_lib.chain import AttractorChain
from attractor_lib.corruption import mean_token
from attractor_lib.dynamics import run
from attractor_lib.embedding import PatchEmbedding, principal_components
from attractor_lib.model import AttractorNetwork


def images(*channels, n=6):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, *channels, 8, 8, generator=generator, dtype=torch.float64)


def embeddings():
    colour = PatchEmbedding(8, 4, channels=3)
    learned = principal_components(images(3, n=40), colour, 9)
    return {
        "pixels": (PatchEmbedding(8, 4), images()),
        "frequencies": (PatchEmbedding(8, 4, 6), images()),
        "colour": (colour, images(3)),
        "learned": (PatchEmbedding(8, 4, channels=3, components=learned), images(3)),
    }


def chain(embedding, given):
    network = AttractorNetwork(embedding.n_sites, embedding.dim, n_heads=2, rank=3).double()
    return AttractorChain(embedding, network, mean_token(embedding.encode(given)))


@pytest.mark.parametrize("name", ["pixels", "frequencies", "colour", "learned"])
def test_the_chain_is_its_parts(name):
    embedding, given = embeddings()[name]
    whole = chain(embedding, given)
    x = embedding.encode(given)
    by_parts = embedding.decode(run(whole.network.update, x, 3).final)
    assert torch.equal(whole(given, 3), by_parts) and by_parts.shape == given.shape
    hidden = torch.zeros(6, 4, dtype=torch.bool)
    hidden[:, 1] = hidden[2, 3] = True
    after = whole(given, 2, hidden)
    same = embedding.patches(after)[~hidden]
    torch.testing.assert_close(same, embedding.pixels(x)[~hidden])
    assert not torch.equal(embedding.patches(after)[hidden], embedding.pixels(x)[hidden])


def test_what_is_hidden_is_not_looked_at():
    embedding, given = embeddings()["colour"]
    whole, hidden = chain(embedding, given), torch.tensor([False, True, False, False])
    changed = given.clone()
    changed[:, :, :4, 4:] = 0.5
    assert torch.equal(whole(given, 2, hidden), whole(changed, 2, hidden))


def test_refuses():
    embedding, given = embeddings()["pixels"]
    network = AttractorNetwork(4, 17).double()
    with pytest.raises(ValueError, match="network must have 4 sites of 17, got 5 and 17"):
        AttractorChain(embedding, AttractorNetwork(5, 17))
    with pytest.raises(ValueError, match=r"fill must have shape \(4, 17\)"):
        AttractorChain(embedding, network, torch.zeros(3, 17))
    with pytest.raises(ValueError, match="no fill to stand in"):
        AttractorChain(embedding, network)(given, 1, torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="hidden must be boolean"):
        chain(embedding, given)(given, 1, torch.ones(4))
