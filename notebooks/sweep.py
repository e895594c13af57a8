"""Run a chapter over a grid of parameters, on all cores or on a Dask cluster, and gather the results.

    python notebooks/sweep.py 04 --grid beta 1 5 10 --grid seed 0 1 2 -p epochs 1
    python notebooks/sweep.py 04 --grid beta 1 5 10 --grid seed 0 1 2 -p epochs 1 --where k 4 --show "error, all"

The results of a point are the rows that the chapter saves (its cell tagged `save-results`; cells below it are left out), or,
where a chapter saves none, the statements that it prints with whether they hold. Each point is one file, written when it is
finished, so the same command again goes on where it was: finished points are not repeated, failed ones are tried again. A
point is run afresh if its parameters, the chapter's code or the library have changed. The table is written to results.csv,
the figure to figure.png.

On several machines, start `dask scheduler` on one, `dask worker ADDRESS --nthreads 1 --nworkers auto` on each, in an
environment that has attractor_lib, nbclient and ipykernel, and give --scheduler ADDRESS.
"""

import argparse
import hashlib
import itertools
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from distributed import Client, LocalCluster, as_completed
from matplotlib import pyplot as plt
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from rerun import HERE, ROOT, check_parameters, find_chapter, parse, refuse_committed, tagged

from attractor_lib.plots import use_style
from attractor_lib.results import save_results, write_whole

FINDING = re.compile(r"^(.+): (True|False)$", re.MULTILINE)


def run_point(notebook, parameters: dict, threads: int, folder: str) -> dict:
    """Execute a notebook where this is called; returns its rows and their provenance, or its error."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "results.json"
        saves = any("save-results" in cell.metadata.get("tags", []) for cell in notebook.cells)
        notebook = parameterize_notebook(notebook, {**parameters, **({"results_file": str(file)} if saves else {})}, language="python",
                                         kernel_name="python3")
        try:
            NotebookClient(notebook, timeout=None, kernel_name="python3", resources={
                "metadata": {"path": folder if Path(folder).is_dir() else temporary}}).execute(
                env=environment(threads), stderr=subprocess.DEVNULL)
        except CellExecutionError as error:
            return {"error": f"{error.ename}: {error.evalue}"}
        if not saves:
            printed = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []) if o.get("name") == "stdout")
            rows = [{"statement": statement, "holds": holds == "True"} for statement, holds in FINDING.findall(printed)]
            save_results(file, rows, parameters, time.perf_counter() - began)
        return json.loads(file.read_text())


def environment(threads: int) -> dict:
    """That of a kernel. Dask's workers give freed memory back at once (MALLOC_TRIM_THRESHOLD_), which halves the speed of training."""
    return {**{name: value for name, value in os.environ.items() if name != "MALLOC_TRIM_THRESHOLD_"}, "OMP_NUM_THREADS": str(threads)}


def relevant_part(chapter: Path):
    """A chapter up to the cell that saves its results, or all of it; ValueError if nothing of it could be gathered."""
    notebook = load_notebook_node(str(chapter))
    if saves := tagged(notebook, "save-results"):
        notebook.cells = notebook.cells[: saves[-1] + 1]
    elif not any(re.search(r"^ *(finding|check)\(", cell.source, re.MULTILINE) for cell in notebook.cells):
        raise ValueError(f"{chapter.stem} has no results to gather: it has no cell tagged save-results and prints no findings")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    return notebook


