"""Chapters are executed here, by whatever command: found, checked, given parameters, run, and
stamped.
"""

import os
import re
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import nbformat
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from papermill.parameterize import parameterize_notebook
from tqdm import tqdm

from attractor_book.parameters import Parameter, check_values, read_parameters
from attractor_book.results import ROOT, provenance, write_whole
from attractor_lib.trainer import select_device

NOTEBOOKS = ROOT / "notebooks"

ALONE = """\
import sys
from importlib.util import find_spec

if find_spec("attractor_lib") is None:  # alone, as on Colab: fetch the library and its results
    !git clone -q --depth 1 -b {branch} {url} {folder}
    %pip install -q -e "{folder}[fast,data,book]"
    sys.path.insert(0, "{folder}")
"""


def chapters() -> list[Path]:
    """The committed notebooks, in order.

    Raises:
        ValueError: if there are none beside the package.
    """
    if not (found := sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))):
        raise ValueError(f"there are no chapters in {NOTEBOOKS}: install from a clone, --editable")
    return found


def find_chapter(name: str) -> Path:
    """The chapter of this number, or whose file name begins with `name`, or any notebook by its
    path.
    """
    if Path(name).suffix == ".ipynb":
        if not Path(name).is_file():
            raise ValueError(f"chapter must be a notebook that is there, got {name}")
        return Path(name).resolve()
    there = chapters()
    matches = [path for path in there if path.stem.startswith(Path(name).stem.zfill(2))]
    if len(matches) != 1:
        names = ", ".join(path.stem for path in there)
        raise ValueError(f"chapter must be the beginning of one of {names}, got {name!r}")
    return matches[0]


def tagged(notebook: NotebookNode, tag: str) -> list[int]:
    """The positions of the cells with a tag."""
    return [n for n, cell in enumerate(notebook.cells) if tag in cell.metadata.get("tags", [])]


def parameters_of(notebook: NotebookNode) -> dict[str, Parameter]:
    """The parameters of a notebook by name."""
    sources = [notebook.cells[n].source for n in tagged(notebook, "parameters")]
    return read_parameters("\n".join(sources))


def describe(chapter: Path) -> str:
    """The parameters of a chapter, a line each: name, default, meaning, unit, range."""
    lines = []
    for p in parameters_of(nbformat.read(chapter, as_version=4)).values():
        unit = f" [{p.unit}]" if p.unit else ""
        lines.append(f"  {p.name:<18} {p.default!r:<22} {p.meaning}{unit}; {p.allowed}")
    return "\n".join(lines)


def check_parameters(chapter: Path, given: dict) -> None:
    """Refuse an unknown name, and a value of another type or out of range, before any work.

    Numbers that YAML took for text are put right in `given`.
    """
    known = parameters_of(nbformat.read(chapter, as_version=4))
    for name in given:
        if name not in known:
            raise ValueError(
                f"{chapter.stem} has no parameter {name!r}. It has:\n{describe(chapter)}"
            )
    given.update(check_values(known, given))
    if "device" in given:
        select_device(given["device"])


def parse(name: str, value: str):
    """The value of a parameter from its text, read as YAML."""
    try:
        return yaml.safe_load(value) if value else ""
    except yaml.YAMLError:
        raise ValueError(
            f"{name}: expected a value in YAML, such as 2, 1e-2, text or [1, 2], got {value!r}"
        ) from None


def parse_all(given: list[list[str]]) -> dict:
    """The values of parameters by name, each of which may be given once."""
    names = [name for name, _ in given]
    if repeated := {name for name in names if names.count(name) > 1}:
        got = ", ".join(sorted(repeated))
        raise ValueError(f"each parameter must be given once, got {got} again")
    return {name: parse(name, value) for name, value in given}


def refuse_committed(folder: Path) -> None:
    """ValueError for the folder of the committed notebooks, and those within."""
    if folder.resolve().is_relative_to(NOTEBOOKS.resolve()):
        raise ValueError(f"output must not lie among the committed notebooks in {NOTEBOOKS}")


def label(parameters: dict, longest: int = 80) -> str:
    """Parameters as a part of a file's name; what would be too long is cut, and a key put in its
    place.
    """
    text = "".join(f"-{name}={value}" for name, value in parameters.items())
    text = re.sub(r"[^\w=.,+-]+", "_", text)
    return text if len(text) <= longest else f"{text[: longest - 9]}-{key_of(parameters)[:8]}"


def key_of(*parts) -> str:
    """Twelve digits that stand for anything that prints itself in full."""
    return sha256(repr(parts).encode()).hexdigest()[:12]


def environment(threads: int | None = None) -> dict[str, str]:
    """That of a kernel, which computes with so many threads, by default as many as there are.

    Dask's workers give freed memory back at once (MALLOC_TRIM_THRESHOLD_), which halves the speed
    of training.
    """
    own = {name: v for name, v in os.environ.items() if name != "MALLOC_TRIM_THRESHOLD_"}
    return own if threads is None else own | {"OMP_NUM_THREADS": str(threads)}


class _Client(NotebookClient):
    """A client that hands on what cells print, as they print it."""

    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] == "stream":
            tqdm.write(msg["content"]["text"], file=sys.stdout, end="")
            sys.stdout.flush()
        return super().process_message(msg, cell, cell_index)


