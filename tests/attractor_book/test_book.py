"""The book's files: committed outputs are whole, the checks of the notebooks can fail, links
resolve.
"""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import papermill
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TAGS = {
    "parameters",
    "hide-input",
    "hide-cell",
    "hide-output",
    "remove-cell",
    "nbval-ignore-output",
    "save-results",
}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def texts(cell):
    """What nbval compares of a cell, unless it is tagged to be ignored."""
    if "nbval-ignore-output" in cell.metadata.get("tags", []):
        return []
    return [
        o.text if o.output_type == "stream" else o.data.get("text/plain", "") for o in cell.outputs
    ]


def test_there_are_chapters():
    assert len(NOTEBOOKS) >= 6


def test_is_executed_top_to_bottom_without_error_or_warning(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert not any(
            o.output_type == "error" or o.get("name") == "stderr" for o in cell.outputs
        ), cell.source
    assert notebook.metadata.kernelspec.name == "python3" and "papermill" not in notebook.metadata


def test_has_one_parameters_cell_of_commented_literals_and_known_tags_only(notebook):
    tags = [tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])]
    assert set(tags) <= TAGS and tags.count("parameters") == 1
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    first, *lines = cell.source.strip().splitlines()
    assert first == "# fmt: off"
    for line in lines:
        assert re.fullmatch(r"\w+ = [^#]+# .+", line), f"not a literal with its meaning: {line}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_papermill_finds_every_parameter_with_its_meaning(path):
    (cell,) = (
        c
        for c in nbformat.read(path, as_version=4).cells
        if "parameters" in c.metadata.get("tags", [])
    )
    found = papermill.inspect_notebook(str(path))
    assert set(found) == {line.split(" = ")[0] for line in cell.source.strip().splitlines()[1:]}
    assert all(parameter["help"] for parameter in found.values())


def test_every_figure_has_a_name_a_caption_and_an_alternative_text(notebook):
    for cell in code_cells(notebook):
        if any("image/png" in o.get("data", {}) for o in cell.outputs):
            options = cell.metadata.get("mystnb", {})
            assert options.get("figure", {}).get("name", "").startswith("fig-"), cell.source
            assert (
                len(options["figure"].get("caption", "")) > 40
                and len(options.get("image", {}).get("alt", "")) > 40
            )


def test_what_is_folded_says_what_it_holds(notebook):
    for cell in code_cells(notebook):
        if {"hide-input", "hide-cell", "hide-output"} & set(cell.metadata.get("tags", [])):
            title = cell.metadata.get("mystnb", {}).get("code_prompt_show", "")
            assert 3 < len(title) <= 70, cell.source


def test_a_chapter_begins_with_its_answer_and_the_picture_of_it(notebook):
    title, answer, *_ = notebook.cells[0].source.split("\n\n")
    assert title.startswith("# ") and re.fullmatch(r"\*[^*]+\*", answer)
    assert len(answer.split()) <= 25
    figures = [
        (n, cell.metadata["mystnb"]["figure"]["name"])
        for n, cell in enumerate(notebook.cells)
        if "figure" in cell.metadata.get("mystnb", {})
    ]
    picture = notebook.metadata.get("picture", figures[0][1])
    assert f"{{numref}}`{picture}`" in notebook.cells[0].source
    assert picture in dict(map(reversed, figures))
    assert "picture" in notebook.metadata or figures[0][0] < 6  # below folded code alone


def test_the_text_refers_to_every_figure(notebook):
    text = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    names = [
        cell.metadata["mystnb"]["figure"]["name"]
        for cell in code_cells(notebook)
        if "figure" in cell.metadata.get("mystnb", {})
    ]
    assert [name for name in names if f"{{numref}}`{name}`" not in text] == []


def test_every_worked_figure_has_a_name_a_caption_an_alternative_text_and_says_what_it_is(notebook):
    names = []
    for cell in code_cells(notebook):
        for html in (o.data["text/html"] for o in cell.outputs if "text/html" in o.get("data", {})):
            if 'class="dataframe"' in html:
                continue
            name, alt = re.search(
                r'<div class="worked[^"]*" id="(worked-[\w-]+)" role="group" aria-label="([^"]*)"',
                html,
            ).groups()
            names.append(name)
            label, caption = (cell.metadata["mystnb"]["figure"][key] for key in ("name", "caption"))
            assert (
                label == f"fig-{name}"
                and len(caption) > 40
                and len(alt) > 40
                and len(html) < 500_000
            ), name
            assert {"hide-input", "nbval-ignore-output"} <= set(cell.metadata.tags), name
            compared = (text for other in code_cells(notebook) for text in texts(other))
            said = re.compile(rf"Worked\w+ {name}\n")
            assert any(said.match(text) for text in compared), f"no check cell prints {name}"
    assert len(names) == len(set(names))


def test_every_chapter_prints_checks_that_are_compared(notebook):
    assert (
        sum(
            "True" in text or "False" in text
            for cell in code_cells(notebook)
            for text in texts(cell)
        )
        >= 2
    )


@pytest.mark.parametrize(
    "chapter, old, new, least",
    [("01_local_energies", "True", "False", 5), ("02_images_as_spins", "0", "9", 3)],
)
@pytest.mark.slow
def test_a_notebook_whose_printed_results_changed_fails_in_exactly_those_cells(
    tmp_path, chapter, old, new, least
):
    notebook = nbformat.read(ROOT / "notebooks" / f"{chapter}.ipynb", as_version=4)
    changed, expected = copy.deepcopy(notebook), set()
    for n, cell in enumerate(c for c in changed.cells if c.cell_type == "code"):
        for output in cell.outputs:
            holder, key = (
                (output, "text") if output.output_type == "stream" else (output.data, "text/plain")
            )
            if "image/png" in output.get("data", {}) or old not in holder[key]:
                continue
            holder[key] = holder[key].replace(old, new)
            expected.add(n)
    assert len(expected) >= least
    nbformat.write(changed, tmp_path / "changed.ipynb")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--nbval",
            "--nbval-current-env",
            "changed.ipynb",
            "--junitxml=report.xml",
            "-p",
            "no:cacheprovider",
        ],
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
    )
    cases = ElementTree.parse(tmp_path / "report.xml").iter("testcase")
    failed = {
        int(case.get("name").rsplit(" ", 1)[1])
        for case in cases
        if case.find("failure") is not None
    }
    assert failed == expected


def test_links_of_the_book_resolve():
    for name, target in (
        ("_config.yml", "../_config.yml"),
        ("_toc.yml", "../_toc.yml"),
        ("notebooks", "../notebooks"),
    ):
        link = ROOT / "book" / name
        assert link.is_symlink() and os.readlink(link) == target and link.exists()


def test_every_page_and_chapter_is_in_the_table_of_contents():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = {
        toc["root"],
        *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"]),
    }
    there = {path.stem for path in (ROOT / "book").glob("*.md")} | {
        f"notebooks/{path.stem}" for path in NOTEBOOKS
    }
    assert listed == there


def test_every_chapter_with_stored_results_has_them_with_provenance():
    files = sorted((ROOT / "notebooks" / "results").glob("*/*.json"))
    assert files
    for file in files:
        record = json.loads(file.read_text())
        assert {"parameters", "seconds", "date", "device", "threads", "python", "torch"} <= set(
            record["provenance"]
        ) and record["rows"]