def run_points(points: list[tuple[str, Path, Path, dict]], scheduler: str | None = None, jobs: int | None = None) -> list[str]:
    """Run points (label, result file, chapter, parameters), each file written as its point is finished; returns those that failed.

    A point whose worker dies is given to another, three times; then it has failed.
    """
    jobs, failed, began = jobs or os.cpu_count(), [], time.perf_counter()
    if not points:
        return failed
    cluster = None if scheduler else LocalCluster(n_workers=min(jobs, len(points)), threads_per_worker=1, dashboard_address=None,
                                                       silence_logs=logging.ERROR)
    threads = 1 if scheduler else max(1, os.cpu_count() // jobs)
    parts = {chapter: relevant_part(chapter) for _, _, chapter, _ in points}
    with Client(cluster or scheduler, timeout=30) as client:
        futures = {client.submit(run_point, parts[chapter], parameters, threads, str(HERE), pure=False, retries=2): (label, file)
                   for label, file, chapter, parameters in points}
        for n, future in enumerate(as_completed(futures), 1):
            label, file = futures[future]
            record = future.result() if future.status == "finished" else {"error": repr(future.exception())}
            left = (time.perf_counter() - began) / n * (len(points) - n)
            if "error" in record:
                failed.append(label)
                print(f"[{n} of {len(points)}] {label}: FAILED, {record['error']}", flush=True)
            else:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_whole(file, json.dumps(record, indent=1) + "\n")
                print(f"[{n} of {len(points)}] {label}: {record['provenance']['seconds']:.0f} s; about {left / 60:.1f} min left", flush=True)
            future.release()
    if cluster:
        cluster.close()
    return failed


def digest(chapter: Path, parameters: dict) -> str:
    """Of all that a point's results depend on: the chapter's code, the library's and the parameters."""
    code = [cell.source for cell in relevant_part(chapter).cells if cell.cell_type == "code"]
    library = [file.read_text() for file in sorted((ROOT / "attractor_lib").glob("*.py"))]
    return hashlib.sha256(json.dumps([code, library, parameters], sort_keys=True).encode()).hexdigest()[:12]


def gather(points: list[tuple[str, Path, Path, dict]]) -> pd.DataFrame:
    """The rows of all points that are finished, with their parameters as columns."""
    rows = []
    for _, file, _, parameters in points:
        if file.exists():
            point = {name: str(value) if isinstance(value, list) else value for name, value in parameters.items()}
            rows += [{**point, **{name if name not in point else f"{name}, measured": value for name, value in row.items()}}
                     for row in json.loads(file.read_text())["rows"]]
    return pd.DataFrame(rows)


def draw(frame: pd.DataFrame, grid: dict, show: str | None):
    """Statements: the share of points where they hold. Else a measured column against the first parameter of the grid.

    Lines are means over what is not shown (seeds, say), bands their range.
    """
    import seaborn as sns  # not above: every worker reads this file, and draws nothing

    use_style()
    x, *others = sorted(grid, key=lambda name: name.startswith("seed"))  # seeds are averaged over
    others = [name for name in others if not name.startswith("seed")]
    if "statement" in frame and show is None:
        table = frame.pivot_table(index="statement", columns=[x, *others], values="holds", aggfunc="mean", sort=False)
        fig, ax = plt.subplots(figsize=(7 + 0.8 * table.shape[1], 1.6 + 0.35 * table.shape[0]))
        sns.heatmap(table, ax=ax, vmin=0, vmax=1, cmap="cividis", annot=True, fmt=".2g", linewidths=1, cbar=False)
        ax.set(title="share of points where the statement holds", ylabel="", xlabel=", ".join([x, *others]))
        return fig
    measured = frame[[name for name in frame if name not in grid]].dropna(axis=1, how="all")
    show = show or next(iter([*measured.select_dtypes("float"), *reversed([*measured.select_dtypes("number")])]), None)
    if show not in frame:
        raise ValueError(f"--show must be one of {', '.join(frame)}, got {show!r}")
    by = next(iter(measured.select_dtypes(["object", "str"])), None)
    plt.rcParams["figure.constrained_layout.use"] = False  # seaborn lays out its panels itself
    facets = sns.relplot(frame, x=x, y=show, hue=by, col=others[0] if others else None, style=others[1] if len(others) > 1 else None,
                         kind="line", marker="o", errorbar=("pi", 100), height=3.6, aspect=1.2)
    return facets.figure


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python notebooks/sweep.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chapter", help="the beginning of a chapter's name, for example 04, or the path of a notebook")
    parser.add_argument("--grid", nargs="+", action="append", required=True, metavar=("NAME", "VALUE"),
                        help="a parameter and its values, as YAML; repeat for more: every combination is run. "
                        "The first is the figure's axis; python notebooks/rerun.py --list CHAPTER lists them")
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                        help="a parameter that is the same at every point")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="points at a time on this machine (default: all %(default)s cores)")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="a running Dask scheduler, for example tcp://127.0.0.1:8786")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where table, figure and points go (default: _runs/sweep-CHAPTER)")
    parser.add_argument("--where", nargs=2, action="append", default=[], metavar=("COLUMN", "VALUE"),
                        help="draw only these rows of the table, for example --where k 4")
    parser.add_argument("--show", metavar="COLUMN", help="the column to draw (default: the first that is measured)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    try:
        chapter = find_chapter(arguments.chapter)
        folder = (arguments.output or ROOT / "_runs" / f"sweep-{chapter.stem}").resolve()
        refuse_committed(folder)
        fixed = {name: parse(name, value) for name, value in arguments.parameter}
        grid = {name: [parse(name, value) for value in values] for name, *values in arguments.grid}
        if len(grid) < len(arguments.grid) or set(grid) & set(fixed) or not all(grid.values()):
            raise ValueError("each parameter must be named once, with at least one value")
        if repeated := [f"{name} {v}" for name, values in grid.items() for n, v in enumerate(values) if v in values[:n]]:
            raise ValueError(f"each value of the grid must be given once, got {', '.join(repeated)} again")
        if "results_file" in {*grid, *fixed}:
            raise ValueError("results_file is set by the sweep")
        if arguments.jobs < 1:
            raise ValueError(f"--jobs must be at least 1, got {arguments.jobs}")
        points = []
        for values in itertools.product(*grid.values()):
            parameters = {**fixed, **dict(zip(grid, values))}
            check_parameters(chapter, parameters)
            label = " ".join(f"{name}={parameters[name]}" for name in grid)
            points.append((label, folder / "points" / f"{digest(chapter, parameters)}.json", chapter, parameters))
        wanted = [point for point in points if not point[1].exists()]
        print(f"{len(wanted)} of {len(points)} points to do; the others are finished", flush=True)
        failed = run_points(wanted, arguments.scheduler, arguments.jobs)
        frame = gather(points)
        if len(frame):
            frame.to_csv(folder / "results.csv", index=False)
            for column, value in arguments.where:
                if column not in frame:
                    raise ValueError(f"--where must name one of {', '.join(frame)}, got {column!r}; the table is in {folder}/results.csv")
                there = frame[column].unique()
                frame = frame[frame[column] == parse(column, value)]
                if frame.empty:
                    raise ValueError(f"--where {column} must be one of {', '.join(map(str, there))}, got {value}")
            draw(frame.drop(columns=[*fixed]), grid, arguments.show).savefig(folder / "figure.png", dpi=150, bbox_inches="tight")
            print(f"== {len(points) - len(failed)} of {len(points)} points in {folder}/results.csv and figure.png")
        if failed:
            sys.exit(f"error: failed: {'; '.join(failed)}. The others are kept; the same command tries these again")
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; what is finished is kept, the same command goes on from there")


if __name__ == "__main__":
    main()
