"""Marks of docstrings that napoleon leaves: names in single backticks, chapters by their file
names, bars and stars. **Bold** stays bold.
"""

import re

SPAN = re.compile(
    r"(?P<same>``[^`]+``|:[\w:]+:`[^`]+`|(?<!\w)\*\*(?=\S)[^*`]+(?<=\S)\*\*(?!\w))"
    r"|`(?P<name>[\w.]+)`|\b(?P<chapter>\d\d_[a-z_]+)\b"
    r"|(?P<mark>[|*_])"
)


def inline(line: str) -> str:
    """Names link to what they name, chapters to their pages; other marks stand for themselves."""

    def replace(match: re.Match) -> str:
        kind, value = match.lastgroup, match[match.lastgroup]
        links = {"name": f":py:obj:`{value}`", "chapter": f":doc:`/notebooks/{value}`"}
        return value if kind == "same" else links.get(kind, "\\" + value)

    return SPAN.sub(replace, line)


def process(app, what, name, obj, options, lines: list[str]) -> None:
    """Before napoleon; what is indented after `::` is an equation, and stays as it is."""
    literal = None
    for n, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if literal is not None and line.strip() and indent <= literal:
            literal = None
        if literal is None:
            lines[n] = inline(line)
            if line.rstrip().endswith("::"):
                literal = indent


def setup(app):
    app.connect("autodoc-process-docstring", process, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
