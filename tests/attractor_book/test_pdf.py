"""A small book as PDF: page numbers, formulas, links between pages, folded code and answers, wide
tables.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pdf import print_book
from pypdf import PdfReader

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """title: A book
only_build_toc_files: true
bibtex_bibfiles: [references.bib]
parse: {myst_enable_extensions: [colon_fence, dollarmath]}
sphinx:
  extra_extensions: [sphinx-mathjax-offline]
  config:
    html_static_path: [book.css]
    html_css_files: [book.css]
    bibtex_reference_style: author_year
"""
INDEX = (
    r"""# A book

First words.

## A section

A row that is wider than the paper:

$$ x = """
    + " + ".join(f"a_{{{n}}}" for n in range(60))
    + r""" $$
"""
)
CHAPTER = r"""(two)=
# A chapter

The density $p(x_i \mid x_{\text{rest}})$ of {cite}`besag1975`.

<details class="admonition hide above-input"><summary>Show code</summary>folded code</details>

<details class="admonition hide above-input"><summary>Show</summary><p>code of a table</p>
<div class="cell_output"><table><tr><td>digits of a folded table</td></tr></table></div></details>

```{admonition} Answers
:class: dropdown
The answer.
```

## Its section

Last words.
"""


@pytest.fixture(scope="module")
def book(browser, tmp_path_factory):
    """The printed book's reader, and the text of each page."""
    folder = tmp_path_factory.mktemp("book")
    for name in ("references.bib", "_static/book.css"):
        shutil.copy(ROOT / "book" / name, folder)
    (folder / "references.md").write_text("# References\n\n```{bibliography}\n```\n")
    (folder / "_config.yml").write_text(CONFIG)
    (folder / "_toc.yml").write_text(
        "format: jb-book\nroot: index\nparts:\n  - caption: Part\n"
        "    numbered: true\n    chapters:\n"
        "      - file: two\n  - caption: Rest\n    chapters:\n      - file: references\n"
    )
    (folder / "index.md").write_text(INDEX)
    (folder / "two.md").write_text(CHAPTER)
    subprocess.run(
        [
            Path(sys.executable).with_name("jupyter-book"),
            "build",
            folder,
            "--builder",
            "singlehtml",
        ],
        check=True,
        capture_output=True,
    )
    print_book(browser, folder / "_build" / "singlehtml" / "index.html", folder / "book.pdf")
    reader = PdfReader(folder / "book.pdf")
    return reader, [page.extract_text() for page in reader.pages]


def test_contents_and_bookmarks_name_the_page_of_every_heading(book):
    reader, texts = book
    marks = [
        mark for marks in reader.outline for mark in (marks if isinstance(marks, list) else [marks])
    ]
    assert [mark.title for mark in marks] == [
        "Introduction",
        "A section",
        "1. A chapter",
        "1.1. Its section",
        "References",
    ]
    for mark in marks:
        page = reader.get_destination_page_number(mark)
        assert page > 0 and mark.title in texts[page].replace("\n", " ")
        assert f"{mark.title} {page + 1}" in " ".join(texts[0].split()), texts[0]


def test_folded_code_is_out_and_folded_answers_are_in(book):
    text = " ".join(book[1])
    assert (
        "Last words." in text
        and "The answer." in text
        and "folded code" not in text
        and "Show code" not in text
    )


def test_links_between_pages_lead_to_pages(book):
    reader, texts = book
    (citation,) = (
        link
        for link in reader.pages[2]["/Annots"]
        if "citation" in str(link.get_object().get("/Dest"))
    )
    place = reader.named_destinations[citation.get_object()["/Dest"]]
    assert "Besag" in texts[reader.get_destination_page_number(place)]


def test_a_formula_wider_than_the_paper_is_made_smaller_until_all_of_it_is_there(book):
    assert book[1][1].count("+") == 59
