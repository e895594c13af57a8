"""A training on disk: which it is and how far it has come, to go on from there bit for bit."""

import os
import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch


def name_of(part: Callable) -> str:
    """A function's name, or what an object with fields says of itself."""
    return getattr(part, "__name__", None) or repr(part)


def lasting_name(part: Callable, role: str) -> str:
    """`name_of`, if another process would find the same; else ValueError."""
    name = name_of(part)
    if "<lambda>" in name or re.search(r"\bat 0x[0-9a-fA-F]+", name):
        raise ValueError(
            f"{role} must have a name by which a checkpoint knows it again, got {name}: "
            "define it with def, or give it a __repr__"
        )
    return name


def fingerprint(module: torch.nn.Module) -> str:
    """Eight digits that tell a module's parameters from others."""
    digest = sha256()
    for name, values in module.state_dict().items():
        digest.update(name.encode() + values.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


def sketch(values: torch.Tensor) -> str:
    """A tensor's shape and three of its projections at random: they tell it from others, and are
    the same on every device and beyond rounding.
    """
    drawn = torch.Generator().manual_seed(0)
    flat = values.detach().double().cpu().flatten()
    directions = torch.randn(3, len(flat), generator=drawn, dtype=torch.float64)
    seen = ", ".join(f"{round(p, 3) + 0.0:.3f}" for p in (directions @ flat).tolist())
    return f"{tuple(values.shape)} [{seen}]"


def state_of(part):
    """What a generator, or whatever has a state_dict, carries from step to step; else nothing.

    Raises:
        ValueError: for a state_dict without a load_state_dict, or the reverse.
    """
    if isinstance(part, torch.Generator):
        return part.get_state()
    saves, loads = hasattr(part, "state_dict"), hasattr(part, "load_state_dict")
    if saves != loads:
        there, missing = ("state_dict", "load_state_dict")[:: 1 if saves else -1]
        raise ValueError(
            f"{name_of(part)} must have both state_dict and load_state_dict or neither for a "
            f"checkpoint, got {there} without {missing}"
        )
    return part.state_dict() if saves else {}


def load_state(part, state) -> None:
    """The inverse of `state_of`."""
    if isinstance(part, torch.Generator):
        part.set_state(state)
    elif hasattr(part, "load_state_dict"):
        part.load_state_dict(state)


@contextmanager
def written_whole(path: Path):
    """A path beside `path` to write to; what is there takes its place if all of it was written."""
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _differing(there: str, here: str, width: int = 100) -> str:
    """Both texts, long ones from a little before the place where they first differ."""
    long = max(len(there), len(here)) > width
    start = max(0, len(os.path.commonprefix([there, here])) - width // 4) if long else 0
    there, here = (
        "..." * (start > 0) + text[start : start + width] + "..." * (len(text) > start + width)
        for text in (there, here)
    )
    return f"{there} there, {here} here"


@dataclass(frozen=True)
class Checkpoint:
    """A file that holds a training as it stood at the end of an epoch.

    Args:
        path: of the file.
        run: what the training is; a file that says otherwise is refused.
        parts: by name, whatever has a state: see `state_of`.

    Raises:
        ValueError: for a part whose state could be saved but not loaded, or the reverse.
    """

    path: Path
    run: dict
    parts: dict

    def __post_init__(self):
        self._states()

    def _states(self) -> dict:
        return {name: state_of(part) for name, part in self.parts.items()}

    def save(self, history: list[dict]) -> None:
        """A run killed meanwhile, or a full disk, leaves the last one."""
        states = self._states()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(self.path) as partial:
                torch.save({"run": self.run, "history": history, "parts": states}, partial)
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"the checkpoint {self.path} could not be written, the previous one stands: {error}"
            ) from error

    def load(self) -> list[dict]:
        """The history so far, the parts put back to where it ends; without a file, an empty one.

        Raises:
            ValueError: for a file that is damaged, or belongs to another training; and a folder.
            OSError: where no file could be written.
        """
        if self.path.is_dir():
            raise ValueError(f"checkpoint must be a file, got the folder {self.path}")
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path.parent, os.W_OK):  # told now, not after the first epoch
                raise OSError(f"no checkpoint can be written in {self.path.parent}")
            return []
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            there, history = dict(saved["run"]), list(saved["history"])
            states = {name: saved["parts"][name] for name in self.parts}
        except Exception as error:
            raise ValueError(
                f"{self.path} is not a readable checkpoint ({error!r}); remove it to start afresh"
            ) from error
        differing = [
            f"{key}: {_differing(repr(there.get(key)), repr(here))}"
            for key, here in self.run.items()
            if there.get(key) != here
        ]
        if differing:
            raise ValueError(
                f"{self.path} belongs to another run ({'; '.join(differing)}); "
                "use another file or remove it"
            )
        try:
            for name, part in self.parts.items():
                load_state(part, states[name])
        except RuntimeError as error:  # torch's, for other sizes
            told = " ".join(str(error).split())
            raise ValueError(f"{self.path} belongs to another run: {told}") from error
        return history
