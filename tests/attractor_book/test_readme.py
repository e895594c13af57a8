"""The snippets of the README and of the page on the library run as written and print what is shown;
make targets exist.
"""

import re
from pathlib import Path

import picture
import pytest
import torch

import attractor_lib

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_the_picture_is_that_of_the_chapter():
    (shown,) = re.findall(r"!\[[^\]]{40,}\]\((.*)\)", README)
    assert (ROOT / shown).read_bytes() == picture.picture()


@pytest.mark.slow
def test_the_library_snippet_runs(monkeypatch):
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    whole, full = attractor_lib.load_images, attractor_lib.train
    monkeypatch.setattr(attractor_lib, "load_images", lambda *names: whole(*names)[:1000])
    monkeypatch.setattr(attractor_lib, "train", lambda *given: full(*given, report=None))
    names = {}
    exec(snippet, names)
    assert names["images"].shape == (8, 28, 28)
    assert names["trajectory"].states.shape == (21, 8, 16, 50)
    assert torch.isfinite(names["images"]).all()


@pytest.mark.slow
def test_the_snippets_of_the_library_page_run_in_order_and_print_what_is_shown(
    tmp_path, monkeypatch, capsys
):
    page = (ROOT / "book" / "library.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", page, re.DOTALL)
    assert len(snippets) >= 8
    monkeypatch.chdir(tmp_path)
    names = {}
    for snippet, shown in snippets:
        exec(snippet, names)
        assert capsys.readouterr().out == shown, snippet


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_every_make_target_that_it_names_exists(name):
    makefile = (ROOT / "Makefile").read_text()
    targets = set(
        re.findall(r"^make ([a-z]+)|`make ([a-z]+)", (ROOT / name).read_text(), re.MULTILINE)
    )
    assert targets
    for target in map("".join, targets):
        assert f"\n{target}:" in makefile
