"""Shared by all trainings: an order that depends on seed and epoch alone, progress, and whole checkpoints."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from torch.utils.data import Sampler

from headwater.files import write_bytes


class EpochOrder(Sampler[tuple[int, int]]):
    """Every image once, shuffled, as ``(epoch, index)``; Lightning announces the epoch through ``set_epoch``.

    With several processes each takes its share of the same order.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(self.seed * 10_007 + self.epoch)
        order = torch.randperm(self.count, generator=generator).tolist()
        rank, processes = _place()
        for index in order[rank : len(self) * processes : processes]:
            yield self.epoch, index

    def __len__(self) -> int:
        return self.count // _place()[1]


def _place() -> tuple[int, int]:
    """Rank of this process, and number of processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class PlainProgress(Callback):
    """One line per epoch, for logs and pipes."""

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        metrics = {name: round(value.item(), 4) for name, value in trainer.callback_metrics.items()}
        print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs} {metrics}", flush=True)


@contextmanager
def well_behaved() -> Iterator[None]:
    """Restore the settings of the process that Lightning changes, and silence its advertising and deprecations.

    Its deterministic mode is one of the whole process, in which some operations refuse to run.
    """
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    before = logger.level
    logger.setLevel(logging.WARNING)
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, exact = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*(LeafSpec|does not have many workers|exists and is not empty).*"
            )
            yield
    finally:
        logger.setLevel(before)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, exact


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints written under a temporary name: if the disk is full, the previous one is kept."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        stream = io.BytesIO()
        torch.save(checkpoint, stream)
        write_bytes(path, stream.getvalue())
