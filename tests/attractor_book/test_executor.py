"""Chapters run again from the command line: what is refused, what is kept, what is left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from attractor_book import command, executor
from attractor_lib.data.images import IMAGE_SETS
from attractor_lib.data.text import TEXTS

ROOT = Path(__file__).resolve().parents[2]


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def texts(cell):
    return [
        o.text if o.output_type == "stream" else o.data.get("text/plain", "") for o in cell.outputs
    ]


def rerun(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "attractor_book", "rerun", *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def refused(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["attractor-book", "rerun", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        command.main()
    return done.value.code


def test_rerun_refuses_an_unknown_parameter_with_the_known_ones(monkeypatch):
    said = refused(monkeypatch, "01", "-p", "ecpohs", 2)
    assert "has no parameter 'ecpohs'" in said
    assert all(name in said for name in ("n_sites", "beta", "gamma"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("07_nothing",), "chapter must be the beginning of one of 01_local_energies"),
        (("01", "-p", "n_sites", "five"), "n_sites must be int like its default 5, got 'five'"),
        (("01", "-p", "beta", -1), "beta (inverse temperature) must be > 0, got -1"),
        (
            ("01", "-o", ROOT / "notebooks" / "01_local_energies.ipynb"),
            "output must not lie among the committed notebooks",
        ),
        (
            ("--all", "--output-dir", ROOT / "book" / "notebooks"),
            "output must not lie among the committed notebooks",
        ),
        (("01", "-p", "beta", "["), "beta: expected a value in YAML"),
        (
            ("12", "-p", "results_file", ROOT / "notebooks" / "results.json"),
            "output must not lie among the committed notebooks",
        ),
        ((), "name a chapter, or --list, --all or --book"),
        (("01", "-o", "out.txt"), "output must be a notebook"),
        (("--book", ROOT / "book" / "_static"), "expected executed notebooks in"),
        (("--all", "-p", "beta", 2), "--all cannot be given with -p"),
        (("--book", "X", "04"), "--book cannot be given with a chapter"),
        (("--list", "-p", "beta", 2), "--list cannot be given with -p"),
        (("--list", "--all"), "--list cannot be given with --all"),
        (("01", "-o", "a.ipynb", "--output-dir", "b"), "-o cannot be given with --output-dir"),
        (("--book", ROOT), "the repository's own book"),
        (("nowhere/04_masked_prediction.ipynb",), "chapter must be a notebook that is there"),
        (("04_masked.ipynb",), "chapter must be a notebook that is there, got 04_masked.ipynb"),
        (("attractor_lib/model.py",), "chapter must be the beginning of one of 01_local_energies"),
        (
            ("01", "-o", ROOT / "notebooks" / "results" / "new" / "out.ipynb"),
            "output must not lie among the committed notebooks",
        ),
        (
            (
                "12",
                "-p",
                "results_file",
                ROOT / "notebooks" / "results" / "12_ablations" / "a.json",
            ),
            "output must not lie among the committed notebooks",
        ),
    ],
)
def test_rerun_refuses_bad_arguments(arguments, message, monkeypatch):
    assert message in refused(monkeypatch, *arguments)


def test_help_names_every_data_set():
    (commands,) = command.make_parser()._subparsers._group_actions
    shown = commands.choices["data"].format_help()
    assert all(name in shown for name in (*IMAGE_SETS, *TEXTS))


@pytest.mark.slow
def test_a_rerun_that_fails_says_where_its_cells_are_and_they_have_no_provenance_of_another_run(
    tmp_path,
):
    notebook = nbformat.read(ROOT / "notebooks" / "01_local_energies.ipynb", as_version=4)
    assert "provenance" in notebook.metadata
    notebook.cells[3:] = [nbformat.v4.new_code_cell("1 / 0")]
    nbformat.write(notebook, tmp_path / "broken.ipynb")
    done = rerun(tmp_path / "broken.ipynb", "-o", tmp_path / "out.ipynb")
    unfinished = tmp_path / "out-unfinished.ipynb"
    assert (
        done.returncode != 0
        and f"the cells that were run are in {unfinished}" in done.stderr
        and "ZeroDivisionError" in done.stderr
    )
    assert (
        "provenance" not in nbformat.read(unfinished, as_version=4).metadata
        and not (tmp_path / "out.ipynb").exists()
    )


@pytest.mark.slow
def test_rerun_runs_a_chapter_with_other_parameters_and_leaves_the_committed_one_alone(tmp_path):
    chapter = ROOT / "notebooks" / "01_local_energies.ipynb"
    before = chapter.read_bytes()
    done = rerun("01", "-p", "n_sites", 6, "-p", "beta", "1e1", "-o", tmp_path / "out.ipynb")
    assert done.returncode == 0, done.stderr
    output = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert chapter.read_bytes() == before
    assert output.metadata.papermill.parameters == {"n_sites": 6, "beta": 10}
    assert any(
        "n_sites=6" in text and "beta=10" in text
        for cell in code_cells(output)
        for text in texts(cell)
    )
    assert any(
        "better than 1e-10: True" in text for cell in code_cells(output) for text in texts(cell)
    )


@pytest.mark.slow
def test_an_interrupted_rerun_keeps_what_was_run(tmp_path):
    cells = [
        nbformat.v4.new_code_cell(s)
        for s in ("print('first')", "open('begun', 'w').close()\nimport time\ntime.sleep(600)")
    ]
    cells.insert(
        0,
        nbformat.v4.new_code_cell(
            "seed = 0  # none; at least 0", metadata={"tags": ["parameters"]}
        ),
    )
    cells[2].source = cells[2].source.replace("begun", str(tmp_path / "begun"))
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "long.ipynb")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "attractor_book",
            "rerun",
            tmp_path / "long.ipynb",
            "-o",
            tmp_path / "out.ipynb",
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    while process.poll() is None and not (tmp_path / "begun").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode and "the same command starts afresh" in errors
    kept = nbformat.read(tmp_path / "out-unfinished.ipynb", as_version=4)
    assert texts(code_cells(kept)[1]) == ["first\n"] and not (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize("folder", [".", "book", "linked", ".."])
def test_a_book_is_not_built_over_the_repositorys_own(tmp_path, folder):
    root = tmp_path / "book"  # a clone of this name, so that its parent's book is the clone
    (root / "book").mkdir(parents=True)
    (root / "book" / "index.md").write_text("own")
    for there in (root, root / "book", tmp_path):
        (there / "notebooks").mkdir()
    (root / "linked").symlink_to(root)
    with pytest.raises(ValueError, match="the repository's own book"):
        command.build_book(root / folder, root)
    assert (root / "book" / "index.md").read_text() == "own"


def test_an_error_of_a_cell_says_which_cell(tmp_path, monkeypatch):
    expected = nbformat.v4.new_code_cell("1 / 0", metadata={"tags": ["raises-exception"]})
    failing = nbformat.v4.new_code_cell("raise ValueError('no')")
    later = nbformat.v4.new_code_cell("2", execution_count=9, outputs=[])
    cells = [nbformat.v4.new_markdown_cell("text"), expected, failing, later]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "broken.ipynb")
    said = refused(monkeypatch, tmp_path / "broken.ipynb", "-o", tmp_path / "out.ipynb")
    assert said == "error: in cell 2: ValueError: no"


def test_all_chapters_of_a_commit_are_found_before_one_is_executed(monkeypatch):
    executed = []
    monkeypatch.setattr(executor, "commit", executed.append)
    monkeypatch.setattr(sys, "argv", ["attractor-book", "commit", "04", "99"])
    with pytest.raises(SystemExit, match="got '99'"):
        command.main()
    assert not executed


def test_compare_says_what_it_does_not_compare(capsys):
    with pytest.raises(SystemExit):
        command.make_parser().parse_args(["compare", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "row and column names" in said and "Not compared: times and where a run took" in said
    assert "a plus-minus sign, standard deviations and errors, pictures" in said


def test_a_commit_that_writes_to_stderr_is_refused_and_the_notebook_stays(tmp_path):
    cells = [
        nbformat.v4.new_code_cell(s)
        for s in ("a = 1", "import sys\nprint('careful', file=sys.stderr)")
    ]
    path = tmp_path / "loud.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="loud writes to stderr, and stays as it was:\ncareful"):
        executor.commit(path)
    assert path.read_bytes() == before


def test_long_names_are_cut_and_stay_apart():
    assert executor.label({"beta": 10, "n_sites": 7}) == "-beta=10-n_sites=7"
    long = [
        executor.label({"only": "; ".join(["transformer block 64"] * n), "seed": 0})
        for n in (20, 21)
    ]
    assert long[0] != long[1] and all(
        len(name) <= 80 and name.startswith("-only=transformer_block_64_") for name in long
    )


def test_every_command_says_what_it_does_with_an_example(capsys):
    for name in ("rerun", "sweep", "results", "compare", "commit", "data"):
        with pytest.raises(SystemExit) as done:
            command.make_parser().parse_args([name, "--help"])
        assert (
            done.value.code == 0
            and f"attractor-book {name} " in capsys.readouterr().out.split("examples:")[1]
        )


@pytest.mark.parametrize(
    "name, arguments, extra",
    [
        ("nbformat", ["rerun", "--list"], "book"),
        ("distributed", ["sweep", "01", "--grid", "beta", "1"], "book,sweep"),
    ],
)
@pytest.mark.slow
def test_without_an_extra_a_command_says_how_to_install_it(name, arguments, extra, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{name!r}] = None\n")
    done = subprocess.run(
        [sys.executable, "-m", "attractor_book", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert (
        done.returncode == 1
        and done.stderr
        == f"error: there is no {name}: python -m pip install 'attractor_lib[{extra}]'\n"
    )


def test_without_notebooks_a_command_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(executor, "NOTEBOOKS", tmp_path)
    with pytest.raises(ValueError, match="there are no chapters in"):
        executor.find_chapter("01")
