"""Docstrings in this library's style as reStructuredText for autodoc: plain text, indented equations, 'name: meaning' lists."""

import re

ITEM = re.compile(r"(\w+(?:, \w+)*)( \([^)]*\))?: (.*)")
SPAN = re.compile(r"``(?P<code>[^`]+)``|`(?P<name>[\w.]+)`|(?P<bold>\*\*[^*]+\*\*)|\b(?P<chapter>\d\d_[a-z_]+)\b|(?P<mark>[\\*|_`])")


def inline(text: str) -> str:
    """Names link to what they name where it is on the page, chapters to their pages; every other mark stands for itself."""
    def replace(match):
        kind, value = match.lastgroup, match[match.lastgroup]
        return {"code": f"``{value}``", "name": f":py:obj:`{value}`", "bold": value, "mark": "\\" + value,
                "chapter": f":doc:`/notebooks/{value}`"}[kind]
    return SPAN.sub(replace, text)


def paragraph(lines: list[str]) -> list[str]:
    """One paragraph: its 'name: meaning' lines become a list, what is no such line stays text."""
    lines = [part for line in lines for part in re.split(r"  (?=\w+: )|(?<=\.) (?=Returns |Raises )", line)]
    out, item = [], False
    for line in lines:
        text, match = line.strip(), ITEM.fullmatch(line.strip())
        if match:
            out += ["", f"- ``{match[1]}``{inline(match[2] or '')}: {inline(match[3])}"]
            item = True
        elif item and (line.startswith(" ") or not out[-1].endswith((".", ":"))):
            out.append("  " + inline(text))
        else:
            out += ["", inline(text)] if item else [inline(text)]
            item = False
    return out + [""]


def convert(lines: list[str]) -> list[str]:
    """The first paragraph is text; an indented one, after an empty line, is an equation and keeps its line breaks."""
    blocks = re.split(r"\n\s*\n", "\n".join(lines).strip("\n"))
    out = [inline(line) for line in blocks[0].splitlines()] + [""]
    for block in blocks[1:]:
        if block.startswith("    "):
            out += [".. code-block:: text", "", *block.splitlines(), ""]
        elif re.match(r"\d\. ", block):  # a numbered list keeps its indentation
            out += [inline(line) for line in block.splitlines()] + [""]
        else:
            out += paragraph(block.splitlines())
    return out


def process(app, what, name, obj, options, lines):
    lines[:] = convert(lines)


def setup(app):
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
