"""Re-run chapters with other parameters; the committed notebooks are never touched.

    python notebooks/rerun.py --list
    python notebooks/rerun.py 04 -p beta 10 -p device cuda
    python notebooks/rerun.py --all --output-dir _build/reproduce/notebooks
"""

import argparse
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import papermill
import yaml
from papermill.exceptions import PapermillExecutionError

from attractor_lib.parameters import Parameter, check_values, read_parameters
from attractor_lib.results import provenance
from attractor_lib.trainer import select_device

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CHAPTERS = sorted(HERE.glob("[0-9]*.ipynb"))


def find_chapter(name: str) -> Path:
    """The chapter of this number, or whose file name begins with `name`, or any notebook by its path."""
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name).resolve()
    matches = [chapter for chapter in CHAPTERS if chapter.stem.startswith(Path(name).stem.zfill(2))]
    if len(matches) != 1:
        raise ValueError(f"chapter must be the beginning of one of {', '.join(c.stem for c in CHAPTERS)}, got {name!r}")
    return matches[0]


def tagged(notebook, tag: str) -> list:
    """The positions of the cells with a tag."""
    return [n for n, cell in enumerate(notebook.cells) if tag in cell.metadata.get("tags", [])]


def parameters_of(chapter: Path) -> dict[str, Parameter]:
    """The parameters of a chapter by name."""
    notebook = nbformat.read(chapter, as_version=4)
    return read_parameters("\n".join(notebook.cells[n].source for n in tagged(notebook, "parameters")))


def check_parameters(chapter: Path, given: dict) -> None:
    """Refuse a name that the chapter's `parameters` cell does not have, and a value of another type or out of its range.

    Numbers that YAML took for text are put right in `given`.
    """
    known = parameters_of(chapter)
    for name in given:
        if name not in known:
            raise ValueError(f"{chapter.stem} has no parameter {name!r}. It has:\n{describe(chapter)}")
    given.update(check_values(known, given))
    if "device" in given:
        select_device(given["device"])


def describe(chapter: Path) -> str:
    """The parameters of a chapter, a line each: name, default, meaning, unit, range."""
    return "\n".join(f"  {p.name:<18} {p.default!r:<22} {p.meaning}{f' [{p.unit}]' * bool(p.unit)}; {p.allowed}"
                     for p in parameters_of(chapter).values())


def parse(name: str, value: str):
    """The value of a parameter from its text, read as YAML."""
    try:
        return yaml.safe_load(value) if value else ""
    except yaml.YAMLError:
        raise ValueError(f"{name}: expected a value in YAML, such as 2, 1e-2, text or [1, 2], got {value!r}") from None


def refuse_committed(folder: Path) -> None:
    if folder.resolve() == HERE:
        raise ValueError(f"output must not lie among the committed notebooks in {HERE}")


def execute(chapter: Path, output: Path, parameters: dict) -> None:
    """Run a chapter into `output`, cell by cell with progress, from the folder of the notebooks; it says how it was made.

    What was run before an error or an interruption stays in a file beside it that ends in -unfinished.
    """
    if output.suffix != ".ipynb":
        raise ValueError(f"output must be a notebook, *.ipynb, got {output}")
    output.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    print(f"== {chapter.stem} {parameters or '(default parameters)'}", flush=True)
    partial = output.with_name(f"{output.stem}-unfinished.ipynb")
    try:
        notebook = papermill.execute_notebook(str(chapter), str(partial), parameters, cwd=str(HERE), kernel_name="python3",
                                              stdout_file=sys.stdout, stderr_file=sys.stderr)
    except BaseException:
        if partial.exists():
            unfinished = nbformat.read(partial, as_version=4)
            unfinished.metadata.pop("provenance", None)  # of the committed run
            nbformat.write(unfinished, partial)
            print(f"== the cells that were run are in {partial}; the same command starts afresh", file=sys.stderr)
        raise
    run = stamp(notebook, parameters_of(chapter), parameters, time.perf_counter() - began)
    given = ", ".join(f"`{name} = {value!r}`" for name, value in parameters.items()) or "all"
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell(
        f"**This run.** Parameters: {given}{', the others' * bool(parameters)} as committed. "
        f"{', '.join(f'{name} {value}' for name, value in run.items())}. Text, captions and alternative texts are those of the committed run."))
    nbformat.write(notebook, output)
    partial.unlink()
    print(f"== {chapter.stem}: {run['seconds']:.0f} s, written to {output}", flush=True)


