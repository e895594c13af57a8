"""One training over several processes: each takes its slice of every batch, all take one step.

All hold the same model and all examples, and draw the order and the corruption of the whole batch
from the same generator, so that neither depends on how many they are. Each applies the rule to its
slice S_p of the batch B, and one sum over processes, of the loss and all gradients at once, gives
those of the batch::

    dL/dw = sum_p |S_p| / |B|  dL_p/dw

for a rule that is a mean over examples. So every process takes the same step of the optimiser, and
no parameter is ever sent. ``torchrun`` starts the processes, or a script makes a process group of
torch.distributed itself; with neither there is one process, and nothing is done here.
"""

import atexit
import math
import re
from collections.abc import Callable
from datetime import timedelta
from hashlib import sha256

import torch
import torch.distributed as dist
from torch import Tensor, nn

from attractor_lib.checkpoint import name_of, state_of
from attractor_lib.learning import Gradients

TIMEOUT = timedelta(minutes=10)  # one that is silent for so long counts as lost


class Processes:
    """Those that train a model together. Started by torchrun, they find each other here.

    CPUs speak by gloo, CUDA devices by nccl.

    Args:
        training: what they are at, and how it goes on: the end of the error if one is lost.

    Attributes:
        count: how many they are.
        rank: which of them this is, from 0.
        first: whether it is the one that reports and writes files.
    """

    def __init__(self, training: str = "a training"):
        several = dist.is_available() and (dist.is_initialized() or dist.is_torchelastic_launched())
        if several and not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=TIMEOUT)
            atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
        self.count, self.rank = (dist.get_world_size(), dist.get_rank()) if several else (1, 0)
        self.first, self.training = self.rank == 0, training

    def averaged(self, rule: Callable, batch_size: int) -> Callable:
        """The rule at a whole batch, each process at its slice; for one process, the rule itself.

        The first batch is also done whole by every process: it must be the same in all, and its
        gradients those of the slices, to the root of the precision.

        Raises:
            ValueError: for fewer examples than processes, or a rule that carries a state from step
                to step; and at the first batch, if that is not so.
        """
        if self.count == 1:
            return rule
        if batch_size < self.count:
            expected = f"batch_size must be at least the number of processes, {self.count}"
            raise ValueError(f"{expected}, got {batch_size}")
        got = f"{name_of(rule)} for {self.count} processes: train with one"
        if _carried(state_of(rule)):
            raise ValueError(f"rule must carry no state from step to step, got {got}")
        checked = False

        @torch.no_grad()
        def vector(loss: Tensor, gradients: Gradients) -> Tensor:
            return torch.cat([*(g.flatten() for g in gradients.values()), loss.reshape(1)])

        def of_batch(
            model: nn.Module, state: Tensor, target: Tensor, sites: Tensor
        ) -> tuple[Tensor, Gradients]:
            nonlocal checked
            batch = state, target, sites.expand(state.shape[:2])
            mine = [part.tensor_split(self.count)[self.rank] for part in batch]
            loss, gradients = rule(model, *mine)
            mean = vector(loss, gradients) * (len(mine[0]) / len(state))
            self._exchange(dist.all_reduce, mean)
            if not checked:
                self.check_same("batch", *batch)
                whole = vector(*rule(model, *batch))
                off, size = (v[:-1].norm().item() for v in (mean - whole, whole))
                if off > math.sqrt(torch.finfo(mean.dtype).eps) * size:
                    expected = "rule must be a mean over examples"
                    raise ValueError(f"{expected}, off by {off / size:.1g} over slices, got {got}")
                checked = True
            parts = mean.split([*(g.numel() for g in gradients.values()), 1])
            return mean[-1], {name: p.view_as(gradients[name]) for name, p in zip(gradients, parts)}

        return of_batch

    def check_same(self, what: str, *parts) -> None:
        """Wait for all processes, and compare what they hold: tensors, or what describes itself.

        Raises:
            ValueError: if it is not the same in all.
        """
        if self.count == 1:
            return
        mine, of_all = sha256(), [""] * self.count
        for part in parts:
            if isinstance(part, Tensor):
                mine.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy())
            else:
                mine.update(re.sub(r"\bat 0x[0-9a-fA-F]+", "", repr(part)).encode())
        self._exchange(dist.all_gather_object, of_all, mine.hexdigest())
        if others := [str(rank) for rank, its in enumerate(of_all) if its != of_all[0]]:
            raise ValueError(
                f"the {what} must be the same in all {self.count} processes, got another in "
                f"{', '.join(others)} than in 0"
            )

    def _exchange(self, collective: Callable, *given) -> None:
        try:
            collective(*given)
        except RuntimeError as error:
            raise ConnectionError(
                f"process {self.rank} of {self.count} has lost the others "
                f"({str(error).split('. ')[0].split('] ', 1)[-1]}) in {self.training}"
            ) from error


def _carried(state) -> bool:
    return any(map(_carried, state.values())) if isinstance(state, dict) else state is not None
