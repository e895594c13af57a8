"""One loop for every model: a rule gives the gradients, a torch optimiser takes the step."""

import inspect
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from attractor_lib.checkpoint import Checkpoint, lasting_name, name_of, sketch
from attractor_lib.checks import check_number, check_whole
from attractor_lib.learning import Gradients
from attractor_lib.processes import Processes

Rule = Callable[[nn.Module, Tensor, Tensor, Tensor], tuple[Tensor, Gradients]]
Observer = Callable[[nn.Module, int], dict[str, float] | None]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long and how fast.

    Args:
        epochs: passes over the examples.
        batch_size: examples a step; a last incomplete batch is left out.
        learning_rate: the largest; it falls to zero along a cosine.
        warmup: the share of the steps, at the start, in which it rises linearly; none if 0.
        optimizer: a class of torch.optim whose step needs no closure.
        weight_decay: of the optimizer, for parameters of at least two axes; none if 0.
        seed: of the order of the examples and of their corruption.
        coupling_norm: if given, every matrix J^h_ij (or U_i, V_j; or F_f, G_f and the weights u_i,
            v_j) is put back to this Frobenius norm after each step.
        frozen: names of parameters that are left as they are.

    Raises:
        ValueError: for a number out of range, an unknown optimizer, or frozen that is no tuple.
    """

    epochs: int = 10
    batch_size: int = 250
    learning_rate: float = 3e-3
    warmup: float = 0.0
    optimizer: str = "Adam"
    weight_decay: float = 0.0
    seed: int = 0
    coupling_norm: float | None = None
    frozen: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("epochs", "batch_size"):
            check_whole(name, getattr(self, name), 1)
        check_number("learning_rate", self.learning_rate, 0, open_low=True)
        if not _is_optimizer(self.optimizer):
            got = repr(self.optimizer)
            raise ValueError(f"optimizer must name a class of torch.optim but LBFGS, got {got}")
        for name in ("warmup", "weight_decay"):
            check_number(name, getattr(self, name), 0)
        if self.warmup >= 1:
            raise ValueError(f"warmup must be a share of the steps below 1, got {self.warmup}")
        if self.coupling_norm is not None:
            check_number("coupling_norm", self.coupling_norm, 0, open_low=True)
        if not isinstance(self.frozen, tuple):
            raise ValueError(f"frozen must be a tuple of names, got {self.frozen!r}")


def _is_optimizer(name: str) -> bool:
    kind, base = getattr(torch.optim, str(name), None), torch.optim.Optimizer
    known = isinstance(kind, type) and issubclass(kind, base)
    return known and kind not in (base, torch.optim.LBFGS)


def select_device(name: str = "auto") -> torch.device:
    """torch.device(name), where "auto" is CUDA if there is one, else the CPU.

    CUDA without a number is, for a process that torchrun started, the device of its LOCAL_RANK,
    which becomes its current one.

    Raises:
        RuntimeError: for CUDA that is not there, or fewer devices than processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            f"device {name!r} was asked for, but torch {torch.__version__} sees no CUDA device: "
            "use 'cpu' or 'auto', or install a CUDA build of torch"
        )
    if device == torch.device("cuda") and (rank := os.environ.get("LOCAL_RANK")):
        if int(rank) >= (count := torch.cuda.device_count()):
            raise RuntimeError(
                f"each process on a machine must have a CUDA device of its own, got {count} for "
                f"process {rank}, counted from 0"
            )
        device = torch.device("cuda", int(rank))
        torch.cuda.set_device(device)
    return device


