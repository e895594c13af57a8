"""Sweeps over a tiny notebook: restarts, failures, a worker that is killed, the table."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from attractor_book import command, executor, sweep

ROOT = Path(__file__).resolve().parents[2]

PARAMETERS = """\
beta = 1.0  # inverse temperature; > 0
seed = 0  # of nothing; at least 0
seconds = 0.0  # that a point takes; at least 0
folder = ""  # of this test; any text
results_file = ""  # JSON file, none if empty; any text"""
WORK = """\
import json, os, pathlib, time
folder = pathlib.Path(folder)
with open(folder / "runs", "a") as file:
    file.write(f"{beta} {seed}\\n")
time.sleep(seconds)
assert not ((folder / "broken").exists() and beta == 5 and seed == 1), "broken"
rows = [{"kind": kind, "k": k, "error": beta * k + seed} for kind in "ab" for k in (1, 4)]"""
SAVE = """\
if results_file:
    made = {"seconds": 0.1, "threads": os.environ["OMP_NUM_THREADS"]}
    record = {"provenance": made, "rows": rows}
    pathlib.Path(results_file).write_text(json.dumps(record))"""


@pytest.fixture
def toy(tmp_path):
    cells = [
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new_code_cell(WORK),
        new_code_cell(SAVE, metadata={"tags": ["save-results"]}),
        new_code_cell("raise ValueError('not to be run')"),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "toy.ipynb")
    return tmp_path / "toy.ipynb"


def sweep_of(notebook, *more):
    return [
        sys.executable,
        "-m",
        "attractor_book",
        "sweep",
        str(notebook),
        "--output",
        str(notebook.parent / "out"),
        "-p",
        "folder",
        str(notebook.parent),
        *map(str, more),
    ]


def table_of(notebook):
    (table,) = (notebook.parent / "out").glob("*.csv")
    return pd.read_csv(table)


def figure_of(notebook):
    (figure,) = (notebook.parent / "out").glob("*.png")
    return figure


def runs(notebook):
    return sorted((notebook.parent / "runs").read_text().splitlines())


GRID = ["--grid", "beta", 1, 5, "--grid", "seed", 0, 1]


