"""Parts of pages that the book takes from its notebooks when it is built: a page asks for one by
its name in double braces.
"""

import json
import re
from datetime import datetime
from html import escape
from pathlib import Path

import nbformat

from attractor_book.parameters import read_parameters

PARAMETER = ["parameter", "default", "meaning", "unit", "range"]
RUN = ["date", "seconds", "device", "cores", "threads", "python", "torch"]


def table(header: list[str], rows: list[list]) -> str:
    return "\n".join(
        f"| {' | '.join(map(str, row))} |" for row in [header, ["---"] * len(header), *rows]
    )


def parameter_tables(folder: Path) -> str:
    """For every chapter its parameters: name, default, meaning, unit, range."""
    parts = []
    for path in sorted(folder.glob("[0-9]*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        title = f"{int(path.name[:2])}. {cells[0].source.splitlines()[0].removeprefix('# ')}"
        source = "\n".join(
            cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])
        )
        rows = [
            [
                f"`{p.name}`",
                f"`{p.default!r}`",
                p.meaning.replace("|", r"\|"),
                p.unit,
                p.allowed.replace("*", r"\*"),
            ]
            for p in read_parameters(source).values()
        ]
        parts.append(f"## {title}\n\nIn [](notebooks/{path.name}).\n\n{table(PARAMETER, rows)}\n")
    return "\n".join(parts)


