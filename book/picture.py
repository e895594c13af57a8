"""The picture of the README, as chapter 6 has it.

python book/picture.py        writes _static/transient.png
"""

import base64
from pathlib import Path

import nbformat

BOOK = Path(__file__).parent
NAME = "fig-strips"


def picture() -> bytes:
    """The PNG of that figure, from the committed notebook."""
    notebook = nbformat.read(BOOK.parent / "notebooks" / "06_transient_memories.ipynb", 4)
    (cell,) = (
        cell
        for cell in notebook.cells
        if cell.metadata.get("mystnb", {}).get("figure", {}).get("name") == NAME
    )
    (image,) = (o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {}))
    return base64.b64decode(image)


if __name__ == "__main__":
    (BOOK / "_static" / "transient.png").write_bytes(picture())
