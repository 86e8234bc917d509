"""Training of the papers' classifiers: ``headwater train cub-resnet50`` and ``cub-abn``.

Every random choice is a function of the seed, the epoch and the image, and a checkpoint is left after every epoch: a
killed run that is started again ends in the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from headwater.data.labelled import LabelledImage, load_labelled
from headwater.data.preprocessing import Preprocessing
from headwater.errors import CheckpointError, DataError, InputError
from headwater.files import claim, write_bytes, write_text
from headwater.models.abn import AttentionBranchNetwork
from headwater.models.card import card_of
from headwater.models.registry import RUN_CARD, RUN_WEIGHTS, architecture, load_model
from headwater.models.weights import RANDOM
from headwater.training.loading import EpochOrder, PlainProgress, WholeCheckpoints, well_behaved
from headwater.training.recipes import Recipe, split_images

_STRIDE = 32  # pixels of the image to a pixel of a ResNet's last features


@dataclass(frozen=True)
class TrainedClassifier:
    """Result of a finished training.

    Attributes:
        folder: the run folder, which :func:`headwater.load_model` takes.
        accuracy: fraction of the test images that are predicted right, in [0, 1].
        epochs: number of epochs trained.
    """

    folder: Path
    accuracy: float
    epochs: int


class TrainingImages(Dataset[tuple[Tensor, int]]):
    """Training images, augmented; an item is addressed by ``(epoch, index)`` and depends on nothing else."""

    def __init__(self, images: Sequence[LabelledImage], recipe: Recipe, preprocessing: Preprocessing) -> None:
        self.images, self.seed = images, recipe.seed
        cropped = recipe.pipeline == "crop"
        side = [recipe.resize] if cropped else [recipe.resize, recipe.resize]
        steps: list[nn.Module] = [v2.Resize(side, antialias=True)]
        if recipe.rotation:
            steps.append(v2.RandomRotation(recipe.rotation, v2.InterpolationMode.BILINEAR))
        steps.append(v2.RandomResizedCrop(recipe.size, antialias=True) if cropped else v2.RandomCrop(recipe.size))
        steps.append(v2.RandomHorizontalFlip())
        if recipe.brightness:
            steps.append(v2.ColorJitter(brightness=recipe.brightness))
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(preprocessing.mean, preprocessing.std)]
        self.transform = v2.Compose([v2.ToImage(), *steps])

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        image = self.images[index]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.seed * 10_007 + epoch) * 1_000_003 + index)
            return self.transform(image.open()), image.label

    def __len__(self) -> int:
        return len(self.images)


class PlainImages(Dataset[tuple[Tensor, int]]):
    """Images as they are explained and measured later, without augmentation."""

    def __init__(self, images: Sequence[LabelledImage], preprocessing: Preprocessing) -> None:
        self.images, self.preprocessing = images, preprocessing

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        return self.preprocessing(image.open()), image.label

    def __len__(self) -> int:
        return len(self.images)


class ClassifierTraining(lightning.LightningModule):
    """Cross-entropy with SGD; for an attention branch network the sum of both branches' cross-entropies."""

    def __init__(self, recipe: Recipe, classes: int) -> None:
        super().__init__()
        self.recipe = recipe
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            network, self.start = start_network(recipe, classes)
            self.network = network.to(memory_format=torch.channels_last)

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the network's logits."""
        images = images.to(memory_format=torch.channels_last)
        if not isinstance(self.network, AttentionBranchNetwork):
            logits = self.network(images)
            return functional.cross_entropy(logits, labels), logits
        said = self.network.attend(images)
        both = functional.cross_entropy(said.logits, labels) + functional.cross_entropy(said.branch_logits, labels)
        return both, said.logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        loss, _ = self.loss(*batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        loss, logits = self.loss(*batch)
        self.log("val_loss", loss, sync_dist=True)
        right = (logits.argmax(1) == batch[1]).float().mean()
        self.log("val_accuracy", right, prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        r = self.recipe
        optimizer = torch.optim.SGD(self.parameters(), r.lr, momentum=r.momentum, weight_decay=r.weight_decay)
        if r.decay_every is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, r.decay_every)}


