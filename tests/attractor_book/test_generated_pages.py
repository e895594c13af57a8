"""What the book draws from its notebooks, the page on running them again, and a chapter that runs
alone.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from html import unescape
from pathlib import Path

import chapters
import nbformat
import pytest
import yaml

from attractor_book import executor

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))

ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def cells_of(table):
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in table.splitlines()
        if line.startswith("|")
    ]


def test_every_parameter_of_every_chapter_is_in_the_tables():
    tables = chapters.parameter_tables(ROOT / "notebooks")
    expected = 0
    for path in CHAPTERS:
        assert f"(notebooks/{path.name})" in tables
        (source,) = (
            c.source
            for c in nbformat.read(path, as_version=4).cells
            if "parameters" in c.metadata.get("tags", [])
        )
        expected += len(source.splitlines()) - 1  # below `# fmt: off`
    rows = [row for row in cells_of(tables) if row[0].startswith("`")]
    assert len(rows) == expected and all(len(row) == 5 and row[2] and row[4] for row in rows)
    assert [
        "`start_angle`",
        "`45.0`",
        "by which tokens are turned when a pattern is to be retrieved",
        "degrees",
        "0 to 180",
    ] in rows


def test_the_status_is_that_of_the_notebooks(tmp_path):
    header, _, *rows = cells_of(chapters.execution_status(ROOT / "notebooks"))
    assert [row[0] for row in rows] == [
        f"{n}. [](notebooks/{path.name})" for n, path in enumerate(CHAPTERS, 1)
    ]
    assert all(
        int(row[1]) > 4 and re.fullmatch(r"20\d\d.\d\d.\d\d", row[2]) and int(row[3]) > 0 and row[7]
        for row in rows
    )
    notebook = nbformat.read(CHAPTERS[0], as_version=4)
    notebook.metadata.provenance = {
        "seconds": 12.6,
        "date": "2031-02-03",
        "device": "a device",
        "cores": 3,
        "threads": 2,
        "python": "4",
        "torch": "5",
    }
    nbformat.write(notebook, tmp_path / CHAPTERS[0].name)
    row = cells_of(chapters.execution_status(tmp_path))[2]
    assert row[2:] == ["2031\u201102\u201103", "13", "a\u00a0device", "3", "2", "4", "5"]


def test_every_stored_result_is_in_the_table():
    rows = cells_of(chapters.stored_results(ROOT / "notebooks"))[2:]
    assert len(rows) == len(list((ROOT / "notebooks" / "results").glob("*/*.json"))) and all(
        row[2] and row[4] and row[8] for row in rows
    )


def test_every_printed_statement_is_among_the_findings():
    page = chapters.findings(ROOT / "notebooks")
    rows = re.findall(r'<tr data-values="([^"]*)">', page)
    printed = sum(
        len(re.findall(r": (?:True|False)$", output.get("text", ""), re.M))
        for path in CHAPTERS
        for cell in nbformat.read(path, as_version=4).cells
        for output in cell.get("outputs", [])
    )
    assert len(rows) == printed > 600
    said = [json.loads(unescape(row)) for row in rows]
    assert {row[0] for row in said} <= set(range(1, len(CHAPTERS) + 1))
    by_name = {row[3]: row for row in said}
    held = by_name["clothes: level with the best stack (2%)"]
    assert held[1:3] == ["19_verdict", "On clothes, and with noise"]
    assert held[4:] == ["Fashion-MNIST", "holds"]
    assert by_name["k = 1: at 200 at most 2% above the best step"][5] == "does not hold"


def test_the_map_has_every_chapter_and_leads_to_each():
    numbers = set(range(1, len(CHAPTERS) + 1))
    assert set(chapters.PLACES) == numbers
    assert {b for _, b in chapters.LEADS_TO} == numbers - {1, 2}
    assert len({place[:2] for place in chapters.PLACES.values()}) == len(numbers)
    page = chapters.map_of_the_book(ROOT / "notebooks")
    assert all(f'href="notebooks/{path.stem}.html"' in page for path in CHAPTERS)


def test_the_pages_ask_for_every_part():
    pages = "".join(page.read_text() for page in (ROOT / "book").glob("*.md"))
    assert all(pages.count(mark) == 1 for mark in chapters.PARTS)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The files that a chapter needs, in a folder of their own, as a git repository."""
    folder = tmp_path_factory.mktemp("repository")
    for name in (
        "attractor_lib",
        "attractor_book",
        "notebooks",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "_config.yml",
    ):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    git = ["git", "-C", folder, "-c", "user.name=test", "-c", "user.email=test@localhost"]
    branch = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["branch"]
    for arguments in (["init", "-q", "-b", branch], ["add", "-A"], ["commit", "-q", "-m", "copy"]):
        subprocess.run([*git, *arguments], check=True)
    return folder


