"""The training loop: one stitch a step, on every rank."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from timm.task import ClassificationTask
from timm.utils import dispatch_clip_grad, random_seed
from torchvision.utils import save_image

from stitchkit.data.loaders import Loader
from stitchkit.distributed import World
from stitchkit.files import replacing
from stitchkit.settings.recipe import Recipe
from stitchkit.train.epoch_state import Batches, Position
from stitchkit.train.gradients import GradientReducer
from stitchkit.train.optim import Autocast, LossScaler
from stitchkit.train.progress import progress
from stitchkit.train.sampler import Sampler

_logger = logging.getLogger(__name__)


def seed_epoch(seed: int, rank: int, epoch: int) -> None:
    """Seed every random generator for an epoch: what happens in it depends on nothing before it (law 8)."""
    random_seed(int(np.random.SeedSequence((seed, rank, epoch)).generate_state(1)[0]), 0)


def count_updates(loader: Loader, recipe: Recipe) -> int:
    """Steps of an epoch; batches that do not fill a step are left over, as timm leaves images over."""
    return len(loader) // recipe.optim.grad_accum_steps


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def save_batch(images: torch.Tensor, path: Path) -> None:
    """A batch as one picture, as timm saves it; of channels that are no colours, the first is shown.

    Args:
        images: `[B, C, H, W]`, normalised or not.
        path: A `.jpg`.
    """
    shown = images[:, :3] if images.shape[1] >= 3 else images[:, :1]
    with replacing(path) as draft:
        save_image(shown, draft, format="jpeg", padding=0, normalize=True)


class Schedule(Protocol):
    """A learning-rate schedule, timm's or one like it."""

    def step_update(self, num_updates: int) -> Any:
        """Set the rate of the step after so many."""

    def step(self, epoch: int) -> Any:
        """Set the rate of the epoch after so many."""