def stamp(notebook, known: dict[str, Parameter], given: dict, seconds: float) -> dict:
    """Write into a notebook's metadata what it was executed on and with."""
    device = given.get("device", known["device"].default) if "device" in known else "cpu"
    notebook.metadata.provenance = provenance(select_device(device), seconds)
    return notebook.metadata.provenance


def build_book(folder: Path) -> None:
    """Build the book from the notebooks in folder/notebooks and the pages of this repository."""
    book = folder / "book"
    if not (folder / "notebooks").is_dir():
        raise ValueError(f"expected executed notebooks in {folder / 'notebooks'}; there is no such folder")
    shutil.rmtree(book, ignore_errors=True)
    shutil.copytree(ROOT / "book", book, ignore=shutil.ignore_patterns("_build", "notebooks"))  # links become files
    shutil.copytree(folder / "notebooks", book / "notebooks")
    subprocess.run([Path(sys.executable).with_name("jupyter-book"), "build", book, "-W", "--keep-going"], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python notebooks/rerun.py", description="Re-run chapters of the book with "
                                     "other parameters. The committed notebooks are never touched.")
    parser.add_argument("chapter", nargs="?", help="a chapter's number, or the beginning of its name")
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                        help="a parameter and its value, as YAML; repeat for more")
    parser.add_argument("-o", "--output", type=Path, help="the executed notebook (default: _runs/CHAPTER-PARAMETERS.ipynb)")
    parser.add_argument("--list", action="store_true", help="list the chapters (or the one given) with their parameters")
    parser.add_argument("--all", action="store_true", help="run every chapter with its default parameters")
    parser.add_argument("--output-dir", type=Path, default=ROOT / "_runs", help="where --all writes (default: _runs)")
    parser.add_argument("--book", type=Path, metavar="FOLDER", help="build the book from FOLDER/notebooks into FOLDER/book")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's time limit is an interruption
    try:
        if arguments.list:
            for chapter in [find_chapter(arguments.chapter)] if arguments.chapter else CHAPTERS:
                print(f"{chapter.stem}\n{describe(chapter)}")
        elif arguments.all:
            if arguments.chapter or arguments.parameter or arguments.output:
                raise ValueError("--all runs every chapter with its default parameters: it takes no chapter, -p or -o")
            refuse_committed(arguments.output_dir)
            for chapter in CHAPTERS:
                execute(chapter, arguments.output_dir.resolve() / chapter.name, {})
        elif arguments.book:
            build_book(arguments.book.resolve())
        elif arguments.chapter:
            chapter = find_chapter(arguments.chapter)
            parameters = {name: parse(name, value) for name, value in arguments.parameter}
            check_parameters(chapter, parameters)
            if parameters.get("results_file"):
                results_file = Path(parameters["results_file"]).resolve()
                refuse_committed(results_file.parent)
                results_file.parent.mkdir(parents=True, exist_ok=True)
                parameters["results_file"] = str(results_file)
            label = "".join(f"-{name}={value}" for name, value in parameters.items()).replace("/", "_")
            output = (arguments.output or ROOT / "_runs" / f"{chapter.stem}{label}.ipynb").resolve()
            refuse_committed(output.parent)
            execute(chapter, output, parameters)
        else:
            parser.error("name a chapter, or --list, --all or --book")
    except (ValueError, RuntimeError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    except PapermillExecutionError as error:
        sys.exit(f"error: {error.ename} in cell {error.exec_count}: {error.evalue}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


if __name__ == "__main__":
    main()