def test_kernels_do_not_inherit_that_dask_gives_memory_back_at_once(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    found = executor.environment(3)
    assert (
        "MALLOC_TRIM_THRESHOLD_" not in found and found["OMP_NUM_THREADS"] == "3" and found["PATH"]
    )


@pytest.mark.slow
def test_failed_points_are_reported_and_tried_again_finished_ones_are_not_and_all_become_one_table(
    toy,
):
    (toy.parent / "broken").touch()
    done = subprocess.run(sweep_of(toy, *GRID, "--jobs", 1), capture_output=True, text=True)
    assert (
        done.returncode == 1
        and "error: failed: beta=5 seed=1." in done.stderr
        and "FAILED, in cell 3: AssertionError: broken" in done.stdout
    )
    assert (
        "4 of 4 points to do" in done.stdout and "[4 of 4]" in done.stdout and "left" in done.stdout
    )
    assert len(table_of(toy)) == 3 * 4
    (toy.parent / "broken").unlink()
    done = subprocess.run(
        sweep_of(toy, *GRID, "--jobs", 1, "--where", "k", 4), capture_output=True, text=True
    )
    assert done.returncode == 0 and "1 of 4 points to do" in done.stdout, done.stderr
    assert runs(toy) == ["1 0", "1 1", "5 0", "5 1", "5 1"]
    table = table_of(toy).set_index(["beta", "seed", "kind", "k"])["error"]
    assert table.size == 16 and table[5, 1, "a", 4] == 21 and table[1, 0, "b", 1] == 1
    assert figure_of(toy).stat().st_size > 5000
    assert not list((toy.parent / "out" / "points").glob("*.partial"))


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(toy):
    process = subprocess.Popen(
        sweep_of(toy, *GRID, "-p", "seconds", 3, "--jobs", 2),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    while process.poll() is None and (not (toy.parent / "runs").exists() or len(runs(toy)) < 2):
        time.sleep(0.1)
    workers = [
        p
        for p in psutil.Process(process.pid).children()
        if any("ipykernel_launcher" in k.cmdline() for k in p.children())
    ]
    workers[0].kill()
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert len(runs(toy)) == 5 and sorted(set(runs(toy))) == ["1 0", "1 1", "5 0", "5 1"]
    assert len(table_of(toy)) == 16


def swept(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["attractor-book", *map(str, arguments)])
    command.main()


@pytest.mark.parametrize(
    "more, message",
    [
        (["--grid", "beta", 1, 2, -1], r"beta \(inverse temperature\) must be > 0, got -1"),
        (["--grid", "gamma", 1], "toy has no parameter 'gamma'"),
        (["--grid", "beta", 1, "--grid", "beta", 2], "each parameter must be named once"),
        (["--grid", "folder", "a"], "each parameter must be named once"),
        (["--grid", "beta", 1, *2 * ["-p", "n_sites", 3]], "given once, got n_sites again"),
        (["--grid", "results_file", "a"], "results_file is set by the sweep"),
        (
            ["--grid", "beta", 1, 5, 1.0],
            "each value of the grid must be given once, got beta 1.0 again",
        ),
        (["--grid", "beta", "["], "beta: expected a value in YAML"),
        (
            ["--grid", "beta", 1, "--output", ROOT / "notebooks"],
            "must not lie among the committed notebooks",
        ),
        (
            ["--grid", "beta", 1, "--output", ROOT / "notebooks" / "results" / "new"],
            "must not lie among the committed notebooks",
        ),
    ],
)
def test_everything_is_checked_before_any_work(toy, monkeypatch, more, message):
    with pytest.raises(SystemExit, match=message):
        swept(monkeypatch, *sweep_of(toy, *more)[3:])
    assert not (toy.parent / "runs").exists() and not (toy.parent / "out").exists()


@pytest.mark.parametrize(
    "chapter", ["4", "04", "04_masked", str(ROOT / "notebooks" / "04_masked_prediction.ipynb")]
)
def test_long_runs_are_those_of_a_chapter_that_is_named_in_any_way_and_stay_with_the_notebooks(
    monkeypatch, chapter
):
    given = []
    monkeypatch.setattr(sweep, "run_points", lambda points, jobs: given.extend(points))
    swept(monkeypatch, "results", chapter, "--force", "--jobs", 1)
    results = ROOT / "notebooks" / "results" / "04_masked_prediction"
    assert given and {file.parent for _, file, _, _ in given} == {results}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--jobs", 0], "--jobs must be at least 1, got 0"),
        (["--jobs", -2], "--jobs must be at least 1, got -2"),
        (["1"], "long runs are those of .*, not of 01_local_energies"),
        (["99"], "chapter must be the beginning of one of .*, got '99'"),
    ],
)
def test_long_runs_refuse_what_there_is_none_of(monkeypatch, arguments, message):
    monkeypatch.setattr(sweep, "run_points", None)
    with pytest.raises(SystemExit, match=message):
        swept(monkeypatch, "results", *arguments)


@pytest.mark.slow
def test_a_figure_of_no_rows_is_refused_with_the_values_there_are(toy, monkeypatch):
    with pytest.raises(SystemExit, match="--where k must be one of 1, 4, got 9"):
        swept(monkeypatch, *sweep_of(toy, "--grid", "beta", 1, "--jobs", 1, "--where", "k", 9)[3:])
    assert len(table_of(toy)) and not list((toy.parent / "out").glob("*.png"))


def test_a_notebook_without_results_is_refused(toy, monkeypatch):
    notebook = nbformat.read(toy, as_version=4)
    del notebook.cells[2:]
    nbformat.write(notebook, toy)
    with pytest.raises(
        SystemExit,
        match="toy has no results to gather: it has no cell tagged save-results and prints no",
    ):
        swept(monkeypatch, *sweep_of(toy, "--grid", "beta", 1)[3:])


def test_a_point_is_another_one_if_anything_that_it_depends_on_has_changed(
    toy, tmp_path, monkeypatch
):
    first = sweep.digest(toy, {"beta": 1})
    assert first == sweep.digest(toy, {"beta": 1}) != sweep.digest(toy, {"beta": 2})
    notebook = nbformat.read(toy, as_version=4)
    notebook.cells[-1].source = "below the cell that saves"
    nbformat.write(notebook, toy)
    assert sweep.digest(toy, {"beta": 1}) == first
    notebook.cells[1].source += "  # changed"
    nbformat.write(notebook, toy)
    assert sweep.digest(toy, {"beta": 1}) != first