class Patience(EarlyStopping):
    """Early stopping that also holds after a restart: a run killed after it had stopped does not train on."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


def start_network(recipe: Recipe, classes: int) -> tuple[nn.Module, str]:
    """The network before training: pretrained weights, and a new last layer.

    Returns:
        The network, and the name of the weights that it begins with.

    Raises:
        DownloadError: the start weights are not in the cache and cannot be downloaded.
        CheckpointError: the file of start weights does not fit.
    """
    network, source = architecture(recipe.arch)[0](num_classes=classes), "random"
    if recipe.start.lower() != RANDOM:
        trained = load_model(recipe.arch, recipe.start)
        card, state = card_of(trained), trained.state_dict()
        source = card.version or card.weights
        own = network.state_dict()
        head = [name for name in own if name.startswith(("fc.", "classifier.", "head."))]
        kept = {name: tensor for name, tensor in state.items() if name not in head}
        unfit = [n for n in own if n not in head and (n not in kept or kept[n].shape != own[n].shape)]
        if unfit:
            raise CheckpointError(f"{recipe.start} does not fit {recipe.arch}: {', '.join(unfit[:3])} ({len(unfit)})")
        network.load_state_dict({**own, **{name: kept[name] for name in own if name not in head}})
    if recipe.attention_after is not None:
        network = AttentionBranchNetwork(network, recipe.attention_after, recipe.attention_variant)
    return network, source


@well_behaved()
def train_classifier(
    data: str | Path,
    out: str | Path,
    recipe: Recipe,
    *,
    test_split: str = "test",
    workers: int = 0,
    devices: int | str = "auto",
    progress_bar: bool = False,
) -> TrainedClassifier:
    """Train a classifier on a labelled folder; resume if ``out`` holds an unfinished run, return it if a finished one.

    Writes ``recipe.json``, ``split.json`` (names of the images of each part), ``checkpoints/``, ``logs/``, and at the
    end ``model.safetensors`` (the epoch of the lowest validation loss), ``card.json`` and ``accuracy.json``.

    Args:
        data: a folder with a split for training and one for testing, see :func:`headwater.data.load_labelled`.
        out: the run folder.
        recipe: every number that shapes the weights.
        test_split: name of the split of the data for testing.
        workers: processes that load images.
        devices: Lightning's: ``"auto"``, or how many.
        progress_bar: draw one; else print one line per epoch.

    Raises:
        DataError: the data are incomplete, or ``out`` holds a run of another recipe or split (differences are named).
        InputError: the last batch of an epoch would be a single image whose last features are a single pixel.
        DownloadError: the start weights are not in the cache and cannot be downloaded.
        OutputError: a checkpoint cannot be written; the one before it is intact.
    """
    out = Path(out)
    train, test = load_labelled(data, "train"), load_labelled(data, test_split)
    if train.classes is None or train.classes != test.classes:
        raise DataError(f"{data}: training and test images have different classes")
    split = split_images(train, test, recipe.validation, recipe.seed)
    if len(split.train) % recipe.batch_size == 1 and recipe.size <= _STRIDE:
        raise InputError(
            f"{len(split.train)} training images in batches of {recipe.batch_size} leave a batch of one image, whose "
            "last features are one pixel and cannot be normalised over the batch; take another --batch-size"
        )
    claim(out, asdict(recipe), "recipe.json")
    claim(out, split.names(), "split.json", "split")
    done = out / "accuracy.json"
    if done.is_file():
        known = json.loads(done.read_text())
        return TrainedClassifier(out, known["accuracy"], known["epochs"])
    preprocessing = recipe.preprocessing
    module = ClassifierTraining(recipe, len(train.classes))
    best = ModelCheckpoint(
        out / "checkpoints", "best", monitor="val_loss", mode="min", save_last=True, enable_version_counter=False
    )
    trainer = lightning.Trainer(
        max_epochs=recipe.epochs,
        accelerator="auto",
        devices=devices,
        precision="32-true",  # as in the papers
        deterministic=True,
        use_distributed_sampler=False,  # the order takes its own share, see EpochOrder
        logger=_loggers(out),
        callbacks=[
            Patience("val_loss", patience=recipe.patience, mode="min"),
            best,
            TQDMProgressBar() if progress_bar else PlainProgress(),
        ],
        plugins=[WholeCheckpoints()],
        enable_progress_bar=progress_bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    shared: Mapping[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    train_loader = DataLoader(
        TrainingImages(split.train, recipe, preprocessing),
        recipe.batch_size,
        sampler=EpochOrder(len(split.train), recipe.seed),
        **shared,
    )
    val_loader = DataLoader(PlainImages(split.validation, preprocessing), recipe.batch_size, **shared)
    last = out / "checkpoints" / "last.ckpt"
    trainer.fit(module, train_loader, val_loader, ckpt_path=last if last.is_file() else None, weights_only=True)
    state = torch.load(out / "checkpoints" / "best.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    weights = {name.removeprefix("network."): tensor.contiguous() for name, tensor in state.items()}
    module.network.load_state_dict(weights)
    accuracy = accuracy_on(module.network, split.test, preprocessing, recipe.batch_size, workers)
    epochs = trainer.current_epoch
    if trainer.is_global_zero:
        write_bytes(out / RUN_WEIGHTS, save(weights))
        card = {
            "arch": recipe.arch,
            "attention_after": recipe.attention_after,
            "attention_variant": recipe.attention_variant,
            "classes": train.classes,
            "preprocessing": asdict(preprocessing),
            "start": module.start,
        }
        write_text(out / RUN_CARD, json.dumps(card, indent=1))
        write_text(done, json.dumps({"accuracy": accuracy, "epochs": epochs, "test": len(split.test)}, indent=1))
    return TrainedClassifier(out, accuracy, epochs)


def _loggers(out: Path) -> list[Logger]:
    """CSV always, TensorBoard if it is installed; a folder per start, so a resumed run keeps its earlier logs."""
    loggers: list[Logger] = [CSVLogger(out, name="logs")]
    if find_spec("tensorboard") is not None:
        loggers.append(TensorBoardLogger(out, name="tensorboard"))
    return loggers


@torch.no_grad()
def accuracy_on(
    network: nn.Module,
    images: Sequence[LabelledImage],
    preprocessing: Preprocessing,
    batch_size: int = 32,
    workers: int = 0,
) -> float:
    """Fraction of the images that the network predicts right, in [0, 1]."""
    network.eval()
    device, right = next(network.parameters()).device, 0
    for given, labels in DataLoader(PlainImages(images, preprocessing), batch_size, num_workers=workers):
        right += int((network(given.to(device)).argmax(1).cpu() == labels).sum())
    return right / len(images)
