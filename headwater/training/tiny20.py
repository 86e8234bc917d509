"""Training of the bundled network: ``headwater train tiny20``.

The recipe is written for two CPU cores and an hour and a half: images come small first and full size for the last
epochs, a one-cycle schedule, and augmentation in scale, colour and sharpness so that the network holds on
photographs that were not made the way the training images were. Every random choice is a function of the seed,
the epoch and the image (or the step), so a killed run that is resumed ends in the same weights.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import save
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms import v2

from headwater.data.tiny20 import ImageSet, load_tiny20
from headwater.files import claim, write_bytes, write_text
from headwater.models.tiny20 import CLASSES, MEAN, STD, Tiny20
from headwater.training.loading import EpochOrder, PlainProgress, WholeCheckpoints, well_behaved


@dataclass(frozen=True)
class Recipe:
    """Every number that shapes the weights."""

    seed: int = 0
    epochs: int = 48
    small_size: int = 48
    full_size: int = 64
    full_size_epochs: int = 14
    batch_size: int = 64
    max_lr: float = 2e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    crop_scale: tuple[float, float] = (0.4, 1.0)
    jitter: float = 0.3
    grayscale: float = 0.1
    widths: tuple[int, ...] = (16, 64, 128, 256)
    depths: tuple[int, ...] = (1, 2, 3, 2)

    def size(self, epoch: int) -> int:
        """Side of the training images in this epoch, in pixels."""
        return self.full_size if epoch >= self.epochs - self.full_size_epochs else self.small_size


@dataclass(frozen=True)
class TrainedModel:
    """Result of a finished training: the exported weights and their accuracy on the validation images."""

    weights: Path
    accuracy: float
    accuracy_per_class: dict[str, float] = field(repr=False)


class AugmentedImages(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Training images, augmented; an item is addressed by ``(epoch, index)`` and depends on nothing else."""

    def __init__(self, data: ImageSet, recipe: Recipe) -> None:
        self.data, self.recipe = data, recipe
        self.transforms = {size: self._transform(size) for size in (recipe.small_size, recipe.full_size)}

    def _transform(self, size: int) -> v2.Compose:
        jitter = self.recipe.jitter
        return v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=self.recipe.crop_scale, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.GaussianBlur(3, (0.1, 1.0))], 0.1),
                v2.RandomAdjustSharpness(2.0, 0.1),
                v2.ColorJitter(jitter, jitter, jitter),
                v2.RandomGrayscale(self.recipe.grayscale),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, index = key
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.recipe.seed * 10_007 + epoch) * 1_000_003 + index)
            return self.transforms[self.recipe.size(epoch)](self.data.images[index]), self.data.labels[index]

    def __len__(self) -> int:
        return len(self.data.labels)


class Tiny20Training(lightning.LightningModule):
    """Cross-entropy training with label smoothing and a one-cycle AdamW schedule; validated by top-1 accuracy."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.network = Tiny20(recipe.widths, recipe.depths).to(memory_format=torch.channels_last)
        self.loss = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_index: int) -> torch.Tensor:
        images, labels = batch
        loss = self.loss(self.network(images.to(memory_format=torch.channels_last)), labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_index: int) -> None:
        images, labels = batch
        logits = self.network(images)
        self.log("val_loss", nn.functional.cross_entropy(logits, labels))
        self.log("val_accuracy", (logits.argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        recipe = self.recipe
        decayed = [p for p in self.parameters() if p.ndim > 1]
        plain = [p for p in self.parameters() if p.ndim <= 1]
        optimizer = torch.optim.AdamW(  # measured: three epochs reach 64 %, those of SGD with momentum 55 %
            [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=recipe.max_lr,
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, recipe.max_lr, total_steps=math.ceil(self.trainer.estimated_stepping_batches), pct_start=0.15
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@well_behaved()
def train_tiny20(
    data: str | Path, out: str | Path, recipe: Recipe | None = None, progress_bar: bool = False
) -> TrainedModel:
    """Train the bundled network on the tiny20 images below ``data``; resume if ``out`` holds an unfinished run.

    Writes ``recipe.json``, checkpoints and logs, and at the end ``tiny20.safetensors`` (half precision, the epoch
    of best validation accuracy) and ``accuracy.json``.

    Raises:
        DataError: the data are incomplete, or ``out`` holds a run of a different recipe.
    """
    recipe, out = recipe or Recipe(), Path(out)
    claim(out, asdict(recipe), "recipe.json")
    train, val = load_tiny20(data, "train"), load_tiny20(data, "val")
    order = EpochOrder(len(train.labels), recipe.seed)
    train_loader = DataLoader(AugmentedImages(train, recipe), recipe.batch_size, sampler=order, drop_last=True)
    val_loader = DataLoader(TensorDataset(normalise(val.images), val.labels), batch_size=250)

    module = Tiny20Training(recipe)
    checkpoints = out / "checkpoints"
    best = ModelCheckpoint(
        checkpoints, "best", monitor="val_accuracy", mode="max", save_last=True, enable_version_counter=False
    )
    trainer = lightning.Trainer(
        max_epochs=recipe.epochs,
        accelerator="auto",
        devices=1,
        deterministic=True,
        logger=CSVLogger(out, name="logs"),  # a folder per start: a resumed run keeps its earlier logs
        plugins=[WholeCheckpoints()],
        callbacks=[best, TQDMProgressBar() if progress_bar else PlainProgress()],
        enable_progress_bar=progress_bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    last = checkpoints / "last.ckpt"
    trainer.fit(module, train_loader, val_loader, ckpt_path=last if last.is_file() else None, weights_only=True)

    state = torch.load(best.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
    weights = {
        name.removeprefix("network."): tensor.half().contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    write_bytes(out / "tiny20.safetensors", save(weights))
    network = Tiny20(recipe.widths, recipe.depths)
    network.load_state_dict(weights)
    accuracy, per_class = evaluate(network, val)
    write_text(out / "accuracy.json", json.dumps({"accuracy": accuracy, "per_class": per_class}, indent=1))
    return TrainedModel(out / "tiny20.safetensors", accuracy, per_class)


@torch.no_grad()
def evaluate(network: nn.Module, data: ImageSet) -> tuple[float, dict[str, float]]:
    """Top-1 accuracy over all images, and by class name."""
    network.eval()
    predicted = torch.cat([network(chunk).argmax(1) for chunk in normalise(data.images).split(250)])
    right = (predicted == data.labels).float()
    per_class = {name: right[data.labels == index].mean().item() for index, name in enumerate(CLASSES)}
    return right.mean().item(), per_class


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Images uint8 ``(N, 3, H, W)`` as the network takes them."""
    return v2.functional.normalize(images.float() / 255, list(MEAN), list(STD))
