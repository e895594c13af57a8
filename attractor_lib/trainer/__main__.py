"""``python -m attractor_lib.trainer``: train an attractor network on images and save it."""

import argparse
import functools
import sys
from pathlib import Path

import torch

from attractor_lib.analysis import restoration_error
from attractor_lib.checkpoint import written_whole
from attractor_lib.corruption import AddNoise, HideTokens, mean_token
from attractor_lib.data.images import IMAGE_SETS, load_images
from attractor_lib.embedding import PatchEmbedding
from attractor_lib.learning import prediction_rule
from attractor_lib.model import AttractorNetwork
from attractor_lib.processes import Processes
from attractor_lib.trainer import TrainingConfig, select_device, train

EXAMPLES = """\
one full head, as in the paper:
  python -m attractor_lib.trainer --n-heads 1 --rank full --beta 1 --learning-rate 2e-2
two processes on the CPU, of four threads each (of one each, if that is left out), or on two GPUs:
  OMP_NUM_THREADS=4 torchrun --nproc-per-node 2 -m attractor_lib.trainer --checkpoint run.pt
They end where one process does, beyond rounding. Interrupted, the same command goes on from the
checkpoint, with any number of processes.

The network that is saved is loaded by
  saved = torch.load("network.pt", weights_only=True)
  network = AttractorNetwork(**saved["network"])
  network.load_state_dict(saved["parameters"])
  embedding = PatchEmbedding(**saved["embedding"])
"""


def rank(text: str) -> int | None:
    if text != "full" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number or full, got {text}")
    return None if text == "full" else int(text)


def seed(text: str) -> int:
    if not (text.isdecimal() and int(text) < 2**63):  # what torch takes
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2**63 - 1, got {text}")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m attractor_lib.trainer",
        usage="%(prog)s [options] [data]",
        description="Train an attractor network on images by the prediction rule: tokens that are "
        "hidden or noisy are to be restored.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add(name, kind, default, meaning, **form):
        parser.add_argument(
            name, type=kind, default=default, help=f"{meaning} (default: %(default)s)", **form
        )

    add("data", str, "MNIST", f"one of {', '.join(IMAGE_SETS)}", nargs="?")
    parser.add_argument(
        "--n-images", type=int, metavar="N", help="how many of its train images (default: all)"
    )
    add("--patch-size", int, 7, "side of a patch, which becomes a token, in pixels", metavar="N")
    add("--n-heads", int, 16, "number of heads", metavar="N")
    add("--rank", rank, 16, "rank of their couplings, or full", metavar="N")
    add("--beta", float, 5.0, "inverse temperature")
    task = parser.add_mutually_exclusive_group()
    task.add_argument(
        "--n-hidden",
        type=int,
        default=4,
        metavar="N",
        help="hidden tokens of each image (default: %(default)s)",
    )
    task.add_argument(
        "--noise",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="pixel noise in place of hidden tokens, its standard deviation between these",
    )
    add("--epochs", int, 4, "passes over the images", metavar="N")
    add("--batch-size", int, 250, "images a step, of all processes together", metavar="N")
    add("--learning-rate", float, 1e-2, "of Adam, at first; it falls to zero", metavar="RATE")
    add("--seed", seed, 0, "of couplings, order and corruption", metavar="N")
    add("--device", str, "auto", "cpu, cuda, or auto, which is cuda where there is one")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="written after each epoch; if it is there, training goes on from it",
    )
    add("--output", Path, Path("network.pt"), "file for the trained network", metavar="FILE")
    return parser


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser()
    given = parser.parse_args(arguments)
    try:
        if not given.output.parent.is_dir() or given.output.is_dir():
            raise ValueError(f"output must be a file in a folder that is there, got {given.output}")
        device = select_device(given.device)
        images = load_images(given.data, "train")
        n_images = len(images) if given.n_images is None else given.n_images
        if not 1 <= n_images <= len(images):
            raise ValueError(f"n_images must be from 1 to {len(images)}, got {n_images}")
        patches = {"image_size": images.shape[-1], "patch_size": given.patch_size}
        patches |= {"channels": images.shape[1] if images.ndim == 4 else 1}
        embedding = PatchEmbedding(**patches)
        tokens = embedding.encode(images[:n_images].to(device))
        form = {"n_sites": embedding.n_sites, "dim": embedding.dim, "n_heads": given.n_heads}
        form |= {"rank": given.rank, "beta": given.beta}
        generator = torch.Generator().manual_seed(given.seed)
        network = AttractorNetwork(**form, generator=generator).to(device)
        if given.noise:
            corrupt = AddNoise(*given.noise, embedding)
        else:
            corrupt = HideTokens(given.n_hidden, mean_token(tokens))
        config = TrainingConfig(
            epochs=given.epochs,
            batch_size=given.batch_size,
            learning_rate=given.learning_rate,
            seed=given.seed,
        )
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    processes, say = Processes(), functools.partial(print, flush=True)
    if processes.first:
        say(
            f"{n_images:,} images of {given.data}, {embedding.n_sites} tokens of {embedding.dim}; "
            f"processes: {processes.count}, on {device.type}, threads of each: "
            f"{torch.get_num_threads()}"
        )
    try:
        train(network, prediction_rule, tokens, corrupt, config, given.checkpoint, report=say)
    except KeyboardInterrupt:
        again = f"the same command goes on from {given.checkpoint}" if given.checkpoint else ""
        sys.exit(f"interrupted{again and ': '}{again}" if processes.first else 1)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    if not processes.first:
        return
    test = embedding.encode(load_images(given.data, "test").to(device))
    before, after = restoration_error(network.update, test, corrupt, embedding).mean(1).tolist()
    with written_whole(given.output) as partial:
        saved = {"network": form, "embedding": patches, "parameters": network.state_dict()}
        torch.save(saved, partial)
    say(
        f"restoration error on {len(test):,} test images: {after:.5f} after one update, "
        f"{before:.5f} before (squares per pixel of the corrupted tokens); saved: {given.output}"
    )


if __name__ == "__main__":
    main()
