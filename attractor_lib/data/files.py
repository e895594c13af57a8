"""The files of a data set: found or fetched whole, never used before their checksums match."""

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import FileLock

Source = Callable[[Path, str], None]


def find_files(
    name: str,
    checksums: dict[str, str],
    sources: Iterable[Source],
    root: str | os.PathLike | None = None,
) -> Path:
    """The folder ROOT/NAME/raw with the files of a data set; those that are not there are fetched.

    Args:
        name: of the data set.
        checksums: the md5 of each file, by its name.
        sources: functions (folder, name) that put the files into FOLDER/NAME/raw, or raise; tried
            in turn.
        root: a folder; else the environment variable ATTRACTOR_DATA; else ~/.cache/attractor_lib.

    Raises:
        ValueError: for a file whose md5 is another; it is not fetched over.
        RuntimeError: if no source gave the files, with what was tried.
    """
    root = root or os.environ.get("ATTRACTOR_DATA") or Path.home() / ".cache" / "attractor_lib"
    root = Path(root).expanduser()
    if not _complete(root / name / "raw", checksums):
        _fetch(root, name, checksums, sources)
    return root / name / "raw"


def announce(name: str, what: str) -> None:
    """One line on standard error: fetching takes minutes, and may happen amid anything."""
    print(f"{name}: {what}", file=sys.stderr, flush=True)


def _complete(raw: Path, checksums: dict[str, str]) -> bool:
    for file, expected in checksums.items():
        if (raw / file).exists() and (got := _md5(raw / file)) != expected:
            raise ValueError(
                f"{raw / file} is damaged: expected md5 {expected}, got {got} "
                f"({(raw / file).stat().st_size:,} bytes); remove it to have it fetched again"
            )
    return all((raw / file).exists() for file in checksums)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _fetch(root: Path, name: str, checksums: dict[str, str], sources: Iterable[Source]) -> None:
    """Files come into place only once all are right: a run that dies leaves no data behind."""
    raw, partial, tried = root / name / "raw", root / f".{name}.partial", []
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f".{name}.lock")
        lock.acquire()  # two runs at once fetch once
    except OSError as error:
        message = f"{name} is not in {root}, and nothing can be written there: {error}"
        raise RuntimeError(message) from error
    with lock:
        try:
            if _complete(raw, checksums):
                return
            for source in sources:
                shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
                try:
                    source(partial, name)
                    if not _complete(partial / name / "raw", checksums):
                        raise RuntimeError("it did not give all the files")
                    raw.mkdir(parents=True, exist_ok=True)
                    for file in checksums:
                        os.replace(partial / name / "raw" / file, raw / file)
                    announce(name, f"complete in {root}")
                    return
                except Exception as error:
                    tried.append(f"{source.__name__.removeprefix('from_')}: {error}")
                    announce(name, tried[-1])
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    raise RuntimeError(
        f"{name} could not be fetched. Tried:\n  "
        + "\n  ".join(tried)
        + f"\nTo go on by hand, put {', '.join(checksums)} into {raw}"
    )
