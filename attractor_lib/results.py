"""Small files of results from long runs, each with what made it: parameters, versions, machine, time."""

import json
import os
import platform
from datetime import datetime, timezone
from pathlib import Path

import pandas as pd
import torch


def provenance(device, seconds: float) -> dict:
    """What a run was made on and with: duration, date, device, cores, threads and versions."""
    return {"seconds": round(seconds, 1), "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            "device": torch.cuda.get_device_name() if str(device).startswith("cuda") else platform.machine() + " CPU",
            "cores": os.cpu_count(), "threads": torch.get_num_threads(), "python": platform.python_version(), "torch": torch.__version__}


def save_results(path: str | os.PathLike, rows: list[dict], parameters: dict, seconds: float) -> None:
    """Write rows (one dictionary a measurement) and their provenance as JSON, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"provenance": {"parameters": parameters, **provenance(parameters.get("device", "cpu"), seconds)}, "rows": rows}
    write_whole(path, json.dumps(record, indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all: who reads it, or is killed while writing it, never meets a part."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def results_folder(chapter: str) -> Path:
    """Where a chapter's stored results lie: in results/CHAPTER beside the notebooks."""
    for base in (Path.cwd(), Path.cwd() / "notebooks", Path(__file__).resolve().parents[1] / "notebooks"):
        if (base / "results" / chapter).is_dir():
            return base / "results" / chapter
    raise FileNotFoundError(f"expected a folder results/{chapter} beside the notebooks; they come with the repository")


def load_results(folder: str | os.PathLike) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All rows of the JSON files in a folder, with the parameters of their run as columns; and the provenance, a row a file.

    Raises FileNotFoundError if there are none.
    """
    files = sorted(Path(folder).glob("*.json"))
    if not files:
        raise FileNotFoundError(f"expected result files (*.json) in {folder}, found none")
    rows, runs = [], []
    for file in files:
        record = json.loads(file.read_text())
        parameters = record["provenance"].pop("parameters")
        rows += [{**parameters, **row} for row in record["rows"]]
        runs.append({"file": file.name, **parameters, **record["provenance"]})
    return pd.DataFrame(rows), pd.DataFrame(runs)


def finding(statement: str, holds) -> None:
    """Print a statement about the data with whether it holds: it may not, with other parameters."""
    print(f"{statement}: {bool(holds)}")


def check(statement: str, holds) -> None:
    """Print a statement that must hold, and raise AssertionError if it does not."""
    finding(statement, holds)
    assert holds, statement
