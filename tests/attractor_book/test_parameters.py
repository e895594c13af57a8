import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbformat.v4 import new_code_cell, new_notebook
from papermill.exceptions import PapermillExecutionError

from attractor_book.parameters import check_values, read_parameters

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))

CELL = """\
# fmt: off
beta = 2.0  # inverse temperature; > 0
n_sites = 5  # sites; at least 3
n_hidden = 2  # hidden tokens; 1 to n_sites
share = 0.5  # of batches; > 0, at most 1
n_train = 1_000  # train images; 0 to 60,000
angle = 30.0  # of a turn [degrees]; 0 to 180
device = "auto"  # where to compute; one of auto, cpu, cuda:*
only = "beta 0; shared, bias"  # variants, all if empty; some of beta 0; shared, bias; linear
seeds = [0, 1]  # of couplings; at least 0
loads = [0.1, 0.4]  # alpha; > 0, at most 3, rising
kinds = ["a"]  # of rules; one of a, b
title = ""  # of the figure; any text
flag = True  # whether; one of True, False"""
KNOWN = read_parameters(CELL)


def test_reads_default_meaning_unit_and_range():
    assert (
        len(KNOWN) == 13
        and KNOWN["n_train"].default == 1000
        and KNOWN["loads"].default == [0.1, 0.4]
    )
    assert (KNOWN["angle"].meaning, KNOWN["angle"].unit, KNOWN["angle"].allowed) == (
        "of a turn",
        "degrees",
        "0 to 180",
    )
    assert KNOWN["beta"].unit == "" and check_values(KNOWN, {}) == {}


@pytest.mark.parametrize(
    "line",
    [
        "beta = 2.0",
        "beta = 2.0  # inverse temperature",
        "beta = 2.0  # a; b; >= 0",
        "beta: 2  # a; > 0",
    ],
)
def test_refuses_a_line_of_another_form(line):
    with pytest.raises(ValueError, match="expected a line 'name = literal"):
        read_parameters(line)


@pytest.mark.parametrize(
    "given, got",
    [
        ({"beta": 3}, 3),
        ({"beta": "1e-2"}, 0.01),
        ({"n_sites": 3}, 3),
        ({"n_hidden": 5}, 5),
        ({"share": 1.0}, 1.0),
        ({"n_train": 0}, 0),
        ({"n_train": 60000}, 60000),
        ({"angle": 180}, 180),
        ({"device": "cuda:1"}, "cuda:1"),
        ({"kinds": ["b", "a"]}, ["b", "a"]),
        ({"only": ""}, ""),
        ({"only": "linear; shared, bias"}, "linear; shared, bias"),
        ({"seeds": [7]}, [7]),
        ({"loads": ["1e-1", 2, 3]}, [0.1, 2, 3]),
        ({"title": "a, b; > 0"}, "a, b; > 0"),
        ({"flag": False}, False),
    ],
)
def test_takes_what_is_in_range(given, got):
    ((name, value),) = check_values(KNOWN, given).items()
    assert value == got and type(value) is type(got)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"beta": 0}, r"beta \(inverse temperature\) must be > 0, got 0"),
        ({"beta": float("inf")}, "beta must be a finite number"),
        ({"beta": True}, "finite number"),
        ({"beta": "warm"}, "finite number like its default 2.0, got 'warm'"),
        ({"n_sites": 2}, "at least 3, got 2"),
        ({"n_sites": 3.0}, "n_sites must be int"),
        ({"n_hidden": 6}, "1 to n_sites = 5, got 6"),
        ({"n_hidden": 0}, "1 to n_sites"),
        ({"share": 1.1}, "at most 1"),
        ({"share": 0}, "> 0"),
        ({"n_train": -1}, "0 to 60,000"),
        ({"kinds": ["c"]}, "one of a, b"),
        ({"kinds": []}, "one of a, b"),
        ({"device": "tpu"}, "one of auto"),
        ({"only": "bias"}, "some of"),
        ({"seeds": []}, "at least 0, got"),
        ({"seeds": [0, -1]}, "at least 0"),
        ({"seeds": 3}, "seeds must be list"),
        ({"seeds": [0.5]}, "each of seeds must be int"),
        ({"loads": [0.1, 4]}, "at most 3"),
        ({"loads": [0.4, 0.1]}, "rising"),
        ({"loads": [0, 0.1]}, "> 0"),
        ({"title": 3}, "title must be str"),
        ({"flag": 1}, "flag must be bool"),
        ({"n_sites": 3, "n_hidden": 4}, "1 to n_sites = 3, got 4"),
        ({"ecpohs": 2}, "no parameter is named 'ecpohs'; there are beta, n_sites"),
    ],
)
def test_refuses_what_is_out_of_range(given, message):
    with pytest.raises(ValueError, match=message):
        check_values(KNOWN, given)


