"""The picture that answers a chapter's question stands below its title, wherever it is computed: a
notebook names it in its metadata, as ``picture``.
"""

import json

from docutils import nodes
from sphinx.errors import ExtensionError


def show_first(app, doctree) -> None:
    path = app.env.doc2path(app.env.docname)
    if not str(path).endswith(".ipynb"):
        return
    with open(path) as file:
        name = json.load(file)["metadata"].get("picture")
    if name is None:
        return
    figures = [f for f in doctree.findall(nodes.figure) if name in f["names"] + f["ids"]]
    if len(figures) != 1:
        raise ExtensionError(f"{path}: metadata name picture {name!r}, of {len(figures)} figures")
    (figure,) = figures
    first = next(doctree.findall(nodes.paragraph))
    figure.parent.remove(figure)
    shown = nodes.container("", figure, classes=["cell_output"])  # styled as where it came from
    first.parent.insert(first.parent.index(first) + 1, shown)


def setup(app) -> dict:
    app.connect("doctree-read", show_first)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