@dataclass
class Trainer:
    """Trains a task epoch by epoch.

    Args:
        task: Network and loss; `task(images, labels, cfg_id)` gives the loss.
        loader: Training batches of this rank.
        optimizer: Of the task's network.
        schedule: Learning-rate schedule.
        autocast: Context of the forward pass.
        scaler: Loss scaler, with float16.
        reducer: Keeps ranks alike; None where the task does, or there is one rank.
        sampler: Draws the stitch of a step; None trains a plain model.
        recipe: The settings.
        world: This process among all.
        folder: Where pictures of batches go.
        max_steps: Training ends after so many steps, even within an epoch.
    """

    task: ClassificationTask
    loader: Loader
    optimizer: torch.optim.Optimizer
    schedule: Schedule | None
    autocast: Autocast
    scaler: LossScaler | None
    reducer: GradientReducer | None
    sampler: Sampler | None
    recipe: Recipe
    world: World
    folder: Path
    max_steps: int | None = None

    @property
    def updates_per_epoch(self) -> int:
        """Steps of an epoch."""
        return count_updates(self.loader, self.recipe)

    @property
    def rate(self) -> float:
        """The learning rate: the highest, where parts of the network have their own."""
        return float(max(group["lr"] for group in self.optimizer.param_groups))

    def start_at(self, epoch: int, done: int = 0) -> None:
        """Bring the schedule to where it stands before an epoch, or after some of its steps."""
        if self.schedule is not None:
            self.schedule.step_update(epoch * self.updates_per_epoch)
            self.schedule.step(epoch)
            if done:
                self.schedule.step_update(epoch * self.updates_per_epoch + done)

    def train_epoch(
        self,
        epoch: int,
        num_epochs: int,
        *,
        position: Position | None = None,
        after_step: Callable[[Position], None] = lambda _: None,
    ) -> float:
        """Train one epoch.

        Args:
            epoch: Its number.
            num_epochs: How many there are.
            position: Where to go on within it; by default it begins. It is kept up to date.
            after_step: Called after each step with the position.

        Returns:
            The mean loss over its steps and all ranks.

        Raises:
            InputError: If a loss is not finite.
        """
        self._prepare(epoch)
        position = position or Position()
        first, end = epoch * self.updates_per_epoch, (epoch + 1) * self.updates_per_epoch
        steps = range(first, end if self.max_steps is None else min(end, self.max_steps))
        rest = steps[position.done :]
        batches = Batches(self.loader, position, self.world.device)
        if rest and position.done:
            self._skip(batches, position.done)
        with progress(rest, self.world, f"epoch {epoch + 1}/{num_epochs}", unit="step") as bar:
            for step in bar:
                cfg_id = self.sampler.draw(step, self.world.rank) if self.sampler else None
                loss, images = self._step(batches, cfg_id)
                position.done += 1
                position.window.add(step, cfg_id, loss)
                if self.task.has_ema():
                    self.task.update_ema(step=step + 1)
                if self.schedule is not None:
                    self.schedule.step_update(step + 1)
                if position.done % self.recipe.run.log_interval == 0 or position.done == len(steps):
                    mean = position.log()
                    bar.set_postfix(loss=f"{mean:.3f}")
                    self._log(epoch, num_epochs, position.done, mean)
                    if self.recipe.run.save_images and self.world.is_primary:
                        save_batch(images, self.folder / f"train-batch-{position.done - 1}.jpg")
                after_step(position)
        return position.total / len(steps)

    def _skip(self, batches: Batches, done: int) -> None:
        """Read what the steps before have used once more; it may take minutes, so it says how long it took."""
        count, began = done * self.recipe.optim.grad_accum_steps, time.perf_counter()
        batches.skip(count)
        seconds, images = time.perf_counter() - began, count * self.recipe.data.batch_size
        _logger.info(
            "going on after step %d: %d images read once more in %.1f s, %.0f images/s",
            done, images, seconds, images / seconds,
        )  # fmt: skip

    def _prepare(self, epoch: int) -> None:
        self.task.train()
        seed_epoch(self.recipe.run.seed, self.world.rank, epoch)
        for part in (self.loader.dataset, self.loader.sampler):  # streamed datasets shuffle by themselves
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        off = self.recipe.augment.mixup_off_epoch
        if off and epoch >= off and getattr(self.loader, "mixup_enabled", False):
            self.loader.mixup_enabled = False

    def _step(self, batches: Batches, cfg_id: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """One update from as many batches as make a step, all with the same stitch; its mean loss, its last images."""
        total = torch.zeros((), device=self.world.device)
        accumulate = self.recipe.optim.grad_accum_steps
        if self.reducer is not None:
            self.reducer.broadcast_buffers()
        for number in range(1, accumulate + 1):
            images, labels = next(batches)
            if self.recipe.model.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with nullcontext() if number == accumulate else self.task.no_sync():
                with self.autocast():
                    loss = self.task(images, labels, cfg_id)["loss"] / accumulate
                scaled = loss if self.scaler is None else self.scaler.scale(loss)
                scaled.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self._update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.recipe.distributed.synchronize_step:
            wait_for(self.world.device)
        return total, images

    def _update(self) -> None:
        """Exchange gradients, clip them, and move the parameters by them."""
        if self.reducer is not None:
            self.reducer.reduce()
        optim = self.recipe.optim
        if optim.clip_grad is not None:
            if self.scaler is not None:
                self.scaler.unscale(self.optimizer)
            # timm's agc leaves out the last two parameters, the head of a plain model; an SN-Net does not end with one.
            exclude_head = optim.clip_mode == "agc" and self.sampler is None
            parameters = self.task.get_clip_parameters(exclude_head=exclude_head)
            dispatch_clip_grad(parameters, optim.clip_grad, mode=optim.clip_mode)
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
        else:
            self.optimizer.step()

    def _log(self, epoch: int, num_epochs: int, count: int, loss: float) -> None:
        _logger.info(
            "epoch %d/%d  step %d/%d  loss %.4f  lr %.2e",
            epoch + 1, num_epochs, count, self.updates_per_epoch, loss, self.rate,
        )  # fmt: skip
