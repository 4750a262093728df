"""Trainings of the engine in milliseconds: a task with every kind of state and randomness."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from timm.scheduler import CosineLRScheduler
from torch import nn

from stitchkit.data.batches import Batch, Loader
from stitchkit.distributed import World
from stitchkit.engine.epoch_state import Position
from stitchkit.engine.epochs import TrainedEpoch, train_epochs
from stitchkit.engine.gradients import GradientReducer
from stitchkit.engine.loop import Trainer
from stitchkit.engine.settings import EngineSettings
from stitchkit.engine.task import Task
from stitchkit.engine.training_state import restore, training_state

Content = dict[str, Any]
"""What a checkpoint holds."""

EPOCHS = 2
STEPS = 5
"""Batches of an epoch."""
ALONE = World(0, 1, torch.device("cpu"))


class Network(nn.Module):
    """Three routes through one norm; with `drop`, outputs depend on the random numbers of the step."""

    def __init__(self, *, drop: float, norm: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()
        self.drop = nn.Dropout(drop)
        self.routes = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, route: int) -> torch.Tensor:
        """Logits `[B, 4]`."""
        logits: torch.Tensor = self.head(self.routes[route](self.drop(self.norm(self.stem(x)).relu())))
        return logits


class PicoTask(Task):
    """Draws a route a step, and counts its batches."""

    num_routes = 3

    def __init__(self, network: Network, *, shared: bool) -> None:
        super().__init__(network, nn.CrossEntropyLoss())
        self.shared, self.seen = shared, torch.zeros((), dtype=torch.int64)

    def draw(self, step: int, rank: int) -> tuple[int, ...]:
        """The routes of ranks differ, unless they are `shared`."""
        return ((step * step + (0 if self.shared else rank)) % 3,)

    def counters(self) -> Mapping[str, torch.Tensor]:
        """The batches so far."""
        return {"seen": self.seen}

    def forward(self, images: torch.Tensor, labels: torch.Tensor, route: int) -> dict[str, torch.Tensor]:
        """The loss also depends on the counter."""
        output = self.trainable_module(images, route)
        self.seen += 1
        return {"loss": self.criterion(output, labels) * (1 + 0.01 * self.seen), "output": output}


@dataclass
class Batches:
    """The batches of a rank, shuffled in each epoch; `noise` is drawn from Python, NumPy and torch for each.

    With `ahead`, the next one is read before one is given, as timm's prefetcher does.
    """

    world: World = ALONE
    size: int = 4
    noise: float = 0.0
    ahead: bool = False
    dataset: None = None
    sampler: None = None

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[Batch]:
        if not self.ahead:
            yield from self._read()
            return
        before = None
        for batch in self._read():
            if before is not None:
                yield before
            before = batch
        assert before is not None
        yield before

    def _read(self) -> Iterator[Batch]:
        count = self.size * self.world.size
        order = torch.randperm(STEPS) if self.noise else torch.arange(STEPS)
        for number in order.tolist():
            random_images = torch.Generator().manual_seed(number)
            images, labels = torch.randn(count, 6, generator=random_images), torch.arange(count) % 4
            noise = self.noise * (random.random() + np.random.rand() + torch.rand(()).item())
            mine = slice(self.world.rank, None, self.world.size)
            yield images[mine] + noise, labels[mine]


@dataclass
class Training:
    """A training: `run` starts it, or resumes it from a checkpoint.

    Args:
        settings: Of the engine, in addition to the seed and the size of a batch.
        busy: Turn dropout, norms and noise on; two ranks then differ from one rank with twice the batch.
        way: How ranks keep their networks equal: `reducer` or `torch`.
        scale: Whether a loss scaler takes part.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    world: World = ALONE
    busy: bool = True
    ahead: bool = False
    scale: bool = False
    way: str = "reducer"
    size: int = 4

    def run(
        self, start: Content | None = None, *, step: Callable[[int], None] = lambda _: None,
        saved: list[Content] | None = None,
    ) -> Content:  # fmt: skip
        """The state at the end.

        Args:
            start: The checkpoint to resume from.
            step: Called with the number of each step.
            saved: Takes the checkpoints within epochs.
        """
        # A resumed run begins in another process: with other weights and random states.
        torch.manual_seed(0 if start is None else 1)
        network = Network(drop=0.3 if self.busy else 0.0, norm=self.busy)
        trainer, means, first, position = self._trainer(network), list[Any](), 0, None
        if start is not None:
            network.load_state_dict(start["state_dict"])
            position = restore(start, trainer, "file", otherwise="start again")
            first, means = start["epoch"], list(start["means"])
        trainer.start_at(first, 0 if position is None else position.done)
        draw = trainer.task.draw

        def drawn(number: int, rank: int) -> tuple[int, ...]:
            step(number)
            return draw(number, rank)

        trainer.task.draw = drawn  # type: ignore[method-assign, assignment]

        def save(epoch: int, _: Position, state: Mapping[str, object]) -> Path:
            if saved is not None:
                saved.append(on_disk({**state, "epoch": epoch, "means": means}))
            return Path("file")

        def finish(epoch: TrainedEpoch) -> None:
            means.extend([epoch.loss, epoch.position.rate, *epoch.position.route_losses.items()])

        train_epochs(trainer, range(first, EPOCHS), position, save=save, finish=finish)
        counters = {name: value.clone() for name, value in trainer.task.counters().items()}
        return on_disk({**training_state(trainer), "means": means, "counters": counters})

    def _trainer(self, network: Network) -> Trainer:
        loader = Batches(self.world, self.size, 0.3 if self.busy else 0.0, self.ahead)
        task, optimizer = PicoTask(network, shared=not self.busy), self._optimizer(network)
        schedule = CosineLRScheduler(optimizer, EPOCHS * STEPS, lr_min=1e-4, t_in_epochs=False)
        settings = EngineSettings(seed=3, batch_size=self.size, **{"log_interval": 3, **self.settings})
        trainer = Trainer(
            task=task, loader=cast(Loader, loader), optimizer=optimizer, settings=settings, world=self.world,
            folder=Path(), schedule=schedule,
        )  # fmt: skip
        if self.scale:  # so small a growth interval that the scale changes within the run
            trainer.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
        if self.world.size > 1 and self.way == "reducer":
            trainer.reducer = GradientReducer(network)
        elif self.world.size > 1:
            trainer.prepare_distributed(find_unused=True)
        return trainer

    def _optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        if self.busy:
            return torch.optim.AdamW(network.parameters(), lr=0.02)
        return torch.optim.SGD(network.parameters(), lr=0.2)  # shows every error of a gradient


def on_disk(state: Mapping[str, object]) -> Content:
    """The state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(dict(state), file)
    file.seek(0)
    content: Content = torch.load(file, weights_only=True)
    return content
