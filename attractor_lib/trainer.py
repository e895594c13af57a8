"""One training loop for every model: a rule gives the gradients, a torch optimiser takes the step."""

import inspect
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten

import torch
from torch import Tensor, nn
from tqdm import tqdm

from attractor_lib.learning import Gradients

Rule = Callable[[nn.Module, Tensor, Tensor, Tensor], tuple[Tensor, Gradients]]


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how fast.

    epochs, batch_size: passes over the examples, and examples a step (a last incomplete batch is left out).
    learning_rate: of the first step; it falls to zero along a cosine.
    optimizer: a class of torch.optim.
    seed: of the order of the examples and of their corruption.
    coupling_norm: if given, every matrix J^h_ij (or U_i, V_j) is put back to this Frobenius norm after each step.
    frozen: names of parameters that are left as they are.
    """

    epochs: int = 10
    batch_size: int = 250
    learning_rate: float = 3e-3
    optimizer: str = "Adam"
    seed: int = 0
    coupling_norm: float | None = None
    frozen: tuple[str, ...] = ()

    def __post_init__(self):
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs and batch_size must be at least 1, got {self.epochs} and {self.batch_size}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be a finite number > 0, got {self.learning_rate}")
        if not isinstance(getattr(torch.optim, self.optimizer, None), type):
            raise ValueError(f"optimizer must name a class of torch.optim, got {self.optimizer!r}")


def select_device(name: str = "auto") -> torch.device:
    """torch.device(name); "auto" is CUDA where there is one, else the CPU. RuntimeError for CUDA that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"device {name!r} was asked for, but torch {torch.__version__} sees no CUDA device: "
                           "use 'cpu' or 'auto', or install a CUDA build of torch")
    return device


def make_optimizer(name: str, parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    """A class of torch.optim by its name, fused where it can be: one pass over memory for all the arithmetic of a step.

    A fused step takes parameter and gradient number by number as they lie in memory, so both must be contiguous.
    """
    kind, parameters = getattr(torch.optim, name), list(parameters)
    fused = "fused" in inspect.signature(kind).parameters and all(p.is_contiguous() for p in parameters)
    return kind(parameters, lr=learning_rate, **({"fused": True} if fused else {}))


def train(model: nn.Module, rule: Rule, tokens: Tensor, corrupt: Callable, config: TrainingConfig,
          checkpoint: str | os.PathLike | None = None, report: Callable[[str], None] | None = print) -> list[dict]:
    """Train `model` in place; returns one record an epoch: epoch, loss (mean over its steps), learning_rate, seconds.

    rule: ``prediction_rule``, ``backpropagation``, or any function (model, state, target, sites) -> (loss, gradients).
    tokens: clean examples (n, N, d), on the model's device.
    corrupt: (tokens, generator) -> (state, sites); see ``attractor_lib.corruption``.
    checkpoint: a file, written whole after each epoch. If it exists, training goes on from it and ends bit for bit
        where an uninterrupted run on the same machine would have. It must come from the same model, rule, corruption,
        number of examples and configuration.
    report: called with one line an epoch; None for silence. A terminal also gets a bar within the epoch.
    Raises ValueError for tokens of another shape, fewer examples than a batch, an unknown name in `frozen`, a rule that
    leaves out a parameter, or a checkpoint that is damaged or belongs to another configuration; FloatingPointError if the loss is no longer finite.
    """
    if tokens.ndim != 3:
        raise ValueError(f"tokens must have shape (n, N, d), got {tuple(tokens.shape)}; PatchEmbedding.encode makes them of images")
    steps = len(tokens) // config.batch_size
    if steps == 0:
        raise ValueError(f"tokens must hold at least one batch of {config.batch_size} examples, got {len(tokens)}")
    parameters = dict(model.named_parameters())
    if unknown := set(config.frozen) - set(parameters):
        raise ValueError(f"frozen must name parameters among {sorted(parameters)}, got {sorted(unknown)}")
    trained = {name: p for name, p in parameters.items() if name not in config.frozen}
    optimizer = make_optimizer(config.optimizer, trained.values(), config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs * steps)
    generator = torch.Generator(tokens.device).manual_seed(config.seed)
    run = {**asdict(config), "model": repr(model), "rule": _name(rule), "corruption": _name(corrupt), "examples": len(tokens)}
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    history = []
    if checkpoint is not None and Path(checkpoint).exists():
        history = _load(Path(checkpoint), run, parts, generator)
    while len(history) < config.epochs:
        began, total = time.perf_counter(), torch.zeros((), device=tokens.device)
        order = torch.randperm(len(tokens), generator=generator, device=tokens.device)[: steps * config.batch_size]
        for batch in tqdm(order.view(steps, -1), desc=f"epoch {len(history) + 1}", disable=None, leave=False):
            target = tokens[batch]
            state, sites = corrupt(target, generator)
            loss, gradients = rule(model, state, target, sites)
            if missing := set(trained) - set(gradients):
                raise ValueError(f"rule must return a gradient for every parameter that is trained; {sorted(missing)} are "
                                 "missing: name them in frozen to leave them as they are")
            for name, p in trained.items():
                p.grad = gradients[name].contiguous()
            optimizer.step()
            schedule.step()
            if config.coupling_norm is not None:
                _restore_norms(trained, config.coupling_norm)
            total += loss
        record = {"epoch": len(history) + 1, "loss": total.item() / steps, "learning_rate": schedule.get_last_lr()[0],
                  "seconds": time.perf_counter() - began}
        if not math.isfinite(record["loss"]):
            raise FloatingPointError(f"the loss is {record['loss']} in epoch {record['epoch']}: lower learning_rate "
                                     f"(now {config.learning_rate})")
        history.append(record)
        if checkpoint is not None:
            _save(Path(checkpoint), run, parts, generator, history)
        if report is not None:
            report(f"epoch {record['epoch']:3d}/{config.epochs}  loss {record['loss']:.5f}  {record['seconds']:.1f} s")
    optimizer.zero_grad(set_to_none=True)
    return history


@torch.no_grad()
def _restore_norms(parameters: dict[str, Tensor], norm: float) -> None:
    for name, p in parameters.items():
        if name != "bias":
            p *= norm / p.norm(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)


def _name(function: Callable) -> str:
    return getattr(function, "__name__", None) or repr(function)


def _save(path: Path, run: dict, parts: dict, generator: torch.Generator, history: list[dict]) -> None:
    """Write aside, then rename: a run killed meanwhile, or a full disk, leaves the previous checkpoint whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        torch.save({"run": run, "generator": generator.get_state(), "history": history,
                    "parts": {name: part.state_dict() for name, part in parts.items()}}, partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        raise OSError(f"the checkpoint {path} could not be written, the previous one stands: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _load(path: Path, run: dict, parts: dict, generator: torch.Generator) -> list[dict]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        there = saved["run"]
    except Exception as error:
        raise ValueError(f"{path} is not a readable checkpoint ({error!r}); remove it to start afresh") from error
    differing = [f"{key}: {shorten(repr(there.get(key)), 100)} there, {shorten(repr(run[key]), 100)} here"
                 for key in run if there.get(key) != run[key]]
    if differing:
        raise ValueError(f"{path} belongs to another run ({'; '.join(differing)}); use another file or remove it")
    for name, part in parts.items():
        part.load_state_dict(saved["parts"][name])
    generator.set_state(saved["generator"])
    return saved["history"]
