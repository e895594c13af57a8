"""Chapters executed elsewhere are compared with the committed ones: what must be found, and what
may differ.
"""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
CHAPTER = ROOT / "notebooks" / "06_transient_memories.ipynb"
LIFETIMES = (
    "<td>0.84</td>\n      <td>6.0</td>",
    "<td>0.84</td>\n      <td>{}</td>",
)  # of the train images


def compare(*paths):
    done = subprocess.run(
        [sys.executable, "-m", "attractor_book", "compare", *paths], capture_output=True, text=True
    )
    return done.returncode == 0, done.stdout + done.stderr


def changed(tmp_path, change):
    """Whether the comparison of the chapter with a copy of it, its outputs changed, passes, and
    what it says.
    """
    notebook = nbformat.read(CHAPTER, as_version=4)
    before = str(notebook)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            holder, key = (
                (output, "text") if output.output_type == "stream" else (output.data, "text/html")
            )
            if key in holder:
                holder[key] = change(holder[key])
    assert str(notebook) != before
    nbformat.write(notebook, tmp_path / CHAPTER.name)
    return compare(CHAPTER.parent, tmp_path)


def test_one_statement_that_no_longer_holds_is_found(tmp_path):
    same, report = changed(
        tmp_path, lambda text: text.replace("every network: True", "every network: False", 1)
    )
    assert not same and "is now" in report and "1 differences" in report


def test_one_number_far_off_is_found(tmp_path):
    same, report = changed(
        tmp_path, lambda text: text.replace(LIFETIMES[0], LIFETIMES[1].format("60.0"), 1)
    )
    assert not same and "6 is now 60 (column 2: median)" in report and "1 differences" in report


def test_many_numbers_a_little_off_are_found(tmp_path):
    same, report = changed(
        tmp_path,
        lambda text: re.sub(r"<td>(0\.\d+)", lambda m: f"<td>{float(m[1]) * 0.8:.4f}", text),
    )
    assert not same and "numbers are off by more than 10% of their scale" in report


@pytest.mark.parametrize(
    "change",
    [
        lambda text: re.sub(r"<td>(0\.\d+)", lambda m: f"<td>{float(m[1]) * 1.05:.4f}", text),
        lambda text: text.replace(LIFETIMES[0], LIFETIMES[1].format("7.0"), 1),
        lambda text: re.sub(r"[\d.]+ s\b", "0.1 s", text),
        lambda text: re.sub(r"± 0\.\d+", "± 0.5", text),
    ],
    ids=["all by 5%", "one lifetime", "times", "standard deviations"],
)
def test_what_may_differ_does_not_fail(tmp_path, change):
    same, report = changed(tmp_path, change)
    assert same, report


def test_a_row_that_is_missing_and_another_code_are_found(tmp_path):
    same, report = changed(
        tmp_path,
        lambda text: re.sub(r"<tr>\s*<th>200</th>.*?</tr>", "", text, count=1, flags=re.DOTALL),
    )
    assert not same and "lines or entries, now" in report
    notebook = nbformat.read(CHAPTER, as_version=4)
    notebook.cells[-1:] = [nbformat.v4.new_code_cell("1")]
    nbformat.write(notebook, tmp_path / CHAPTER.name)
    same, report = compare(CHAPTER, tmp_path / CHAPTER.name)
    assert not same and "the code differs" in report


def test_every_chapter_equals_itself_and_has_numbers_to_compare():
    same, report = compare(ROOT / "notebooks", ROOT / "notebooks")
    assert same and report.count(": 0 differences") == len(
        list((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    )
    assert sum(int(n) for n in re.findall(r"0 of (\d+) numbers", report)) > 2000


def test_an_empty_folder_is_an_error(tmp_path):
    same, report = compare(ROOT / "notebooks", tmp_path)
    assert not same and "there is no notebook in" in report
