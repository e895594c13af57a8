"""Words and symbols where they are used. In a chapter the first use of a word of the glossary opens
its definition in place; beside an equation stand the symbols that the notation defines there.
"""

import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform

AMBIGUOUS = {  # they mean other things, too
    *("stored", "retrieved", "beta", "gamma", "rank", "null", "load", "ablation", "residual"),
    *("cycle", "drift", "projection"),
}
INLINE = re.compile(r"\$(?P<math>[^$]+)\$|`(?P<code>[^`]+)`|(?P<text>[^$`]+)")


def glossary_words(folder: Path) -> list[str]:
    """The terms of the glossary whose word means nothing else in the text, long ones first."""
    (body,) = re.findall(r"```\{glossary\}\n(.*?)```", (folder / "glossary.md").read_text(), re.S)
    words = {line for line in body.splitlines() if line and not line.startswith(" ")}
    return sorted(words - AMBIGUOUS, key=len, reverse=True)


def symbols(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """Equation -> the symbols that the notation says are defined there, with their meaning."""
    found = {}
    for line in (folder / "notation.md").read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for label in re.findall(r"\{eq\}`([^`]+)`", cells[-1]) if len(cells) == 5 else ():
            found.setdefault(label, []).append((cells[0], cells[1]))
    return found


def inline(source: str) -> list[nodes.Node]:
    """Formulas, code and words of a cell of a table; roles and links are their text."""
    source = re.sub(r"\{\w+\}`([^`<]+?)(?: <[^`]*>)?`", r"\1", source)
    source = re.sub(r"\[\]\((?:notebooks/)?(\d+)[^)]*\)", lambda m: f"chapter {int(m[1])}", source)
    kinds = {"math": nodes.math, "code": nodes.literal, "text": nodes.Text}
    return [
        nodes.Text(m["text"]) if m["text"] else kinds[m.lastgroup](m[0], m[m.lastgroup])
        for m in INLINE.finditer(source)
    ]


def link_first_uses(app, doctree) -> None:
    """In a chapter, of each word that is not linked yet the first use in a paragraph."""
    if not app.env.docname.startswith("notebooks/"):
        return
    linked = {
        x["reftarget"] for x in doctree.findall(addnodes.pending_xref) if x["reftype"] == "term"
    }
    for word in glossary_words(Path(app.srcdir)):
        if word not in linked:
            link_first_use(app.env.docname, doctree, word)


def link_first_use(page: str, doctree, word: str) -> None:
    either = f"[{word[0].upper()}{word[0].lower()}]{re.escape(word[1:])}"
    pattern = re.compile(rf"(?<![-\w])(?<!mean )(?<!mean-){either}(?:s|es)?(?![-\w])")
    for text in doctree.findall(nodes.Text):
        if not isinstance(text.parent, (nodes.paragraph, nodes.strong)):
            continue
        if folded(text) or isinstance(text.parent.parent, (nodes.caption, nodes.entry)):
            continue
        match = pattern.search(text)
        if match:
            before, use, after = text[: match.start()], match[0], text[match.end() :]
            link = addnodes.pending_xref(
                use, nodes.inline(use, use), refdomain="std", reftype="term", reftarget=word,
                refdoc=page, refexplicit=True, refwarn=True,
            )  # fmt: skip
            text.parent.replace(text, [nodes.Text(before), link, nodes.Text(after)])
            return


def folded(node: nodes.Node) -> bool:
    """In a box that is closed until the reader opens it."""
    while node.parent is not None:
        node = node.parent
        if isinstance(node, nodes.Element) and "dropdown" in node["classes"]:
            return True
    return False


def note_symbols(app, doctree) -> None:
    """Beside each equation that defines symbols, which."""
    if not app.env.docname.startswith("notebooks/"):
        return
    defined = symbols(Path(app.srcdir))
    for equation in [*doctree.findall(nodes.math_block)]:
        rows = defined.get(equation.get("label"))
        if not rows:
            continue
        lines = [nodes.paragraph("", "", *inline(f"{name} {what}")) for name, what in rows]
        note = nodes.container("", *lines, classes=["margin", "notation"])
        at = equation
        while not isinstance(at.parent, (nodes.section, nodes.document)):
            at = at.parent
        at.parent.insert(at.parent.index(at), note)


class DefineInPlace(SphinxPostTransform):
    """Behind the first link to a word, hidden until it is asked for, the word's definition."""

    default_priority = 5  # links in definitions are resolved with all others
    formats = ("html",)

    def run(self, **kwargs) -> None:
        if self.env.docname == "glossary":
            return
        definitions = {}
        for item in self.env.get_doctree("glossary").findall(nodes.definition_list_item):
            for term in item.findall(nodes.term):
                definitions[term.astext()] = item.children[-1]
        for link in [*self.document.findall(addnodes.pending_xref)]:
            if link["reftype"] != "term" or link["reftarget"] not in definitions:
                continue
            text = definitions.pop(link["reftarget"]).children[0].deepcopy()
            for role in text.findall(addnodes.pending_xref):
                role["refdoc"] = self.env.docname
            for child in link.children:
                child["classes"].append("word")
            if next(text.findall(nodes.math), None):  # then the page needs what sets formulas
                self.env.get_domain("math").data["has_equations"][self.env.docname] = True
            note = nodes.inline("", "", *text.children, classes=["definition"])
            link.parent.insert(link.parent.index(link) + 1, note)


def setup(app) -> dict:
    app.connect("doctree-read", link_first_uses)
    app.connect("doctree-read", note_symbols)
    app.add_post_transform(DefineInPlace)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
