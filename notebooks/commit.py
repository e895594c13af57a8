"""Execute chapters in place, for a commit: outputs, the date, duration, device and versions, and how it runs when alone.

    python notebooks/commit.py 04 05       execute these two
    python notebooks/commit.py --alone     execute nothing; put the repository's address into the first cell of every chapter
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from rerun import CHAPTERS, HERE, ROOT, find_chapter, parameters_of, stamp
from tqdm import tqdm

from attractor_lib.results import write_whole

ALONE = '''\
try:
    import attractor_lib
except ImportError:  # alone, as on Colab: fetch the library and the stored results
    !git clone -q --depth 1 -b {branch} {url} {folder}
    %pip install -q -e {folder}
    import sys
    sys.path.insert(0, "{folder}")
'''


def alone() -> str:
    """The lines that begin every chapter, so that it runs without the repository around it."""
    repository = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]
    return ALONE.format(folder=repository["url"].rstrip("/").rsplit("/")[-1], **repository)


def put_alone(notebook) -> None:
    """Begin the first code cell of a notebook with these lines, in place of those that it has."""
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    own = re.sub(r"\Atry:\n    import attractor_lib\nexcept .*\n(    .*\n)+\n*", "", first.source)
    first.source = f"{alone()}\n{own}"
    if "hide-input" not in (tags := first.metadata.setdefault("tags", [])):
        tags.append("hide-input")  # imports, folded on the page


def execute(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    put_alone(notebook)
    began = time.perf_counter()
    with tqdm(total=sum(cell.cell_type == "code" for cell in notebook.cells), desc=path.stem, unit="cell") as bar:
        NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(HERE)}},
                       on_cell_complete=lambda **_: bar.update()).execute(stderr=subprocess.DEVNULL)
    run = stamp(notebook, parameters_of(path), {}, time.perf_counter() - began)
    write_whole(path, nbformat.writes(notebook) + "\n")
    print(f"== {path.stem}: {', '.join(f'{name} {value}' for name, value in run.items())}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python notebooks/commit.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chapters", nargs="*", help="the beginnings of the names of the chapters to execute, for example 04")
    parser.add_argument("--alone", action="store_true", help="only put the address of _config.yml into every chapter")
    arguments = parser.parse_args()
    if arguments.alone == bool(arguments.chapters):
        parser.error("name chapters, or give --alone")
    try:
        for chapter in CHAPTERS if arguments.alone else map(find_chapter, arguments.chapters):
            if arguments.alone:
                notebook = nbformat.read(chapter, as_version=4)
                put_alone(notebook)
                write_whole(chapter, nbformat.writes(notebook) + "\n")
            else:
                execute(chapter)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except CellExecutionError as error:
        sys.exit(f"error: {error.ename}: {error.evalue}; the notebook stays as it was")


if __name__ == "__main__":
    main()
