"""Training of the three networks: ``python -m benchmarks.planted --train``."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from benchmarks.planted.data import Examples, sequences, signals, volumes
from benchmarks.planted.networks import ResNet, Transformer
from headwater.files import write_bytes

FOLDER = Path(__file__).resolve().parents[2] / ".local" / "planted"
RECIPES = tomllib.loads(Path(__file__).with_name("recipes.toml").read_text())


@dataclass(frozen=True)
class Task:
    """Examples of one kind, and the network that learns them."""

    name: str
    examples: Callable[[int, int], Examples]
    build: Callable[..., nn.Module]

    @property
    def recipe(self) -> dict[str, Any]:
        return RECIPES[self.name]

    @property
    def weights(self) -> Path:
        return FOLDER / f"{self.name}.safetensors"

    def network(self) -> nn.Module:
        """The network with its first weights, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe["seed"])
            return self.build(**self.recipe["network"]).eval()

    def trained(self) -> nn.Module:
        """The network with the weights of :func:`train`.

        Raises:
            FileNotFoundError: it has not been trained here.
        """
        if not self.weights.is_file():
            raise FileNotFoundError(f"{self.weights}: train first, python -m benchmarks.planted --train")
        network = self.network()
        network.load_state_dict(load_file(self.weights))
        return network.requires_grad_(False)


TASKS = (
    Task("signals", signals, ResNet),
    Task("volumes", volumes, ResNet),
    Task("sequences", sequences, Transformer),
)


def train(task: Task) -> nn.Module:
    """Train a network and keep its weights: AdamW and one cycle of the learning rate, new examples for each step."""
    recipe, began = task.recipe, time.monotonic()
    network = task.network().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe["max_lr"], weight_decay=0.01)
    steps = recipe["steps"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe["max_lr"], total_steps=steps, pct_start=0.2)
    for k in range(steps):
        batch = task.examples(recipe["batch"], recipe["seed"] * 1_000_003 + k)
        loss = nn.functional.cross_entropy(network(*batch.arguments), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (k + 1) % 100 == 0:
            print(f"{task.name}: step {k + 1}, loss {loss:.3f}, {time.monotonic() - began:.0f} s", flush=True)
    network.eval().requires_grad_(False)
    write_bytes(task.weights, save(network.state_dict()))
    return network


def predictions(network: nn.Module, examples: Examples) -> torch.Tensor:
    """The class that the network gives each example."""
    with torch.no_grad():
        parts = [network(*examples.select(slice(k, k + 100)).arguments) for k in range(0, len(examples), 100)]
    return torch.cat(parts).argmax(1)


def accuracy(network: nn.Module, examples: Examples) -> float:
    """Part of the examples that are given their class."""
    return (predictions(network, examples) == examples.labels).float().mean().item()
