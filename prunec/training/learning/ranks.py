"""One process, or several that train one network together: how they divide the work and stay equal.

Owns everything that a data-parallel run needs beyond a run on one device. Processes are started by torchrun (or
any launcher that sets RANK and WORLD_SIZE) and connected by Hugging Face Accelerate, which is only imported then.
Only rank 0 writes and prints. batches.py owns the order of the images and each rank's share of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from prunec.errors import MissingDependency, PrunecError

T = TypeVar("T")


class Ranks(Protocol):
    """The processes of a run. Every rank must make the same calls in the same order.

    Args:
        rank: this process, from 0.
        size: how many there are.
        device: where this process trains; None: the run chooses.
    """

    rank: int
    size: int
    device: torch.device | None

    def parallel(self, module: nn.Module, has_unused: bool) -> nn.Module:
        """Return ``module``, wrapped so that a backward pass gives the mean gradient over the ranks.

        Args:
            has_unused: some parameters get no gradient.
        """

    def agree(self, work: Callable[[], T]) -> T:
        """Let every rank do ``work``; if one of them fails, all raise."""

    def on_main(self, work: Callable[[], T]) -> T:
        """Let rank 0 do ``work``; all ranks return its result, or raise its error."""

    def copy_state(self, module: nn.Module) -> None:
        """Give all ranks the parameters and buffers of rank 0."""

    def add(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum of ``value`` over the ranks."""

    def gather(self, value: T) -> list[T]:
        """Return the plain data of every rank, in the order of the ranks."""


class Alone:
    """The only process."""

    rank = 0
    size = 1
    device: torch.device | None = None

    def parallel(self, module: nn.Module, has_unused: bool) -> nn.Module:  # noqa: ARG002 - as in Ranks
        return module

    def agree(self, work: Callable[[], T]) -> T:
        return work()

    def on_main(self, work: Callable[[], T]) -> T:
        return work()

    def copy_state(self, module: nn.Module) -> None:
        pass

    def add(self, value: torch.Tensor) -> torch.Tensor:
        return value

    def gather(self, value: T) -> list[T]:
        return [value]


class Together:
    """Several processes, joined by Accelerate: NCCL between GPUs, gloo between CPUs."""

    def __init__(self, on_cpu: bool) -> None:
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise MissingDependency(
                "a run of several processes needs accelerate", do="pip install 'prunec[distributed]'"
            ) from error
        self._accelerator = Accelerator(cpu=on_cpu)
        self.rank = int(self._accelerator.process_index)
        self.size = int(self._accelerator.num_processes)
        self.device: torch.device | None = self._accelerator.device

    def parallel(self, module: nn.Module, has_unused: bool) -> nn.Module:
        from accelerate.utils import DistributedDataParallelKwargs

        # Buffers (BatchNorm statistics) are rank 0's at the start of each step: each rank normalises its own share
        # of the batch, and the running statistics are those of one rank, as everywhere in data-parallel training.
        self._accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=has_unused)
        prepared: nn.Module = self._accelerator.prepare_model(module, device_placement=False)
        return prepared

    def agree(self, work: Callable[[], T]) -> T:
        result: list[T] = []
        failure: Exception | None = None
        try:
            result.append(work())
        except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks must not wait for this one
            failure = error
        failures = [error for error in self.gather(_sendable(failure)) if error is not None]
        if failure is not None:
            raise failure
        if failures:
            raise failures[0]
        return result[0]

    def on_main(self, work: Callable[[], T]) -> T:
        from accelerate.utils import broadcast_object_list

        told: list[Any] = [None, None]
        failure: Exception | None = None
        if self.rank == 0:
            try:
                told[0] = work()
            except Exception as error:  # noqa: BLE001 - the other ranks must not wait for ever
                failure = error
                told[1] = _sendable(error)
        broadcast_object_list(told)
        if failure is not None:
            raise failure
        if told[1] is not None:
            raise told[1]
        result: T = told[0]
        return result

    @torch.no_grad()
    def copy_state(self, module: nn.Module) -> None:
        from accelerate.utils import broadcast

        for tensor in (*module.parameters(), *module.buffers()):
            tensor.copy_(broadcast(tensor.detach().contiguous()))

    def add(self, value: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = self._accelerator.reduce(value.clone(), reduction="sum")
        return total

    def gather(self, value: T) -> list[T]:
        from accelerate.utils import gather_object

        gathered: list[T] = gather_object([value])
        return gathered


def _sendable(error: Exception | None) -> Exception | None:
    """Return an error that can be sent to other ranks: prunec's own as they are, others as a sentence."""
    if error is None or isinstance(error, PrunecError):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Connect the processes that torchrun started; a single process stays alone.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        MissingDependency: there are several, and Accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Alone()
        return
    was_joined = torch.distributed.is_initialized()
    yield Together(on_cpu=device == "cpu" or not torch.cuda.is_available())
    # Not after an error: the others may be waiting in a collective that this process will never enter.
    if not was_joined:
        torch.distributed.destroy_process_group()
