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


DATA = {1: "random tokens", 9: "random patterns", 17: "random patterns", 20: "letters", 22: "text"}


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
