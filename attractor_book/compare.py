"""Compare chapters executed elsewhere (on a GPU, with other versions) with the committed ones.

What must be the same: the code, every word of every output, row and column names, and so whether
each statement is True. Numbers are compared within their column of a table (or the lines of a text
that differ in their numbers only), on the scale of the largest one there, since another device
draws other random numbers:

- in cells that the tests compare none may be off by more than ``--exact``;
- in the others, which depend on a training, at most the share ``--allow`` of a chapter's numbers
  may be off by more than ``--tolerance``, none by more than five times that.

Not compared: times and where a run took place, what follows a plus-minus sign, standard deviations
and errors, pictures.
"""

import re
from collections import defaultdict
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup

NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?(?!\w)")
TIME = re.compile(r"\d[\d.]* (?:s|ms|seconds|minutes)\b|(?<=±) ?[\d.e+-]+")
LEFT_OUT = re.compile(
    r"\(s\)|seconds|date|device|threads|torch|file|standard (?:deviation|error)|\bstd\b"
)


def split(text: str) -> tuple[str, list[float]]:
    """The words of a text, with # for each number, and the numbers."""
    text = TIME.sub("", text)
    return " ".join(NUMBER.sub("#", text).split()), [
        float(n.replace(",", "")) for n in NUMBER.findall(text)
    ]


def table_lines(html: str):
    """The names of rows and columns, then the words, numbers and column of each entry that is
    compared.
    """
    table = BeautifulSoup(html, "html.parser").find("table")
    yield " ".join(th.get_text(" ", strip=True) for th in table.find_all("th")), [], ""
    headers = [
        [th.get_text() for th in row.find_all("th") for _ in range(int(th.get("colspan", 1)))]
        for row in table.find("thead").find_all("tr")
    ]
    for row in table.find("tbody").find_all("tr"):
        label, entries = " ".join(th.get_text() for th in row.find_all("th")), row.find_all("td")
        for n, entry in enumerate(entries):
            column = " ".join(header[n - len(entries)] for header in headers).strip()
            if not LEFT_OUT.search(f"{label} {column}"):
                yield *split(entry.get_text()), f"column {n + 1}: {column}"


def output_lines(cell):
    """Words, numbers and the group of numbers that they are compared with, for each line or entry
    of a cell's outputs.
    """
    text = "".join(o.text for o in cell.outputs if o.output_type == "stream")
    data = [o.data for o in cell.outputs if "data" in o and "image/png" not in o.data]
    for html in (d["text/html"] for d in data if "<table" in d.get("text/html", "")):
        yield from table_lines(html)
    text += "\n".join(["", *(d.get("text/plain", "") for d in data if "text/html" not in d)])
    for line in text.splitlines():
        words, numbers = split(line)
        yield words, [] if LEFT_OUT.search(words) else numbers, words


def compare(old: Path, new: Path, exact: float, tolerance: float, allow: float) -> list[str]:
    """What differs by more than it may; empty if nothing does."""
    pair = []
    for path in (old, new):
        cells = nbformat.read(path, as_version=4).cells
        pair.append(
            [
                c
                for c in cells
                if c.cell_type == "code" and "injected-parameters" not in c.metadata.get("tags", [])
            ]
        )
    if [c.source for c in pair[0]] != [c.source for c in pair[1]]:
        return ["the code differs: not the same chapter, or not the same version of it"]
    wrong, loose = [], []
    for n, (a, b) in enumerate(zip(*pair), 1):
        trained = "nbval-ignore-output" in a.metadata.get("tags", [])
        lines = [list(output_lines(c)) for c in (a, b)]
        if len(lines[0]) != len(lines[1]):
            wrong.append(f"code cell {n}: {len(lines[0])} lines or entries, now {len(lines[1])}")
            continue
        groups = defaultdict(list)
        for (words, numbers, group), (now, numbers_now, _) in zip(*lines):
            if words != now:
                wrong.append(f"code cell {n}: {words!r} is now {now!r}")
            else:
                for place, values in enumerate(zip(numbers, numbers_now)):
                    groups[group, place].append(values)
        for (group, _), values in groups.items():
            scale = max(abs(x) for x, _ in values) or 1.0
            for x, y in values:
                off = abs(y - x) / scale
                line = f"code cell {n}: {x:g} is now {y:g} ({group})"
                if not off <= (
                    5 * tolerance if trained else exact
                ):  # written so that NaN fails too
                    wrong.append(line)
                elif trained:
                    loose.append((off > tolerance, line))
    outside = [line for far, line in loose if far]
    if len(outside) > allow * len(loose):
        wrong += [
            f"{len(outside)} of {len(loose)} numbers are off by more than "
            f"{tolerance:.0%} of their scale:",
            *outside,
        ]
    print(
        f"{old.stem}: {len(wrong)} differences; {len(outside)} of {len(loose)} numbers "
        f"after a training are off by more than {tolerance:.0%}"
    )
    return wrong


def compare_all(old: Path, new: Path, exact: float, tolerance: float, allow: float) -> None:
    """Compare two notebooks, or those of a folder with the ones of the same name in another.

    Raises:
        ValueError: with all that differs by more than it may, and where there is nothing to
            compare.
    """
    pairs = [(old, new)]
    if old.is_dir():
        pairs = [(old / path.name, path) for path in sorted(new.glob("*.ipynb"))]
    missing = [str(path) for pair in pairs for path in pair if not path.exists()]
    if missing or not pairs:
        raise ValueError(f"there is no {', '.join(missing) or f'notebook in {new}'}")
    wrong = [
        f"{a.stem}, {line}" for a, b in pairs for line in compare(a, b, exact, tolerance, allow)
    ]
    if wrong:
        raise ValueError("\n".join(wrong))