def execute(
    notebook: NotebookNode,
    parameters: dict | None = None,
    *,
    name: str = "",
    folder: str | Path = NOTEBOOKS,
    threads: int | None = None,
    partial: Path | None = None,
) -> NotebookNode:
    """The notebook executed, with what it was executed on and with in its metadata.

    Args:
        notebook: is changed, unless it is given parameters, which come below its parameters cell.
        parameters: values by name, checked before.
        name: with one, progress is shown, and what cells print.
        folder: the kernel's working directory.
        threads: of the kernel.
        partial: a file that holds the cells that have run, written after each, and removed at the
            end.

    Raises:
        CellExecutionError: for an error in a cell, whose execution count it has as `count`.
        DeadKernelError: for a kernel that died, or was stopped.
    """
    began, given = time.perf_counter(), parameters or {}
    notebook.metadata.pop("provenance", None)  # of another run
    if given:
        notebook.metadata.setdefault("papermill", nbformat.NotebookNode())
        for cell in notebook.cells:
            cell.metadata.setdefault("tags", [])
        notebook = parameterize_notebook(notebook, given, language="python", kernel_name="python3")
    counts = []  # of the cells with an error; some may have one
    n_cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    with tqdm(total=n_cells, desc=name, unit="cell", disable=not name) as bar:

        def done(**_) -> None:
            bar.update()
            if partial:
                write_whole(partial, nbformat.writes(notebook))

        client = (_Client if name else NotebookClient)(
            notebook,
            timeout=None,
            kernel_name="python3",
            resources={"metadata": {"path": str(folder)}},
            on_cell_executed=done,
            on_cell_error=lambda cell, **_: counts.append(cell.execution_count),
        )
        try:
            client.execute(env=environment(threads), stderr=subprocess.DEVNULL)
        except BaseException as error:
            if isinstance(error, CellExecutionError):
                error.count = counts[-1]
            if partial:  # what the cell that was stopped has printed, too
                write_whole(partial, nbformat.writes(notebook))
            raise
    known = parameters_of(notebook)
    device = given.get("device", known["device"].default) if "device" in known else "cpu"
    run = provenance(select_device(device), time.perf_counter() - began)
    notebook.metadata.provenance = run | ({"threads": threads} if threads else {})
    if partial:
        partial.unlink(missing_ok=True)
    return notebook


def told_error(error: CellExecutionError) -> str:
    """An error of a cell, and which cell it was, as a line of text."""
    return f"in cell {error.count}: {error.ename}: {error.evalue}"


def told(run: dict) -> str:
    """Provenance as a line of text."""
    return ", ".join(f"{name} {value}" for name, value in run.items())


def rerun(chapter: Path, output: Path, parameters: dict) -> None:
    """Run a chapter into `output`, which says how it was made.

    What was run before an error or an interruption stays in a file beside it that ends in
    -unfinished.
    """
    if output.suffix != ".ipynb":
        raise ValueError(f"output must be a notebook, *.ipynb, got {output}")
    output.parent.mkdir(parents=True, exist_ok=True)
    print(f"== {chapter.stem} {parameters or '(default parameters)'}", flush=True)
    partial = output.with_name(f"{output.stem}-unfinished.ipynb")
    try:
        notebook = nbformat.read(chapter, as_version=4)
        notebook = execute(notebook, parameters, name=chapter.stem, partial=partial)
    except BaseException:
        if partial.exists():
            print(
                f"== the cells that were run are in {partial}; the same command starts afresh",
                file=sys.stderr,
            )
        raise
    run = notebook.metadata.provenance
    given = ", ".join(f"`{name} = {value!r}`" for name, value in parameters.items()) or "all"
    notebook.cells.insert(
        1,
        nbformat.v4.new_markdown_cell(
            f"**This run.** Parameters: {given}{', the others' * bool(parameters)} as committed. "
            f"{told(run)}. Text, captions and alternative texts are those of the committed run."
        ),
    )
    nbformat.write(notebook, output)
    print(f"== {chapter.stem}: {run['seconds']:.0f} s, written to {output}", flush=True)


def alone() -> str:
    """The lines that begin every chapter, so that it runs without the repository around it."""
    repository = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]
    return ALONE.format(folder=repository["url"].rstrip("/").rsplit("/")[-1], **repository)


def put_alone(notebook: NotebookNode) -> None:
    """Begin the first code cell of a notebook with these lines, in place of those that it has."""
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    lines = r"\Aimport sys\nfrom importlib.util import find_spec\n\nif find_spec.*\n(    .*\n|\n)+"
    own = re.sub(lines, "", first.source)
    first.source = f"{alone()}\n{own}"
    if "hide-input" not in (tags := first.metadata.setdefault("tags", [])):
        tags.append("hide-input")  # imports, folded on the page


def commit(chapter: Path) -> None:
    """Execute a chapter in place, for a commit.

    Raises:
        ValueError: if a cell writes to stderr; the notebook then stays as it was.
    """
    notebook = nbformat.read(chapter, as_version=4)
    put_alone(notebook)
    execute(notebook, name=chapter.stem)
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    if warned := "".join(o.text for o in outputs if o.get("name") == "stderr"):
        raise ValueError(f"{chapter.stem} writes to stderr, and stays as it was:\n{warned}")
    write_whole(chapter, nbformat.writes(notebook) + "\n")
    print(f"== {chapter.stem}: {told(notebook.metadata.provenance)}", flush=True)
