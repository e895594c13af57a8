"""Texts by name, and their letters as whole numbers."""

import os
import urllib.request
from pathlib import Path

import torch
from torch import Tensor

from attractor_lib.data.files import DataSet, announce, find_files, known_name

PUBLISHED = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)


def load_text(name: str, split: str, root: str | os.PathLike | None = None) -> str:
    """A text, fetched at the first use.

    Args:
        name: "tinyshakespeare" (1.1 million letters of Shakespeare's plays).
        split: "train", the first 90% of the letters, or "test", the others.
        root: the folder of all data; else the environment variable ATTRACTOR_DATA; else
            ~/.cache/attractor_lib. It holds tinyshakespeare/input.txt, which is fetched into it
            from where it is published.

    Raises:
        ValueError: for an unknown name or split, and for a file whose sha256 is not the known one.
        RuntimeError: if it could not be fetched, with what was tried.
    """
    name = known_name(name, split, TEXTS)
    (file,) = TEXTS[name].checksums
    text = (find_files(name, TEXTS[name], root) / file).read_bytes().decode()
    first = len(text) * 9 // 10
    return text[:first] if split == "train" else text[first:]


def from_publisher(folder: Path, name: str) -> None:
    """The copy that the text became known by."""
    announce(name, f"fetching {PUBLISHED} (1 MB)")
    (folder / name).mkdir(parents=True)
    with urllib.request.urlopen(PUBLISHED, timeout=60) as answer:
        (folder / name / "input.txt").write_bytes(answer.read())


TEXTS = {
    "tinyshakespeare": DataSet(
        "tinyshakespeare",
        {"input.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"},
        (from_publisher,),
    )
}


class Alphabet:
    """The letters of a text, in the order of their code points, as numbers from 0.

    Args:
        text: whose letters there are.
    """

    def __init__(self, text: str):
        self.letters = "".join(sorted(set(text)))
        self._numbers = {letter: n for n, letter in enumerate(self.letters)}

    def __len__(self) -> int:
        return len(self.letters)

    def __repr__(self) -> str:
        return f"Alphabet({self.letters!r})"

    def encode(self, text: str) -> Tensor:
        """Numbers (T,).

        Raises:
            ValueError: for a letter that is none of these.
        """
        if unknown := set(text) - set(self.letters):
            raise ValueError(f"letters must be among {self.letters!r}, got {sorted(unknown)}")
        return torch.tensor([self._numbers[letter] for letter in text], dtype=torch.long)

    def decode(self, numbers: Tensor) -> str:
        """The text of numbers (T,).

        Raises:
            ValueError: for anything but whole numbers (T,) from 0 to the last letter's.
        """
        is_tensor = isinstance(numbers, Tensor)
        if not is_tensor or numbers.ndim != 1 or numbers.is_floating_point():
            kind = (
                f"{numbers.dtype} {tuple(numbers.shape)}" if is_tensor else type(numbers).__name__
            )
            raise ValueError(f"numbers must be a tensor of whole numbers (T,), got {kind}")
        if numbers.numel() and not 0 <= numbers.min() <= numbers.max() < len(self):
            got = f"{numbers.min().item()} to {numbers.max().item()}"
            raise ValueError(f"numbers must be from 0 to {len(self) - 1}, got {got}")
        return "".join(self.letters[int(n)] for n in numbers.tolist())
