import math

import pytest
import torch

from attractor_lib.embedding import PatchEmbedding, principal_components


@pytest.fixture
def images():
    return torch.randint(0, 256, (3, 12, 12), generator=torch.Generator().manual_seed(0)) / 255


@pytest.mark.parametrize("patch_size", [1, 2, 3, 4, 6, 12])
def test_decode_is_the_exact_inverse_of_encode(images, patch_size):
    embedding = PatchEmbedding(12, patch_size)
    tokens = embedding.encode(images)
    assert tokens.shape == (3, (12 // patch_size) ** 2, patch_size**2 + 1)
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(tokens.shape[:2]), atol=1e-6, rtol=0)
    torch.testing.assert_close(embedding.decode(tokens), images, atol=1e-6, rtol=0)
    assert torch.equal((embedding.decode(tokens) * 255).round(), (images * 255).round())


def test_formula_by_loops(images):
    """x = (u, sqrt(P + 1 - |u|^2)) / sqrt(P + 1), sites and pixels row by row."""
    tokens = PatchEmbedding(12, 3).encode(images.double())
    for m in range(3):
        for i in range(16):
            row, column = 3 * (i // 4), 3 * (i % 4)
            u = [2 * images[m, row + a // 3, column + a % 3].item() - 1 for a in range(9)]
            expected = (
                torch.tensor([*u, (10 - sum(v * v for v in u)) ** 0.5], dtype=torch.float64)
                / 10**0.5
            )
            torch.testing.assert_close(tokens[m, i], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("n_frequencies", [1, 5, 9])
def test_low_frequencies_by_loops(images, n_frequencies):
    """C_(kl),(ab) = c_k c_l cos(pi (a + 1/2) k / 3) cos(pi (b + 1/2) l / 3), by rising k^2 +
    l^2.
    """
    embedding = PatchEmbedding(12, 3, n_frequencies)
    tokens = embedding.encode(images.double())
    order = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (2, 2)][:n_frequencies]
    u = 2 * PatchEmbedding(12, 3).patches(images.double()).view(3, 16, 3, 3) - 1
    for n, (k, l) in enumerate(order):
        wave = torch.tensor(
            [
                [
                    math.cos(math.pi * (a + 0.5) * k / 3) * math.cos(math.pi * (b + 0.5) * l / 3)
                    for b in range(3)
                ]
                for a in range(3)
            ],
            dtype=torch.float64,
        )
        expected = (u * wave / wave.norm()).sum((-2, -1)) / 10**0.5
        torch.testing.assert_close(tokens[..., n], expected, atol=1e-12, rtol=0)
    assert tokens.shape == (3, 16, n_frequencies + 1)
    torch.testing.assert_close(
        tokens.norm(dim=-1), torch.ones(3, 16, dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_all_frequencies_are_lossless_and_fewer_are_the_nearest_patch(images):
    everything = PatchEmbedding(12, 4, 16)
    torch.testing.assert_close(
        everything.decode(everything.encode(images)), images, atol=1e-6, rtol=0
    )
    some = PatchEmbedding(12, 4, 6)
    smooth = some.encode(torch.full_like(images, 0.25))
    torch.testing.assert_close(
        some.decode(smooth), torch.full_like(images, 0.25), atol=1e-6, rtol=0
    )
    gentle = 0.4 + 0.2 * images  # its low frequencies stay in [0, 1]
    error = some.pixels(some.encode(gentle)) - some.patches(gentle)
    assert (error @ some.C.T.float()).abs().max() < 1e-6 < error.abs().max()


@pytest.mark.parametrize("n_frequencies", [0, 10, 2.5])
def test_refuses_a_number_of_frequencies_that_there_is_not(n_frequencies):
    with pytest.raises(
        ValueError, match=f"n_frequencies must be a whole number from 1 to 9, got {n_frequencies}"
    ):
        PatchEmbedding(12, 3, n_frequencies)


def test_a_token_that_is_no_patch_decodes_to_an_image():
    embedding = PatchEmbedding(12, 3)
    tokens = torch.nn.functional.normalize(
        torch.randn(5, 16, 10, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    decoded = embedding.decode(tokens)
    assert decoded.min() >= 0 and decoded.max() <= 1
    embedding.encode(decoded)


def test_refuses_to_decode_nan():
    with pytest.raises(ValueError, match="tokens must be numbers, got NaN"):
        PatchEmbedding(12, 3).decode(torch.full((1, 16, 10), float("nan")))


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda x: x[0], r"must have shape \(batch, 12, 12\), got \(12, 12\)"),
        (lambda x: x[:, :11], r"got \(3, 11, 12\)"),
        (lambda x: x * 255, r"values in \[0, 1\], got \[0, 255\]"),
        (lambda x: x.log() * 0 + float("nan"), r"values in \[0, 1\]"),
        (lambda x: x.numpy(), "images must be a torch.Tensor, got ndarray"),
        (lambda x: (x * 255).to(torch.uint8), "got torch.uint8: divide 8-bit values by 255"),
    ],
)
def test_refuses_what_is_no_image(images, spoil, message):
    with pytest.raises(ValueError, match=message):
        PatchEmbedding(12, 3).encode(spoil(images))


def test_refuses_patches_that_do_not_fit():
    with pytest.raises(
        ValueError, match="patch_size must divide image_size, got image_size=28, patch_size=5"
    ):
        PatchEmbedding(28, 5)


@pytest.mark.parametrize("n_frequencies", [None, 48, 20])
def test_colour_images_have_an_exact_inverse(n_frequencies):
    """Without all frequencies, what is kept is kept: encoding again changes nothing."""
    embedding = PatchEmbedding(32, 4, n_frequencies, channels=3)
    images = torch.rand(5, 3, 32, 32, dtype=torch.float64)
    tokens = embedding.encode(0.25 + images / 2)
    assert tokens.shape == (5, 64, (n_frequencies or 48) + 1)
    assert (tokens.norm(dim=-1) - 1).abs().max() < 1e-12
    back = embedding.decode(tokens)
    assert back.shape == images.shape
    if n_frequencies != 20:
        torch.testing.assert_close(back, 0.25 + images / 2, rtol=0, atol=1e-12)
    torch.testing.assert_close(embedding.encode(back), tokens, rtol=0, atol=1e-12)


def test_colour_components_are_the_channels_one_after_the_other():
    images = torch.rand(2, 3, 8, 8)
    patches = PatchEmbedding(8, 4, channels=3).patches(images)
    assert torch.equal(patches[1, 1], images[1, :, :4, 4:].flatten())


def test_low_frequencies_of_each_channel_are_those_of_a_grey_patch():
    grey, colour = PatchEmbedding(8, 4, 5), PatchEmbedding(8, 4, 15, channels=3)
    image = torch.rand(1, 3, 8, 8)
    u = colour.encode(image)[..., :-1].unflatten(-1, (5, 3)) * 49**0.5
    for c in range(3):
        torch.testing.assert_close(u[..., c], grey.encode(image[:, c])[..., :-1] * 17**0.5)


@pytest.mark.parametrize(
    "channels, shape, message",
    [
        (3, (2, 8, 8), r"images must have shape \(batch, 3, 8, 8\), got \(2, 8, 8\)"),
        (1, (2, 3, 8, 8), r"images must have shape \(batch, 8, 8\), got \(2, 3, 8, 8\)"),
    ],
)
def test_refuses_images_of_other_channels(channels, shape, message):
    with pytest.raises(ValueError, match=message):
        PatchEmbedding(8, 4, channels=channels).encode(torch.rand(shape))
    with pytest.raises(ValueError, match="channels must be a whole number >= 1, got 0"):
        PatchEmbedding(8, 4, channels=0)


def test_principal_components_keep_most_of_the_square():
    """More than as many low frequencies do, and all of it where images have no more dimensions."""
    generator = torch.Generator().manual_seed(0)
    whole = PatchEmbedding(8, 4)
    modes = torch.rand(5, 8, 8, generator=generator, dtype=torch.float64)
    weights = torch.rand(200, 5, generator=generator, dtype=torch.float64)
    images = torch.einsum("mk,kab->mab", weights / weights.sum(1, keepdim=True), modes)
    components = principal_components(images, whole, 5)
    learned = PatchEmbedding(8, 4, components=components)
    assert learned.dim == 6 and "components=(4, 5, 16)" in repr(learned)
    torch.testing.assert_close(learned.decode(learned.encode(images)), images, rtol=0, atol=1e-9)
    lost = [
        (e.decode(e.encode(images)) - images).square().mean()
        for e in (
            PatchEmbedding(8, 4, components=principal_components(images, whole, 3)),
            PatchEmbedding(8, 4, 3),
        )
    ]
    assert lost[0] < lost[1]


def test_refuses_components():
    whole, images = PatchEmbedding(8, 4), torch.rand(20, 8, 8)
    for n in (0, 17, 2.5):
        with pytest.raises(ValueError, match=f"n must be a whole number from 1 to 16, got {n}"):
            principal_components(images, whole, n)
    for wrong, message in (
        (torch.rand(3, 3, 8, 8), r"images must have shape \(batch, 8, 8\)"),
        (torch.rand(3, 12, 12), r"images must have shape \(batch, 8, 8\)"),
        (255 * images, r"values in \[0, 1\]"),
        (images[:0], "at least one, got none"),
    ):
        with pytest.raises(ValueError, match=message):
            principal_components(wrong, whole, 3)
    components = principal_components(images, whole, 3)
    for given, message in (
        ({"components": components[:3]}, r"shape \(4, c >= 1, 16\), got \(3, 3, 16\)"),
        ({"components": 2 * components}, "orthonormal rows"),
        ({"components": components, "n_frequencies": 3}, "n_frequencies must be None"),
        ({"components": components.numpy()}, "components must be a tensor, got ndarray"),
    ):
        with pytest.raises(ValueError, match=message):
            PatchEmbedding(8, 4, **given)


def test_learned_components_are_told_apart_by_their_values_and_not_by_rounding(images):
    whole = PatchEmbedding(12, 6)
    C = principal_components(images, whole, 5)
    names = [repr(PatchEmbedding(12, 6, components=c)) for c in (C, C * (1 + 1e-7), C.flip(1))]
    assert names[0] == names[1] != names[2]