def execution_status(folder: Path) -> str:
    """For every chapter when it was executed, how long that took, on what; what a notebook does not
    say is left empty.
    """
    rows = []
    for path in sorted(folder.glob("[0-9]*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        cells = [
            cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()
        ]
        times = [
            datetime.fromisoformat(time)
            for cell in cells
            for time in cell.metadata.get("execution", {}).values()
        ]
        run = {
            "python": notebook.metadata.language_info.version,
            **notebook.metadata.get("provenance", {}),
        }
        if times:
            seconds = (max(times) - min(times)).total_seconds()
            run = {"date": f"{min(times):%Y-%m-%d}", "seconds": seconds, **run}
        rows.append([f"{int(path.name[:2])}. [](notebooks/{path.name})", len(cells), *shown(run)])
    return table(["chapter", "code cells", *RUN], rows)


def stored_results(folder: Path) -> str:
    """The same of every long run whose results are stored."""
    rows = []
    for file in sorted((folder / "results").glob("*/*.json")):
        run = json.loads(file.read_text())["provenance"]
        name = file.parent.name
        chapter = f"[{int(name[:2])}](notebooks/{name}.ipynb)" if name[0].isdigit() else name
        rows.append([chapter, file.stem, *shown(run)])
    return table(["chapter", "run", *RUN], rows)


DATA = {1: "random tokens", 7: "random tokens", 9: "random patterns", 17: "random patterns"}
DATA |= {20: "letters", 22: "text"}


def findings(folder: Path) -> str:
    """Every statement that a chapter prints with whether it holds, behind lists to choose by."""
    rows = []
    for path in sorted(folder.glob("[0-9]*.ipynb")):
        number, section = int(path.name[:2]), ""
        for cell in nbformat.read(path, as_version=4).cells:
            headings = re.findall(r"^##* (.+)$", cell.source, re.M)
            if cell.cell_type == "markdown" and headings:
                section = headings[-1].replace("$", "").replace("*", "")
            printed = "".join(o.get("text", "") for o in cell.get("outputs", []))
            for statement, holds in re.findall(r"^(.+): (True|False)$", printed, re.M):
                data = "Fashion-MNIST" if "clothes" in statement else "MNIST"
                data = "CIFAR-10" if "colour" in statement else DATA.get(number, data)
                verdict = "holds" if holds == "True" else "does not hold"
                rows.append((number, path.stem, section, statement, data, verdict))
    choices = [("chapter", 0), ("data", 4), ("verdict", 5)]
    lists = "".join(
        f'<label>{label} <select data-column="{column}"><option value="">all</option>'
        + "".join(
            f"<option>{escape(str(v))}</option>" for v in dict.fromkeys(r[column] for r in rows)
        )
        + "</select></label>"
        for label, column in choices
    )
    lists += '<label>with the words <input type="search"></label><output></output>'
    head = "".join(f"<th>{name}</th>" for name in ("chapter", "statement", "data", "verdict"))
    body = "".join(
        f'<tr data-values="{escape(json.dumps([n, s, section, said, data, verdict]))}">'
        f'<td><a href="notebooks/{s}.html" title="{escape(section)}">{n}</a></td>'
        f"<td>{escape(said)}</td><td>{data}</td><td>{verdict}</td></tr>"
        for n, s, section, said, data, verdict in rows
    )
    return (
        f'````{{raw}} html\n<div class="findings"><div class="findings-lists">{lists}</div>'
        f'<div class="findings-box"><table class="table"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></div>\n````"
    )


PLACES = {  # of the chapters in the map of the book: column, row, a short title
    1: (0, 1, "local energies"),
    2: (0, 0, "images as spins"),
    3: (1, 1, "learning"),
    4: (2, 0, "filling in"),
    5: (3, 0, "denoising"),
    6: (2, 2, "transients"),
    7: (2, 3, "exact likelihood"),
    8: (3, 3, "contrast"),
    9: (4, 3, "random patterns"),
    10: (5, 3, "basins"),
    11: (4, 2, "how runs fail"),
    12: (4, 0, "ablations"),
    13: (5, 2, "made to stay"),
    14: (3, 1, "at equal cost"),
    15: (2, 1, "regression"),
    16: (3, 2, "why transient"),
    17: (5, 4, "mean field"),
    18: (4, 1, "hidden spins"),
    19: (5, 1, "the verdict"),
    20: (1, 4, "letters"),
    21: (5, 0, "other images"),
    22: (2, 4, "Shakespeare"),
    23: (3, 4, "density"),
    24: (0, 2, "one head"),
}
LEADS_TO = [
    *[(1, 3), (2, 4), (3, 15), (3, 6), (3, 7), (4, 5), (5, 12), (12, 21), (15, 14), (14, 18)],
    *[(18, 19), (6, 16), (16, 11), (11, 13), (7, 8), (8, 9), (9, 10), (9, 17), (3, 20), (20, 22)],
    *[(7, 23), (1, 24)],
]


def map_of_the_book(folder: Path) -> str:
    """What leads to what: the chapters as boxes that link, and arrows."""
    width, height, across, down = 116, 38, 136, 66
    at = {n: (column * across, row * down) for n, (column, row, _) in PLACES.items()}
    names = {int(path.name[:2]): path.stem for path in folder.glob("[0-9]*.ipynb")}
    arrows = "".join(
        f'<path d="M{at[a][0] + (width if at[b][0] > at[a][0] else width / 2)} '
        f"{at[a][1] + (height / 2 if at[b][0] > at[a][0] else height)}"
        f"L{at[b][0] - 3 if at[b][0] > at[a][0] else at[b][0] + width / 2} "
        f'{at[b][1] + (height / 2 if at[b][0] > at[a][0] else 0)}" marker-end="url(#map-arrow)"/>'
        for a, b in LEADS_TO
    )
    boxes = "".join(
        f'<a href="notebooks/{names[n]}.html"><rect x="{x}" y="{y}" width="{width}" '
        f'height="{height}" rx="5"/><text x="{x + width / 2}" y="{y + 16}">{n}</text>'
        f'<text x="{x + width / 2}" y="{y + 31}">{PLACES[n][2]}</text></a>'
        for n, (x, y) in at.items()
    )
    size = f"-4 -4 {5 * across + width + 8} {4 * down + height + 8}"
    return (
        f'````{{raw}} html\n<div class="map"><svg viewBox="{size}" role="img" '
        'aria-label="The chapters as boxes, with arrows from each to those that build on it.">'
        '<defs><marker id="map-arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>{arrows}{boxes}'
        "</svg></div>\n````"
    )


def transient_memory(folder: Path) -> str:
    """The moving picture of chapter 6, as its notebook has it."""
    cells = nbformat.read(folder / "06_transient_memories.ipynb", as_version=4).cells
    pages = (
        output.get("data", {}).get("text/html", "")
        for cell in cells
        for output in cell.get("outputs", [])
    )
    picture = next(html for html in pages if 'id="worked-memories"' in html)
    return f"````{{raw}} html\n{picture}\n````"


def shown(run: dict) -> list:
    run = {
        **run,
        "seconds": round(run["seconds"]) if "seconds" in run else "",
        "date": run.get("date", "").replace("-", "\u2011"),  # no line breaks here
        "device": run.get("device", "").replace(" ", "\u00a0"),
    }
    return [run.get(name, "") for name in RUN]


PARTS = {
    "{{ parameter_tables }}": parameter_tables,
    "{{ execution_status }}": execution_status,
    "{{ stored_results }}": stored_results,
    "{{ findings }}": findings,
    "{{ map }}": map_of_the_book,
    "{{ transient_memory }}": transient_memory,
}


def fill(app, page: str, source: list[str]) -> None:
    folder = Path(app.srcdir) / "notebooks"
    for mark, draw in PARTS.items():
        if mark in source[0]:
            source[0] = source[0].replace(mark, draw(folder))
            for path in [*folder.glob("*.ipynb"), *folder.glob("results/*/*.json")]:
                app.env.note_dependency(str(path))


def setup(app) -> dict:
    app.connect("source-read", fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