@pytest.mark.slow
def test_the_commands_of_the_page_run(copy):
    page = (ROOT / "book" / "rerun.md").read_text()
    commands = "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        commands = commands.replace("8786", str(free.getsockname()[1]))
    assert commands.count("\n") > 7
    before = {path.name: path.read_bytes() for path in (copy / "notebooks").glob("*.ipynb")}
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=copy,
        env={**ENVIRONMENT, "PYTHONPATH": str(copy)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    assert printed.count("1 of 1 points in") == 1 and printed.count("2 of 2 points in") == 1
    output = nbformat.read(
        copy / "_runs" / "01_local_energies-beta=10-n_sites=7.ipynb", as_version=4
    )
    assert (
        "**This run.** Parameters: `beta = 10`, `n_sites = 7`, the others as committed."
        in output.cells[1].source
    )
    assert output.metadata.papermill.parameters == {"beta": 10, "n_sites": 7}
    assert {"seconds", "date", "device", "cores", "threads", "python", "torch", "commit"} == set(
        output.metadata.provenance
    )
    assert nbformat.read(copy / "out.ipynb", as_version=4).metadata.papermill.parameters == {
        "gamma": 1.0
    }
    assert len(list((copy / "_runs" / "sweep-01_local_energies").glob("*.png"))) == 2
    assert before == {path.name: path.read_bytes() for path in (copy / "notebooks").glob("*.ipynb")}


def test_every_chapter_begins_with_the_lines_that_fetch_the_library_from_the_configured_address():
    url = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    assert f" {url} " in executor.alone()
    for path in CHAPTERS:
        notebook = nbformat.read(path, as_version=4)
        first = next(cell for cell in notebook.cells if cell.cell_type == "code")
        assert first.source.startswith(executor.alone() + "\n"), (
            f"{path.name}: attractor-book commit --alone"
        )
        source = first.source
        executor.put_alone(notebook)
        assert first.source == source
        first.source = source.replace(url, "https://elsewhere.org/x")
        executor.put_alone(notebook)
        assert first.source == source


@pytest.mark.slow
def test_a_chapter_runs_alone(copy, tmp_path):
    """In an environment that has everything but the library, the copy above standing in for the
    public address.
    """
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "all_others.pth").write_text(
        next(path for path in sys.path if path.endswith("site-packages"))
    )
    url = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    variables = {
        **os.environ,
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{copy}.insteadOf",
        "GIT_CONFIG_VALUE_0": url,
        "PIP_NO_BUILD_ISOLATION": "1",
        "PIP_NO_DEPS": "1",
    }
    variables.pop("PYTHONPATH", None)
    python, chapter = environment / "bin" / "python", CHAPTERS[0].name
    assert subprocess.run(
        [python, "-c", "import attractor_lib"], env=variables, cwd=tmp_path, capture_output=True
    ).returncode
    (tmp_path / "alone").mkdir()
    shutil.copy(CHAPTERS[0], tmp_path / "alone" / chapter)
    done = subprocess.run(
        [python, "-m", "papermill", chapter, "out.ipynb", "-k", "python3"],
        cwd=tmp_path / "alone",
        env=variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "alone" / url.rsplit("/")[-1] / "notebooks" / "results").is_dir()
    texts = [
        o.get("text", "")
        for c in nbformat.read(tmp_path / "alone" / "out.ipynb", as_version=4).cells
        for o in c.get("outputs", [])
    ]
    assert sum("True" in text for text in texts) > 3
    library = [
        python,
        "-c",
        "from attractor_book.results import results_folder as f; print(f('04_masked_prediction'))",
    ]
    assert (
        "alone"
        in subprocess.run(
            library, env=variables, cwd=environment, capture_output=True, text=True, check=True
        ).stdout
    )  # the next session
