"""The command `attractor-book`: run chapters again, sweep over parameters, store and compare
results.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

EXTRAS = {"distributed": "book,sweep"}  # what needs more than the book extra
RERUN = {  # what rerun can be given
    "chapter": "a chapter",
    "parameter": "-p",
    "output": "-o",
    "output_dir": "--output-dir",
    "list": "--list",
    "all": "--all",
    "book": "--book",
}
TAKES = {"list": ["chapter"], "all": ["output_dir"], "book": [], "output": ["chapter", "parameter"]}


def rerun(arguments: argparse.Namespace) -> None:
    """Chapters again, with other parameters, into a folder of their own."""
    from attractor_book import executor as run

    refuse_together(arguments)
    folder = arguments.output_dir or run.ROOT / "_runs"
    if arguments.list:
        only = [run.find_chapter(arguments.chapter)] if arguments.chapter else run.chapters()
        for chapter in only:
            print(f"{chapter.stem}\n{run.describe(chapter)}")
    elif arguments.all:
        run.refuse_committed(folder)
        for chapter in run.chapters():
            run.rerun(chapter, folder.resolve() / chapter.name, {})
    elif arguments.book:
        build_book(arguments.book.resolve(), run.ROOT)
    elif arguments.chapter:
        chapter = run.find_chapter(arguments.chapter)
        parameters = run.parse_all(arguments.parameter)
        run.check_parameters(chapter, parameters)
        told = {name: v for name, v in parameters.items() if name != "results_file"}
        name = f"{chapter.stem}{run.label(told)}.ipynb"
        if parameters.get("results_file"):
            file = Path(parameters["results_file"]).resolve()
            run.refuse_committed(file.parent)
            file.parent.mkdir(parents=True, exist_ok=True)
            parameters["results_file"] = str(file)
        output = (arguments.output or folder / name).resolve()
        run.refuse_committed(output.parent)
        run.rerun(chapter, output, parameters)
    else:
        raise ValueError("name a chapter, or --list, --all or --book")


def refuse_together(arguments: argparse.Namespace) -> None:
    """ValueError for what rerun would ignore beside what else it is given."""
    for name, beside in TAKES.items():
        others = [n for n in RERUN if n not in (name, *beside) and getattr(arguments, n)]
        if getattr(arguments, name) and others:
            raise ValueError(f"{RERUN[name]} cannot be given with {RERUN[others[0]]}")


def build_book(folder: Path, root: Path) -> None:
    """Build the book from the notebooks in folder/notebooks and the pages of this repository.

    Raises:
        ValueError: without notebooks, and where folder/book is this repository's own.
    """
    book, own = folder / "book", (root / "book").resolve()
    if not (folder / "notebooks").is_dir():
        raise ValueError(
            f"expected executed notebooks in {folder / 'notebooks'}; there is no such folder"
        )
    there = book.resolve()  # or it holds the repository, as the parent of a clone named book does
    if there.is_relative_to(own) or own.is_relative_to(there):
        raise ValueError(f"{book} is, or holds, the repository's own book: name another folder")
    shutil.rmtree(book, ignore_errors=True)
    left_out = shutil.ignore_patterns("_build", "notebooks")
    shutil.copytree(root / "book", book, ignore=left_out)  # links become files
    shutil.copytree(folder / "notebooks", book / "notebooks")
    build = [Path(sys.executable).with_name("jupyter-book"), "build", book, "-W", "--keep-going"]
    subprocess.run(build, check=True)


def sweep(arguments: argparse.Namespace) -> None:
    """A chapter over a grid of parameters."""
    from attractor_book.sweep import sweep

    given = {k: v for k, v in vars(arguments).items() if k not in ("run", "command", "parameter")}
    sweep(fixed=arguments.parameter, **given)


def results(arguments: argparse.Namespace) -> None:
    """The long runs that are not stored yet."""
    from attractor_book.sweep import long_runs

    long_runs(arguments.chapter, arguments.force, arguments.jobs)


def compare(arguments: argparse.Namespace) -> None:
    """Chapters executed elsewhere against the committed ones."""
    from attractor_book.compare import compare_all

    limits = arguments.exact, arguments.tolerance, arguments.allow
    compare_all(arguments.old, arguments.new, *limits)


def commit(arguments: argparse.Namespace) -> None:
    """Chapters executed in place, or only their first cells renewed."""
    import nbformat

    from attractor_book import executor as run
    from attractor_book.results import write_whole

    if arguments.alone == bool(arguments.chapters):
        raise ValueError("name chapters, or give --alone")
    named = [run.find_chapter(name) for name in arguments.chapters]  # all, before any is executed
    for chapter in named or run.chapters():
        if arguments.alone:
            notebook = nbformat.read(chapter, as_version=4)
            run.put_alone(notebook)
            write_whole(chapter, nbformat.writes(notebook) + "\n")
        else:
            run.commit(chapter)


def data(arguments: argparse.Namespace) -> None:
    """A data set fetched and checked."""
    from attractor_lib.data.__main__ import main

    root = ["--root", arguments.root] if arguments.root else []
    sys.argv[1:] = [arguments.name, *root]
    main()


def make_parser() -> argparse.ArgumentParser:
    """The command line, one subcommand for each function above."""
    parser = argparse.ArgumentParser(prog="attractor-book", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(run, description: str, examples: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            run.__name__,
            help=description.splitlines()[0],
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    sub = add(
        rerun,
        "run chapters again with other parameters; the committed notebooks are never touched",
        "  attractor-book rerun --list\n"
        "  attractor-book rerun 04 -p beta 10 -p device cuda\n"
        "  attractor-book rerun --all --output-dir _build/reproduce/notebooks",
    )
    sub.add_argument(
        "chapter", nargs="?", help="its number, or the beginning of its name, or a path"
    )
    _parameter(sub, "a parameter and its value, as YAML; repeat for more")
    sub.add_argument(
        "-o",
        "--output",
        type=Path,
        help="the executed notebook (default: _runs/CHAPTER-PARAMETERS.ipynb)",
    )
    sub.add_argument("--list", action="store_true", help="list chapters with their parameters")
    sub.add_argument("--all", action="store_true", help="run every chapter with its defaults")
    sub.add_argument("--output-dir", type=Path, help="where executed notebooks go (default: _runs)")
    sub.add_argument(
        "--book",
        type=Path,
        metavar="FOLDER",
        help="build the book from FOLDER/notebooks into FOLDER/book",
    )

    sub = add(
        sweep,
        "run a chapter over a grid of parameters, on all cores or on a Dask cluster\n\n"
        "The same command again goes on where it was: finished points are not repeated, failed\n"
        "ones are tried again. A point is run afresh if its parameters, the chapter's code or the\n"
        "library have changed. Table and figure are named after the grid. On several machines,\n"
        "start `dask scheduler` on one and `dask worker ADDRESS --nthreads 1 --nworkers auto` on\n"
        "each, and give --scheduler ADDRESS.",
        "  attractor-book sweep 04 --grid beta 1 5 10 --grid seed 0 1 2 -p epochs 1\n"
        '  attractor-book sweep 04 --grid beta 1 5 --where k 4 --show "error, all"',
    )
    sub.add_argument("chapter", help="its number, or the beginning of its name, or a path")
    sub.add_argument(
        "--grid",
        nargs="+",
        action="append",
        required=True,
        metavar=("NAME", "VALUE"),
        help="a parameter and its values, as YAML; repeat for more: every combination is run. "
        "The first is the figure's axis",
    )
    _parameter(sub, "a parameter that is the same at every point")
    _jobs(sub, "points at a time on this machine")
    sub.add_argument(
        "--scheduler", metavar="ADDRESS", help="of a Dask scheduler, tcp://127.0.0.1:8786"
    )
    sub.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where table, figure and points go (default: _runs/sweep-CHAPTER)",
    )
    sub.add_argument(
        "--where",
        nargs=2,
        action="append",
        default=[],
        metavar=("COLUMN", "VALUE"),
        help="draw only these rows of the table",
    )
    sub.add_argument(
        "--show", metavar="COLUMN", help="to draw (default: the first that is measured)"
    )

    sub = add(
        results,
        "run the long runs behind the chapters that are not stored yet",
        "  attractor-book results 10 --jobs 2\n  attractor-book results --force",
    )
    sub.add_argument(
        "chapter",
        nargs="?",
        default="",
        help="its number, or the beginning of its name, or its path (default: all that have runs)",
    )
    sub.add_argument("--force", action="store_true", help="run again what is there")
    _jobs(sub, "runs at a time, sharing the cores")

    sub = add(
        compare,
        "compare chapters executed elsewhere with the committed ones\n\n"
        "What must be the same: the code, every word of every output, row and column names, and\n"
        "so whether each statement is True. Numbers are compared within their column, on the\n"
        "scale of the largest there: in cells that the tests compare none may be off by more than\n"
        "--exact; in the others at most the share --allow by more than --tolerance, none by more\n"
        "than five times that.\n\n"
        "Not compared: times and where a run took place, what follows a plus-minus sign, standard\n"
        "deviations and errors, pictures.",
        "  attractor-book compare notebooks _build/reproduce/notebooks\n"
        "  attractor-book compare notebooks/04_masked_prediction.ipynb _runs/04.ipynb",
    )
    sub.add_argument("old", type=Path, help="a committed notebook, or the folder of them")
    sub.add_argument("new", type=Path, help="the same executed again, or a folder of some of them")
    for name, default, what in (
        ("--exact", 0.01, "for cells that the tests compare"),
        ("--tolerance", 0.1, "for what depends on a training"),
        ("--allow", 0.1, "share of those numbers that may be outside"),
    ):
        sub.add_argument(name, type=float, default=default, help=f"{what} (default: {default})")

    sub = add(
        commit,
        "execute chapters in place, for a commit",
        "  attractor-book commit 04 05\n"
        "  attractor-book commit --alone    only put the address of _config.yml into every chapter",
    )
    sub.add_argument("chapters", nargs="*", help="the beginnings of the names of those to execute")
    sub.add_argument(
        "--alone", action="store_true", help="execute nothing; renew their first cells"
    )

    sub = add(data, "fetch a data set and check it", "  attractor-book data MNIST")
    known = "MNIST, FashionMNIST, CIFAR10, CIFAR10-JPEG or tinyshakespeare (default: MNIST)"
    sub.add_argument("name", nargs="?", default="MNIST", help=known)
    sub.add_argument(
        "--root",
        help="where to look and to put it (default: $ATTRACTOR_DATA, else ~/.cache/attractor_lib)",
    )
    return parser


def _parameter(sub: argparse.ArgumentParser, help: str) -> None:
    sub.add_argument(
        "-p",
        "--parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help=help,
    )


def _jobs(sub: argparse.ArgumentParser, help: str) -> None:
    sub.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help=f"{help} (default: all %(default)s cores)"
    )


def main() -> None:
    """Run a command; errors of what was asked for are one line."""
    arguments = make_parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's time limit
    try:
        arguments.run(arguments)
    except ModuleNotFoundError as error:
        if (name := error.name or "").startswith("attractor"):
            raise
        extras = EXTRAS.get(name, "book")
        sys.exit(f"error: there is no {name}: python -m pip install 'attractor_lib[{extras}]'")
    except (ValueError, KeyError, RuntimeError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; what is finished is kept")
    except Exception as error:
        if not hasattr(error, "ename"):  # of a cell
            raise
        from attractor_book.executor import told_error

        sys.exit(f"error: {told_error(error)}")


if __name__ == "__main__":
    main()