def make_optimizer(
    name: str, parameters: Iterable[Tensor], learning_rate: float, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """A class of torch.optim, fused where it can be: a step in one pass over memory.

    A fused step takes parameter and gradient number by number as they lie in memory, so both must
    be contiguous. Weights of layer norms and biases, which have one axis, are not decayed.
    """
    kind, parameters = getattr(torch.optim, name), list(parameters)
    takes = inspect.signature(kind).parameters
    fused = "fused" in takes and all(p.is_contiguous() for p in parameters)
    given = {"lr": learning_rate, **({"fused": True} if fused else {})}
    if not weight_decay:  # torch's own default is not zero for each
        return kind(
            parameters, **given, **({"weight_decay": 0.0} if "weight_decay" in takes else {})
        )
    if "weight_decay" not in takes:
        raise ValueError(f"weight_decay must be 0 for {name}, which has none, got {weight_decay}")
    decayed, others = (
        {"params": [p for p in parameters if (p.ndim > 1) == many], "weight_decay": decay}
        for many, decay in ((True, weight_decay), (False, 0.0))
    )
    return kind([decayed, others], **given)


def make_schedule(optimizer: torch.optim.Optimizer, n_steps: int, warmup: float = 0.0):
    """The learning rate of each step: it rises over a share of the steps, then falls to zero along
    a cosine.
    """
    schedules = torch.optim.lr_scheduler
    rising = min(round(warmup * n_steps), n_steps - 1)
    if not rising:
        return schedules.CosineAnnealingLR(optimizer, n_steps)
    parts = [
        schedules.LinearLR(optimizer, 1 / rising, 1.0, rising),
        schedules.CosineAnnealingLR(optimizer, n_steps - rising),
    ]
    return schedules.SequentialLR(optimizer, parts, [rising])


def train(
    model: nn.Module,
    rule: Rule,
    tokens: Tensor,
    corrupt: Callable,
    config: TrainingConfig,
    checkpoint: str | os.PathLike | None = None,
    report: Callable[[str], None] | None = print,
    observe: Observer | None = None,
) -> list[dict]:
    """Train `model` in place, a step of the optimiser for each batch.

    Called in each of several processes (see ``attractor_lib.processes``), they train it together,
    which changes nothing beyond rounding, and the first alone reports, observes and writes.

    Args:
        model: whatever the rule knows to handle.
        rule: ``prediction_rule``, ``backpropagation``, or any function (model, state, target,
            sites) -> (loss, gradients), the gradients by the names of the model's parameters.
        tokens: clean examples (n, N, d), on the model's device; or letters (n, T), whole numbers.
        corrupt: (tokens, generator) -> (state, sites); see ``attractor_lib.corruption``.
        config: how long and how fast.
        checkpoint: a file, written whole after each epoch. If it exists, training goes on from it
            and ends bit for bit where an uninterrupted run on the same machine would have (by as
            many processes, else to rounding; all must see the file). It must come from the same
            model, rule, corruption, examples and configuration. A rule or a corruption
            that carries something from step to step has it saved too, by a ``state_dict`` and a
            ``load_state_dict`` as a torch module's: both or neither.
        report: called with one line an epoch; None for silence. A terminal also gets a bar within
            the epoch.
        observe: called with (model, step) before the first step and after each, `step` being the
            number of steps taken. The numbers that it returns by name are kept; None keeps nothing.

    Returns:
        One record an epoch, of epoch, loss (mean over its steps), learning_rate (that it ends at,
        of the step to come) and seconds; and with `observe` of observed, a list of
        {"step": step, and the numbers by name}.

    Raises:
        ValueError: for tokens of another shape, fewer examples than a batch, an unknown name in
            `frozen` or all names there are, a `coupling_norm` for a model without couplings, a rule
            that leaves out a parameter, a checkpoint that is damaged or belongs to another
            configuration, a weight decay that the optimizer does not know, or a checkpoint together
            with a rule or a corruption that has no lasting name, or only one of ``state_dict`` and
            ``load_state_dict``. Over several processes, for what they do not all hold alike, and a
            rule that cannot be applied in slices.
        FloatingPointError: if the loss is no longer finite.
        ConnectionError: if another process has died, or has been silent for ten minutes.
    """
    steps = _steps_per_epoch(tokens, config)
    again = f"goes on from {checkpoint}" if checkpoint else "starts afresh, without a checkpoint"
    processes = Processes(
        f"the training of {type(model).__name__} by {name_of(rule)}: started again, by any number "
        f"of processes, it {again}"
    )
    rule_of_batch = processes.averaged(rule, config.batch_size)
    trained = _trained(model, config)
    optimizer = make_optimizer(
        config.optimizer, trained.values(), config.learning_rate, config.weight_decay
    )
    schedule = make_schedule(optimizer, config.epochs * steps, config.warmup)
    generator = torch.Generator(tokens.device).manual_seed(config.seed)
    history = []
    if checkpoint is not None:
        run = {"rule": lasting_name(rule, "rule"), "corruption": lasting_name(corrupt, "corrupt")}
        run |= {**asdict(config), "model": repr(model), "examples": len(tokens)}
        run |= {"some of them": sketch(tokens[:: max(1, len(tokens) // 100)])}
        parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
        parts |= {"rule": rule, "corruption": corrupt, "generator": generator}
        saved = Checkpoint(Path(checkpoint), run, parts)
        history = saved.load()
    processes.check_same("model", model, *model.state_dict().values())
    processes.check_same("configuration, examples and checkpoint", config, len(tokens), history)

    def take_step(batch: Tensor) -> Tensor:
        target = tokens[batch]
        state, sites = corrupt(target, generator)
        loss, gradients = rule_of_batch(model, state, target, sites)
        _put_gradients(trained, gradients)
        optimizer.step()
        schedule.step()
        if config.coupling_norm is not None:
            _restore_norms(trained, config.coupling_norm)
        return loss

    def note(step: int) -> list[dict]:
        seen = observe(model, step) if observe and processes.first else None
        if not seen:
            return []
        return [{"step": step, **{name: float(value) for name, value in seen.items()}}]

    while len(history) < config.epochs:
        began, epoch, done = time.perf_counter(), len(history) + 1, len(history) * steps
        total = torch.zeros((), device=tokens.device)
        observed = [] if done else note(0)
        order = torch.randperm(len(tokens), generator=generator, device=tokens.device)
        batches = order[: steps * config.batch_size].view(steps, -1)
        no_bar = None if processes.first else True  # None: where there is no terminal
        bar = tqdm(batches, desc=f"epoch {epoch}", disable=no_bar, leave=False)
        for step, batch in enumerate(bar, done + 1):
            total += take_step(batch)
            observed += note(step)
        loss, rate = total.item() / steps, schedule.get_last_lr()[0]
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} in epoch {epoch}: lower learning_rate "
                f"(now {config.learning_rate})"
            )
        seconds = time.perf_counter() - began
        record = {"epoch": epoch, "loss": loss, "learning_rate": rate, "seconds": seconds}
        history.append(record | ({"observed": observed} if observe else {}))
        processes.check_same("model", model, *model.state_dict().values())
        if checkpoint is not None and processes.first:
            saved.save(history)
        if report is not None and processes.first:
            report(f"epoch {epoch:3d}/{config.epochs}  loss {loss:.5f}  {seconds:.1f} s")
    optimizer.zero_grad(set_to_none=True)
    processes.check_same("history")  # none goes on before the checkpoint is written
    return history


def _steps_per_epoch(tokens: Tensor, config: TrainingConfig) -> int:
    if tokens.ndim != 3 and (tokens.ndim != 2 or tokens.is_floating_point()):
        raise ValueError(
            f"tokens must have shape (n, N, d), or be whole numbers (n, T), got {tokens.dtype} of "
            f"shape {tuple(tokens.shape)}; PatchEmbedding.encode makes them of images"
        )
    if len(tokens) < config.batch_size:
        raise ValueError(
            f"tokens must hold at least one batch of {config.batch_size} examples, "
            f"got {len(tokens)}"
        )
    return len(tokens) // config.batch_size


def _trained(model: nn.Module, config: TrainingConfig) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    if unknown := set(config.frozen) - set(parameters):
        known = sorted(parameters)
        raise ValueError(f"frozen must name parameters among {known}, got {sorted(unknown)}")
    if config.coupling_norm is not None and not any(map(_is_coupling, parameters)):
        raise ValueError(
            f"coupling_norm is for a model with couplings, got parameters {sorted(parameters)}"
        )
    trained = {name: p for name, p in parameters.items() if name not in config.frozen}
    if not trained:
        raise ValueError(f"frozen leaves nothing to train, got all of {sorted(parameters)}")
    return trained


def _put_gradients(trained: dict[str, Tensor], gradients: Gradients) -> None:
    if missing := set(trained) - set(gradients):
        raise ValueError(
            f"rule must return a gradient for every parameter that is trained; {sorted(missing)} "
            "are missing: name them in frozen to leave them as they are"
        )
    for name, p in trained.items():
        p.grad = gradients[name].contiguous()


def _is_coupling(name: str) -> bool:
    return name.startswith("couplings.")


@torch.no_grad()
def _restore_norms(trained: dict[str, Tensor], norm: float) -> None:
    for p in (p for name, p in trained.items() if _is_coupling(name)):
        p *= norm / p.norm(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)
