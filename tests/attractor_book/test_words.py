"""Words and symbols where they are used: what is linked, and what is noted."""

from pathlib import Path
from types import SimpleNamespace

import words
from docutils import nodes
from docutils.core import publish_doctree
from sphinx import addnodes

BOOK = Path(__file__).resolve().parents[2] / "book"


def linked(source, word):
    """The text of a page in which the first use of the word is marked."""
    page = publish_doctree(source)
    words.link_first_use("notebooks/01", page, word)
    return " / ".join(
        "".join(
            f"<{c.astext()}>" if isinstance(c, addnodes.pending_xref) else c.astext() for c in p
        )
        for p in page.findall(nodes.paragraph)
    )


def test_the_first_use_is_linked_once_in_any_form():
    assert linked("Two heads.\n\nA head.", "head") == "Two <heads>. / A head."
    assert linked("Overhead, ``head``, head-on. Head!", "head") == (
        "Overhead, head, head-on. <Head>!"
    )
    assert linked("A mean field, and a self-field. The field.", "field") == (
        "A mean field, and a self-field. The <field>."
    )
    assert linked("Nothing.", "head") == "Nothing."


def test_what_the_glossary_has_is_found_but_for_what_means_two_things():
    found = words.glossary_words(BOOK)
    assert {"local energy", "hidden spin", "head"} <= set(found)
    assert not words.AMBIGUOUS & set(found) and found.index("hidden spin") < found.index("head")


def test_symbols_are_those_of_the_notation():
    found = words.symbols(BOOK)
    assert ("$a^h_{i\\leftarrow j}$", "{term}`attention` that site $i$ pays to site $j$") in (
        found["eq-field"]
    )
    labels = "".join(p.read_text() for p in BOOK.parent.glob("notebooks/*.ipynb"))
    assert all(label in labels for label in found)


def test_a_cell_of_the_notation_becomes_formulas_code_and_text():
    parts = words.inline("$N$ number of {term}`sites <site>` in `x`, [](notebooks/06_t.ipynb)")
    assert [type(p) for p in parts] == [nodes.math, nodes.Text, nodes.literal, nodes.Text]
    assert "".join(p.astext() for p in parts) == "N number of sites in x, chapter 6"


def test_symbols_stand_before_their_equation_in_chapters_only():
    page = publish_doctree("Text.")
    page += nodes.math_block("", "h", label="eq-field")
    for name in ("notebooks/01", "index"):
        app = SimpleNamespace(env=SimpleNamespace(docname=name), srcdir=BOOK)
        words.note_symbols(app, page)
        notes = [c for c in page.findall(nodes.container) if "notation" in c["classes"]]
        assert len(notes) == 1 and isinstance(page[page.index(notes[0]) + 1], nodes.math_block)