@pytest.mark.parametrize("package", ["attractor_lib", "attractor_book"])
def test_a_point_is_another_one_if_a_file_in_a_subfolder_of_either_package_has_changed(
    toy, tmp_path, monkeypatch, package
):
    for name in ("attractor_lib", "attractor_book"):
        shutil.copytree(ROOT / name, tmp_path / name)
    within = tmp_path / package / "within"
    within.mkdir()
    (within / "deep.py").write_text("a = 1\n")
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    first = sweep.digest(toy, {"beta": 1})
    (within / "notes.txt").write_text("no code")
    assert sweep.digest(toy, {"beta": 1}) == first
    (within / "deep.py").write_text("a = 2\n")
    assert sweep.digest(toy, {"beta": 1}) != first


@pytest.mark.slow
def test_two_grids_of_one_chapter_have_their_own_table_and_figure_and_share_their_points(
    toy, monkeypatch, capsys
):
    for grid in (["beta", 1, 5], ["beta", 5, 2]):
        swept(monkeypatch, *sweep_of(toy, "--grid", *grid, "--jobs", 1)[3:])
    assert "1 of 2 points to do" in capsys.readouterr().out
    assert runs(toy) == ["1 0", "2 0", "5 0"]
    tables = sorted((toy.parent / "out").glob("beta-*.csv"))
    assert [sorted(set(pd.read_csv(t)["beta"])) for t in tables] in (
        [[1, 5], [2, 5]],
        [[2, 5], [1, 5]],
    )
    assert len(list((toy.parent / "out").glob("beta-*.png"))) == 2


def test_the_time_left_counts_what_runs_at_the_same_time():
    assert sweep.time_left([10.0], 32, 8, elapsed=10.0) == 30  # four rounds of 8, one is over
    assert sweep.time_left([10.0], 9, 8, elapsed=10.0) == 10
    assert sweep.time_left([10.0, 20.0], 4, 1, elapsed=30.0) == 30
    assert (
        sweep.time_left([10.0], 2, 2, elapsed=12.0) == 0 == sweep.time_left([10.0] * 4, 4, 1, 41.0)
    )


def test_statements_that_a_notebook_prints_are_results_too(tmp_path):
    cells = [
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new_code_cell(
            "from attractor_book.results import finding\nfinding('a: beta above 2', beta > 2)\n"
            "print('x: True or so')\nfinding('b', True)"
        ),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "toy.ipynb")
    part = sweep.relevant_part(tmp_path / "toy.ipynb")
    record = json.loads(sweep.run_point(part, {"beta": 3.0}, 1, str(tmp_path))["text"])
    assert record["rows"] == [
        {"statement": "a: beta above 2", "holds": True},
        {"statement": "b", "holds": True},
    ]
    made = record["provenance"]
    assert made["parameters"] == {"beta": 3.0} and made["torch"] and made["threads"] == 1


def test_statements_are_drawn_as_shares_and_measurements_as_lines():
    frame = pd.DataFrame(
        [
            {"beta": b, "seed": s, "statement": t, "holds": b > s}
            for b in (1, 2)
            for s in (0, 1)
            for t in "xy"
        ]
    )
    (ax,) = sweep.draw(frame, {"seed": [0, 1], "beta": [1, 2]}, None).axes
    assert [float(t.get_text()) for t in ax.texts] == [0.5, 1, 0.5, 1] and ax.get_xlabel() == "beta"
    frame = pd.DataFrame(
        [
            {"beta": b, "seed": s, "kind": t, "error": b + s / 2}
            for b in (1, 2)
            for s in (0, 1)
            for t in "xy"
        ]
    )
    (ax,) = sweep.draw(frame, {"beta": [1, 2], "seed": [0, 1]}, None).axes
    assert ax.lines[0].get_ydata().tolist() == [1.25, 2.25] and ax.get_ylabel() == "error"
    with pytest.raises(
        ValueError, match="--show must be one of beta, seed, kind, error, got 'nothing'"
    ):
        sweep.draw(frame, {"beta": [1, 2]}, "nothing")
