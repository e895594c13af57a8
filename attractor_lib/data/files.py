"""The files of a data set: found or fetched whole, never used before their checksums match."""

import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

Source = Callable[[Path, str], None]


@dataclass(frozen=True)
class DataSet:
    """The files of a data set.

    Attributes:
        folder: where they lie, seen from the folder of all data.
        checksums: the md5 or sha256 of each file, by its name.
        sources: functions (folder, name) that put the files where they lie, seen from that folder,
            or raise; tried in turn.
    """

    folder: str
    checksums: dict[str, str]
    sources: tuple[Source, ...] = ()


def find_files(name: str, data_set: DataSet, root: str | os.PathLike | None = None) -> Path:
    """The folder with the files of a data set; those that are not there are fetched.

    Args:
        name: of the data set, for messages.
        data_set: what it consists of.
        root: the folder of all data; else the environment variable ATTRACTOR_DATA; else
            ~/.cache/attractor_lib.

    Raises:
        ValueError: for a file whose checksum is another; it is not fetched over.
        RuntimeError: if no source gave the files, with what was tried.
    """
    root = root or os.environ.get("ATTRACTOR_DATA") or Path.home() / ".cache" / "attractor_lib"
    root = Path(root).expanduser()
    if not _complete(root / data_set.folder, data_set):
        _fetch(root, name, data_set)
    return root / data_set.folder


def known_name(name: str, split: str, known) -> str:
    """The name of a data set as it is written in `known`, whatever the case.

    Raises:
        ValueError: for another one, or a split that is neither "train" nor "test".
    """
    names = {each.lower(): each for each in known}
    if str(name).lower() not in names:
        raise ValueError(f"name must be one of {', '.join(known)}, got {name!r}")
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    return names[str(name).lower()]


def announce(name: str, what: str) -> None:
    """One line on standard error: fetching takes minutes, and may happen amid anything."""
    print(f"{name}: {what}", file=sys.stderr, flush=True)


def _complete(folder: Path, data_set: DataSet) -> bool:
    then = "to have it fetched again" if data_set.sources else "and put the right one there"
    for file, expected in data_set.checksums.items():
        kind = {32: "md5", 64: "sha256"}[len(expected)]
        if (folder / file).exists() and (got := digest(folder / file, kind)) != expected:
            raise ValueError(
                f"{folder / file} is damaged: expected {kind} {expected}, got {got} "
                f"({(folder / file).stat().st_size:,} bytes); remove it {then}"
            )
    return all((folder / file).exists() for file in data_set.checksums)


def digest(path: Path, kind: str) -> str:
    """Of a file, "md5" or "sha256"."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _fetch(root: Path, name: str, data_set: DataSet) -> None:
    """Files come into place only once all are right: a run that dies leaves no data behind."""
    folder, partial, tried = root / data_set.folder, root / f".{name}.partial", []
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f".{name}.lock")
        lock.acquire()  # two runs at once fetch once
    except OSError as error:
        message = f"{name} is not in {root}, and nothing can be written there: {error}"
        raise RuntimeError(message) from error
    with lock:
        try:
            if _complete(folder, data_set):
                return
            for source in data_set.sources:
                shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
                try:
                    source(partial, name)
                    if not _complete(partial / data_set.folder, data_set):
                        raise RuntimeError("it did not give all the files")
                    folder.mkdir(parents=True, exist_ok=True)
                    for file in data_set.checksums:
                        os.replace(partial / data_set.folder / file, folder / file)
                    announce(name, f"complete in {root}")
                    return
                except Exception as error:
                    tried.append(f"{source.__name__.removeprefix('from_')}: {error}")
                    announce(name, tried[-1])
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    raise RuntimeError(
        f"{name} could not be fetched. Tried:\n  "
        + "\n  ".join(tried or ["nothing: it is published nowhere"])
        + f"\nTo go on by hand, put {', '.join(data_set.checksums)} into {folder}"
    )
