"""Small files of results from long runs, each with what made it: parameters, versions, machine,
time.
"""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import torch

from attractor_lib.checkpoint import written_whole

ROOT = Path(__file__).resolve().parents[1]


def provenance(device, seconds: float) -> dict:
    """What a run was made on and with: time, date, device, cores, threads, versions, and the
    commit.
    """
    cuda = str(device).startswith("cuda")
    run = {
        "seconds": round(seconds, 1),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(device) if cuda else f"{platform.machine()} CPU",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    return run | ({"commit": commit} if (commit := current_commit()) else {})


def current_commit() -> str:
    """The short name of the commit that the repository around this package is at; empty if there is
    none.
    """
    if not (ROOT / ".git").exists():
        return ""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git
        return ""


def save_results(
    path: str | os.PathLike,
    rows: list[dict],
    parameters: dict,
    seconds: float,
    made: dict | None = None,
) -> None:
    """Write rows (one dictionary a measurement) and their provenance as JSON, whole or not at
    all: `made`, or that of this process.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = made or provenance(parameters.get("device", "cpu"), seconds)
    run = {"parameters": parameters, **made}
    write_whole(path, json.dumps({"provenance": run, "rows": rows}, indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all: who reads it, or is killed writing it, meets no part."""
    with written_whole(path) as partial:
        partial.write_text(text)


def results_folder(chapter: str) -> Path:
    """Where a chapter's stored results lie: in results/CHAPTER beside the notebooks."""
    for base in (Path.cwd(), Path.cwd() / "notebooks", ROOT / "notebooks"):
        if (base / "results" / chapter).is_dir():
            return base / "results" / chapter
    raise FileNotFoundError(
        f"expected a folder results/{chapter} beside the notebooks; they come with the repository"
    )


def load_results(folder: str | os.PathLike) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All rows of the JSON files in a folder with the parameters of their run, and the provenance,
    a row a file.

    Parameters that are lists are given as text.

    Raises:
        FileNotFoundError: if there are none.
    """
    files = sorted(Path(folder).glob("*.json"))
    if not files:
        raise FileNotFoundError(f"expected result files (*.json) in {folder}, found none")
    rows, runs = [], []
    for file in files:
        record = json.loads(file.read_text())
        given = record["provenance"].pop("parameters")
        given = {name: str(v) if isinstance(v, list) else v for name, v in given.items()}
        rows += [{**given, **row} for row in record["rows"]]
        runs.append({"file": file.name, **given, **record["provenance"]})
    return pd.DataFrame(rows), pd.DataFrame(runs)


def finding(statement: str, holds) -> None:
    """Print a statement about the data with whether it holds: it may not, with other parameters."""
    print(f"{statement}: {bool(holds)}")


def check(statement: str, holds) -> None:
    """Print a statement that must hold; AssertionError if it does not."""
    finding(statement, holds)
    assert holds, statement
