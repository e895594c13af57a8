"""Many runs of chapters, on all cores or on a Dask cluster: grids of parameters, and the long runs
that are stored.

The results of a point are the rows that the chapter saves (its cell tagged `save-results`; cells
below it are left out), or, where a chapter saves none, the statements that it prints with whether
they hold. Each point is one file, written when it is finished.
"""

import itertools
import json
import logging
import math
import os
import re
import tempfile
import time
from pathlib import Path

import nbformat
import pandas as pd
import seaborn as sns
from distributed import Client, LocalCluster, as_completed
from matplotlib import pyplot as plt
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from attractor_book.executor import (
    NOTEBOOKS,
    check_parameters,
    execute,
    find_chapter,
    key_of,
    parse,
    parse_all,
    refuse_committed,
    tagged,
    told_error,
)
from attractor_book.plots import use_style
from attractor_book.results import ROOT, save_results, write_whole
from attractor_book.runs import RUNS

FINDING = re.compile(r"^(.+): (True|False)$", re.MULTILINE)
Point = tuple[str, Path, Path, dict]  # label, result file, chapter, parameters


def run_point(notebook: NotebookNode, parameters: dict, threads: int, folder: str) -> dict:
    """Execute a notebook where this is called.

    Returns:
        The text of its result file as "text", or its "error"; and the "seconds" that it took here.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "results.json"
        saves = bool(tagged(notebook, "save-results"))
        try:
            notebook = execute(
                notebook,
                parameters | ({"results_file": str(file)} if saves else {}),
                folder=folder if Path(folder).is_dir() else temporary,
                threads=threads,
            )
        except CellExecutionError as error:
            return {"error": told_error(error)}
        seconds = time.perf_counter() - began
        if not saves:
            outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
            printed = "".join(o.get("text", "") for o in outputs if o.get("name") == "stdout")
            rows = [{"statement": s, "holds": h == "True"} for s, h in FINDING.findall(printed)]
            save_results(file, rows, parameters, seconds, dict(notebook.metadata.provenance))
        return {"text": file.read_text(), "seconds": seconds}


def relevant_part(chapter: Path) -> NotebookNode:
    """A chapter up to the cell that saves its results, or all of it.

    Raises:
        ValueError: if nothing of it could be gathered.
    """
    notebook = nbformat.read(chapter, as_version=4)
    if saves := tagged(notebook, "save-results"):
        notebook.cells = notebook.cells[: saves[-1] + 1]
    elif not any(
        re.search(r"^ *(finding|check)\(", c.source, re.MULTILINE) for c in notebook.cells
    ):
        raise ValueError(
            f"{chapter.stem} has no results to gather: "
            "it has no cell tagged save-results and prints no findings"
        )
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    return notebook


def time_left(seconds: list[float], n: int, at_a_time: int, elapsed: float) -> float:
    """For what is left of n points, from what the finished ones took, when so many run at a
    time.
    """
    if len(seconds) >= n:
        return 0.0
    each = sum(seconds) / len(seconds)
    return max(each * math.ceil(n / at_a_time) - elapsed, 0.0)


def run_points(
    points: list[Point], scheduler: str | None = None, jobs: int | None = None
) -> list[str]:
    """Run points, each file written as its point is finished; returns the labels of those that
    failed.

    A point whose worker dies is given to another, three times; then it has failed.
    """
    jobs, failed, took, began = jobs or os.cpu_count(), [], [], time.perf_counter()
    if not points:
        return failed
    cluster = None
    if not scheduler:
        cluster = LocalCluster(
            n_workers=min(jobs, len(points)),
            threads_per_worker=1,
            dashboard_address=None,
            silence_logs=logging.ERROR,
        )
    threads = 1 if scheduler else max(1, os.cpu_count() // jobs)
    parts = {chapter: relevant_part(chapter) for _, _, chapter, _ in points}
    with Client(cluster or scheduler, timeout=30) as client:
        futures = {}
        for name, file, chapter, given in points:
            work = parts[chapter], given, threads, str(NOTEBOOKS)
            futures[client.submit(run_point, *work, pure=False, retries=2)] = name, file
        for n, future in enumerate(as_completed(futures), 1):
            name, file = futures[future]
            there = future.status == "finished"
            record = future.result() if there else {"error": repr(future.exception())}
            print(f"[{n} of {len(points)}] {name}: ", end="")
            if "error" in record:
                failed.append(name)
                print(f"FAILED, {record['error']}", flush=True)
            else:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_whole(file, record["text"])
                took.append(record["seconds"])
                at_a_time = max(1, sum(client.nthreads().values()))
                left = time_left(
                    took, len(points) - len(failed), at_a_time, time.perf_counter() - began
                )
                print(f"{took[-1]:.0f} s; about {left / 60:.1f} min left", flush=True)
            future.release()
    if cluster:
        cluster.close()
    return failed


def digest(chapter: Path, parameters: dict) -> str:
    """Of all that a point's results depend on: the chapter's code, the library's and the book's,
    the parameters.
    """
    cells = [cell.source for cell in relevant_part(chapter).cells if cell.cell_type == "code"]
    files = [
        (str(file.relative_to(ROOT)), file.read_text())
        for package in ("attractor_lib", "attractor_book")
        for file in sorted((ROOT / package).rglob("*.py"))
    ]
    return key_of(cells, files, sorted(parameters.items()))


def gather(points: list[Point]) -> pd.DataFrame:
    """The rows of all points that are finished, with their parameters as columns."""
    rows = []
    for _, file, _, parameters in points:
        if file.exists():
            point = {
                name: str(value) if isinstance(value, list) else value
                for name, value in parameters.items()
            }
            rows += [
                {
                    **point,
                    **{
                        name if name not in point else f"{name}, measured": value
                        for name, value in row.items()
                    },
                }
                for row in json.loads(file.read_text())["rows"]
            ]
    return pd.DataFrame(rows)


def draw(frame: pd.DataFrame, grid: dict, show: str | None):
    """Statements: the share of points where they hold. Else a measured column against the first
    parameter of the grid.

    Lines are means over what is not shown (seeds, say), bands their range.
    """
    use_style()
    x, *others = sorted(grid, key=lambda name: name.startswith("seed"))  # seeds are averaged over
    others = [name for name in others if not name.startswith("seed")]
    if "statement" in frame and show is None:
        table = frame.pivot_table(
            index="statement", columns=[x, *others], values="holds", aggfunc="mean", sort=False
        )
        fig, ax = plt.subplots(figsize=(7 + 0.8 * table.shape[1], 1.6 + 0.35 * table.shape[0]))
        sns.heatmap(
            table,
            ax=ax,
            vmin=0,
            vmax=1,
            cmap="cividis",
            annot=True,
            fmt=".2g",
            linewidths=1,
            cbar=False,
        )
        ax.set(
            title="share of points where the statement holds",
            ylabel="",
            xlabel=", ".join([x, *others]),
        )
        return fig
    measured = frame[[name for name in frame if name not in grid]].dropna(axis=1, how="all")
    show = show or next(
        iter([*measured.select_dtypes("float"), *reversed([*measured.select_dtypes("number")])]),
        None,
    )
    if show not in frame:
        raise ValueError(f"--show must be one of {', '.join(frame)}, got {show!r}")
    by = next(iter(measured.select_dtypes(["object", "str"])), None)
    plt.rcParams["figure.constrained_layout.use"] = False  # seaborn lays out its panels itself
    facets = sns.relplot(
        frame,
        x=x,
        y=show,
        hue=by,
        col=others[0] if others else None,
        style=others[1] if len(others) > 1 else None,
        kind="line",
        marker="o",
        errorbar=("pi", 100),
        height=3.6,
        aspect=1.2,
    )
    return facets.figure


def check_jobs(jobs: int | None) -> None:
    """ValueError for less than one at a time."""
    if jobs is not None and jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {jobs}")


def read_grid(chapter: Path, grid: list[list[str]], fixed: list[list[str]]) -> tuple[dict, dict]:
    """The values of the grid and the fixed parameters, by name; ValueError for what cannot be
    run.
    """
    constant = parse_all(fixed)
    axes = {name: [parse(name, value) for value in values] for name, *values in grid}
    if len(axes) < len(grid) or set(axes) & set(constant) or not all(axes.values()):
        raise ValueError("each parameter must be named once, with at least one value")
    repeated = [
        f"{k} {v}" for k, values in axes.items() for n, v in enumerate(values) if v in values[:n]
    ]
    if repeated:
        raise ValueError(
            f"each value of the grid must be given once, got {', '.join(repeated)} again"
        )
    if "results_file" in {*axes, *constant}:
        raise ValueError("results_file is set by the sweep")
    for values in itertools.product(*axes.values()):
        check_parameters(chapter, {**constant, **dict(zip(axes, values))})
    return axes, constant


def sweep(
    chapter: str,
    grid: list[list[str]],
    fixed: list[list[str]] = (),
    jobs: int | None = None,
    scheduler: str | None = None,
    output: Path | None = None,
    where: list[list[str]] = (),
    show: str | None = None,
) -> None:
    """Run a chapter over a grid; its table and figure are named after the grid, its points are
    shared by all grids.

    Raises:
        ValueError: for what cannot be run or shown, and for points that failed.
    """
    path = find_chapter(chapter)
    folder = (output or ROOT / "_runs" / f"sweep-{path.stem}").resolve()
    refuse_committed(folder)
    check_jobs(jobs)
    axes, constant = read_grid(path, grid, fixed)
    points = []
    for values in itertools.product(*axes.values()):
        parameters = {**constant, **dict(zip(axes, values))}
        check_parameters(path, parameters)
        name = " ".join(f"{name}={parameters[name]}" for name in axes)
        file = folder / "points" / f"{digest(path, parameters)}.json"
        points.append((name, file, path, parameters))
    wanted = [point for point in points if not point[1].exists()]
    print(f"{len(wanted)} of {len(points)} points to do; the others are finished", flush=True)
    failed = run_points(wanted, scheduler, jobs)
    frame = gather(points)
    if len(frame):
        name = f"{'-'.join(axes)[:60]}-{key_of(axes, constant)[:6]}"
        table, figure = folder / f"{name}.csv", folder / f"{name}.png"
        frame.to_csv(table, index=False)
        frame = chosen(frame, where, table)
        draw(frame.drop(columns=[*constant]), axes, show).savefig(
            figure, dpi=150, bbox_inches="tight"
        )
        n_done = len(points) - len(failed)
        print(f"== {n_done} of {len(points)} points in {table} and {figure.name}")
    if failed:
        raise ValueError(
            f"failed: {'; '.join(failed)}. The others are kept; the same command tries these again"
        )


def chosen(frame: pd.DataFrame, where: list[list[str]], table: Path) -> pd.DataFrame:
    """The rows in which each column of `where` has its value; ValueError if there are none."""
    for column, value in where:
        if column not in frame:
            names = ", ".join(frame)
            raise ValueError(
                f"--where must name one of {names}, got {column!r}; the table is in {table}"
            )
        there = ", ".join(map(str, frame[column].unique()))
        frame = frame[frame[column] == parse(column, value)]
        if frame.empty:
            raise ValueError(f"--where {column} must be one of {there}, got {value}")
    return frame


def long_runs(chapter: str = "", force: bool = False, jobs: int | None = None) -> None:
    """Run the long runs of a chapter, or all, that are not stored yet.

    Raises:
        ValueError: for a chapter without any, and for runs that failed.
    """
    check_jobs(jobs)
    names = sorted({run[0] for run in RUNS})
    if chapter:
        path = find_chapter(chapter).resolve()
        there = [name for name in names if find_chapter(name).resolve() == path]
        if not there:
            raise ValueError(f"long runs are those of {', '.join(names)}, not of {path.stem}")
        names = there
    points = []
    for name, run, parameters in RUNS:
        if name in names:
            path, file = find_chapter(name), NOTEBOOKS / "results" / name / f"{run}.json"
            check_parameters(path, parameters)
            points.append((f"{name}/{run}", file, path, parameters))
    wanted = [point for point in points if force or not point[1].exists()]
    print(
        f"{len(wanted)} of {len(points)} runs to do, {jobs or os.cpu_count()} at a time; "
        "the others are stored (--force runs them again)",
        flush=True,
    )
    if failed := run_points(wanted, jobs=jobs):
        raise ValueError(f"failed: {', '.join(failed)}; the others are saved")
