"""Texts, with a tiny file in place of Shakespeare, and their letters."""

import hashlib
import http.server
import threading

import pytest
import torch

from attractor_lib.data import Alphabet, load_text, text
from attractor_lib.data.text import TEXTS, from_publisher

CONTENT = "To be, or not to be\n" * 10


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A web server of this machine that has the text, and its checksum in place of the known."""
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "input.txt").write_text(CONTENT)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path / "web"))

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/input.txt"
    monkeypatch.setattr(text, "PUBLISHED", address)
    digest = hashlib.sha256(CONTENT.encode()).hexdigest()
    known = type(TEXTS["tinyshakespeare"])
    files = known("tinyshakespeare", {"input.txt": digest}, (from_publisher,))
    monkeypatch.setitem(TEXTS, "tinyshakespeare", files)
    monkeypatch.delenv("ATTRACTOR_DATA", raising=False)
    yield tmp_path / "web" / "input.txt"
    server.shutdown()
    server.server_close()


def test_fetches_the_text_once_and_splits_it(tmp_path, published):
    root = tmp_path / "data"
    train, test = (
        load_text("TinyShakespeare", "train", root),
        load_text("tinyshakespeare", "test", root),
    )
    assert train + test == CONTENT and len(train) == 180
    published.unlink()
    assert load_text("tinyshakespeare", "train", root) == train
    names = [path.name for path in sorted((root / "tinyshakespeare").iterdir())]
    assert names == ["input.txt"]


def test_what_is_truncated_is_not_taken(tmp_path, published):
    published.write_text(CONTENT[:-1])
    with pytest.raises(RuntimeError, match="(?s)publisher: .*is damaged: expected sha256"):
        load_text("tinyshakespeare", "train", tmp_path / "data")
    (tmp_path / "data" / "tinyshakespeare").mkdir()
    (tmp_path / "data" / "tinyshakespeare" / "input.txt").write_text(CONTENT[:-1])
    with pytest.raises(ValueError, match="input.txt is damaged.*remove it"):
        load_text("tinyshakespeare", "train", tmp_path / "data")


def test_offline_the_error_says_what_was_tried(tmp_path, published, monkeypatch):
    monkeypatch.setattr(text, "PUBLISHED", "http://127.0.0.1:9/input.txt")
    with pytest.raises(RuntimeError, match="(?s)Tried:.*publisher: .*put input.txt into"):
        load_text("tinyshakespeare", "train", tmp_path / "data")


def test_refuses_unknown_names():
    with pytest.raises(ValueError, match="name must be one of tinyshakespeare, got 'hamlet'"):
        load_text("hamlet", "train")
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'all'"):
        load_text("tinyshakespeare", "all")


def test_letters_are_numbers_and_back():
    alphabet = Alphabet("to be or not")
    numbers = alphabet.encode("not to be")
    assert len(alphabet) == 7 and alphabet.letters == " benort"
    assert numbers.dtype == torch.long and numbers.max() < 7
    assert alphabet.decode(numbers) == "not to be" and alphabet.decode(alphabet.encode("")) == ""
    with pytest.raises(ValueError, match=r"letters must be among ' benort', got \['N', 'x'\]"):
        alphabet.encode("Not x")
    for wrong, message in (
        (torch.tensor([-1]), "from 0 to 6, got -1 to -1"),
        (torch.tensor([7]), "from 0 to 6, got 7 to 7"),
        (torch.tensor([[1]]), r"whole numbers \(T,\), got torch.int64 \(1, 1\)"),
        (torch.tensor([1.5]), r"whole numbers \(T,\), got torch.float32 \(1,\)"),
        ([1], r"whole numbers \(T,\), got list"),
    ):
        with pytest.raises(ValueError, match=message):
            alphabet.decode(wrong)