def test_refuses_a_range_that_nobody_can_read():
    with pytest.raises(ValueError, match="expected a range, such as"):
        check_values(read_parameters("beta = 2.0  # a; positive"), {})


@pytest.mark.parametrize(
    "cells, message",
    [
        (["import math", CELL], None),
        ([CELL, "beta = -1"], None),  # a variable of the same name is none of its business
        ([CELL.replace("2.0", "-2.0")], "beta .* must be > 0, got -2.0"),
        (
            [CELL.replace("beta = 2.0  # inverse temperature; > 0", "beta = -1"), "n = 1"],
            None,
        ),  # the comment is gone
        ([CELL, "# Parameters\nbeta = 0.1\nseeds = [3]\n"], None),
        ([CELL, "# Parameters\nbeta = -1\n"], "beta .* must be > 0, got -1"),
        ([CELL, "# Parameters\necpohs = 2\n"], "no parameter is named 'ecpohs'"),
        ([CELL, "# Parameters\nbeta = -1\n", CELL], None),
    ],
)  # the cell has run again since
def test_a_notebook_s_own_check(cells, message):
    shell = InteractiveShell()
    for cell in cells:
        shell.run_cell(cell, store_history=True).raise_error()
    done = shell.run_cell(
        "from attractor_book.parameters import check_parameters\ncheck_parameters()",
        store_history=True,
    )
    if message is None:
        done.raise_error()
    else:
        with pytest.raises(ValueError, match=message):
            done.raise_error()


def test_nothing_is_checked_outside_a_notebook():
    subprocess.run(
        [sys.executable, "-c", "import attractor_book.parameters as p; p.check_parameters()"],
        check=True,
    )


def test_plain_papermill_refuses_before_any_work(tmp_path):
    cells = [
        new_code_cell(CELL, metadata={"tags": ["parameters"]}),
        new_code_cell("from attractor_book.parameters import check_parameters\ncheck_parameters()"),
        new_code_cell("print('work')"),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "in.ipynb")
    arguments = tmp_path / "in.ipynb", tmp_path / "out.ipynb"
    with pytest.raises(PapermillExecutionError, match="beta .* must be > 0, got -1"):
        papermill.execute_notebook(
            *arguments, {"beta": -1.0}, kernel_name="python3", language="python", progress_bar=False
        )
    assert not nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[-1].outputs


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.stem)
def chapter(request):
    return nbformat.read(request.param, as_version=4)


def test_every_chapter_says_the_range_of_every_parameter_and_checks_it_before_any_work(chapter):
    code = [cell for cell in chapter.cells if cell.cell_type == "code"]
    (n,) = (n for n, cell in enumerate(code) if "parameters" in cell.metadata.get("tags", []))
    assert n == 1 and check_values(read_parameters(code[n].source), {}) == {}
    assert code[n + 1].source.startswith("check_parameters()\n")


def test_the_stored_runs_have_parameters_in_range():
    from attractor_book.executor import check_parameters, find_chapter
    from attractor_book.runs import RUNS

    for name, _, parameters in RUNS:
        check_parameters(find_chapter(name), {**parameters})
