"""The README's snippet runs as written, on a small part of the data."""

import re
from pathlib import Path

import torch

import attractor_lib.data
import attractor_lib.trainer

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def test_the_library_snippet_runs(monkeypatch):
    snippet, = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    whole, full = attractor_lib.data.load_images, attractor_lib.trainer.train
    monkeypatch.setattr(attractor_lib.data, "load_images", lambda *names: whole(*names)[:1000])
    monkeypatch.setattr(attractor_lib.trainer, "train", lambda *given: full(*given, report=None))
    names = {}
    exec(snippet, names)
    assert names["images"].shape == (8, 28, 28) and names["trajectory"].states.shape == (21, 8, 16, 50)
    assert torch.isfinite(names["images"]).all()


def test_every_make_target_that_it_names_exists():
    makefile = (Path(__file__).resolve().parents[1] / "Makefile").read_text()
    for target in set(re.findall(r"^make (\w+)", README, re.MULTILINE)):
        assert f"\n{target}:" in makefile
