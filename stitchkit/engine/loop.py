"""The training loop: the steps of a task, on every rank."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import dispatch_clip_grad, random_seed
from torch.amp import GradScaler
from torchvision.utils import save_image

from stitchkit.data.batches import Batch, Loader
from stitchkit.distributed import World
from stitchkit.engine.epoch_state import Position, random_states, set_random_states
from stitchkit.engine.gradients import GradientReducer
from stitchkit.engine.settings import Autocast, EngineSettings
from stitchkit.engine.task import Task
from stitchkit.errors import InputError
from stitchkit.files import replacing
from stitchkit.progress import progress

_logger = logging.getLogger(__name__)


def seed_epoch(seed: int, rank: int, epoch: int) -> None:
    """Seed every random generator for an epoch, so that the epoch depends on nothing before it (law 8)."""
    # SeedSequence mixes the three; their sum would give rank 1 in epoch 0 the numbers of rank 0 in epoch 1.
    random_seed(int(np.random.SeedSequence((seed, rank, epoch)).generate_state(1)[0]), 0)


def steps_of(batches: int, accumulated: int) -> int:
    """Steps of an epoch of so many batches, if a step accumulates the gradients of some."""
    return -(-batches // accumulated)


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def save_batch(images: torch.Tensor, path: Path) -> None:
    """A batch `[B, C, H, W]` as one JPEG, as timm saves it; only the first channel if they are not colours."""
    shown = images[:, :3] if images.shape[1] >= 3 else images[:, :1]
    with replacing(path) as draft:
        save_image(shown, draft, format="jpeg", padding=0, normalize=True)


@dataclass(kw_only=True)
class Trainer:
    """Trains a task epoch by epoch; lets it keep a moving average of its weights if the settings ask for it.

    Args:
        loader: Training batches of this rank.
        folder: Folder for pictures of batches.
        schedule: Learning-rate schedule, timm's or one like it; None keeps the rate.
        reducer: Keeps the ranks' networks equal; None if the task does so, or there is only one rank.
    """

    task: Task
    loader: Loader
    optimizer: torch.optim.Optimizer
    settings: EngineSettings
    world: World
    folder: Path
    schedule: Scheduler | None = None
    reducer: GradientReducer | None = None
    autocast: Autocast = field(init=False)
    scaler: GradScaler | None = field(init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        self.autocast, self.scaler = settings.precision(self.world.device)
        if settings.model_ema:
            device = "cpu" if settings.model_ema_force_cpu else None
            self.task.setup_ema(decay=settings.model_ema_decay, use_warmup=settings.model_ema_warmup, device=device)

    @property
    def loaders(self) -> list[Loader]:
        """The loaders whose batches make up a step: a job has one per task."""
        loaders: list[Loader] = getattr(self.loader, "loaders", [self.loader])
        return loaders

    @property
    def updates_per_epoch(self) -> int:
        """Steps of an epoch; the last takes the batches that are left, as in timm."""
        return steps_of(len(self.loader), self.settings.grad_accum_steps)

    def steps(self, epoch: int) -> range:
        """Numbers of the steps of an epoch, counted from the start of the training."""
        first, end, most = epoch * self.updates_per_epoch, (epoch + 1) * self.updates_per_epoch, self.settings.max_steps
        return range(first, end if most is None else min(end, most))

    @property
    def rate(self) -> float:
        """The learning rate; the highest one if parts of the network have their own."""
        return float(max(group["lr"] for group in self.optimizer.param_groups))

    def prepare_distributed(self, *, find_unused: bool, broadcast_buffers: bool = True) -> None:
        """Let DistributedDataParallel keep the ranks' networks equal if there are several ranks.

        With `find_unused`, trainable parameters may have no gradient in a step.
        """
        if self.world.size == 1:
            return
        device, options = self.world.device, {"find_unused_parameters": find_unused}
        if not broadcast_buffers:  # newer versions of torch warn about this argument, so pass it only if needed
            options["broadcast_buffers"] = False
        self.task.prepare_distributed(device_ids=[device.index] if device.type == "cuda" else None, **options)

    def start_at(self, epoch: int, done: int = 0, *, loss: float | None = None) -> None:
        """Set the schedule to its state before an epoch, or after `done` steps of it.

        `loss` is the mean of the previous epoch, if that was trained in this process.
        """
        if self.schedule is not None:
            self.schedule.step_update(epoch * self.updates_per_epoch)
            self.schedule.step(epoch, loss)
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
        """Train an epoch, or the rest of it, and return the mean loss over its steps and all ranks.

        `num_epochs` is for log lines; the position is updated before each call of `after_step`.
        """
        self._prepare(epoch)
        position = position or Position()
        steps = self.steps(epoch)
        batches = self._batches(position)
        rest = steps[position.done :]
        end = self.steps(num_epochs - 1).stop
        per_step = self.settings.batch_size * self.settings.grad_accum_steps * self.world.size
        what = f"epoch {epoch + 1}/{num_epochs}"
        with progress(rest, self.world, what, unit="steps", images=per_step) as bar:
            for step in bar:
                loss, images, routes = self._step(batches, step)
                position.add(step, routes[0] if len(routes) == 1 else None, loss, self.rate)
                if self.task.has_ema():
                    self.task.update_ema(step=step + 1)
                if self.schedule is not None:
                    self.schedule.step_update(step + 1)
                if position.done % self.settings.log_interval == 0 or position.done == len(steps):
                    mean = position.log()
                    bar.set_postfix(loss=f"{mean:.3f}", refresh=False)
                    line = f"{what}  step {position.done}/{self.updates_per_epoch}  loss {mean:.4f}"
                    _logger.info("%s  lr %.2e%s", line, position.rate, bar.pace(end - step - 1, " in total"))
                    if self.settings.save_images and self.world.is_primary:
                        save_batch(images, self.folder / f"train-batch-{position.done - 1}.jpg")
                after_step(position)
        return position.total / len(steps)

    def _batches(self, position: Position) -> Iterator[Batch]:
        """Yield the batches after a position; before each request, store the random states in it.

        Those of earlier steps are read again: loader processes draw random numbers for each image, so the next image
        depends on all earlier ones. timm's prefetcher reads one batch ahead, so the last of them is requested in the
        random states of its first request.
        """
        device, batches, began = self.world.device, iter(self.loader), time.perf_counter()
        if count := position.done * self.settings.grad_accum_steps:
            assert position.fetching is not None, "read from a checkpoint"
            assert position.going_on is not None, "read from a checkpoint"
            for _ in range(count - 1):
                self._next(batches)
            set_random_states(position.fetching, device)
            self._next(batches)
            set_random_states(position.going_on, device)
            # This may take minutes, so the log says how long it took.
            seconds, images = time.perf_counter() - began, count * self.settings.batch_size
            _logger.info(
                "resuming after step %d: %d images read again in %.1f s, %.0f images/s",
                position.done, images, seconds, images / seconds,
            )  # fmt: skip
        while True:
            position.fetching = random_states(device)
            yield self._next(batches)

    def _next(self, batches: Iterator[Batch]) -> Batch:
        # Python turns a StopIteration within a generator into a RuntimeError.
        if (found := next(batches, None)) is None:
            raise InputError(
                f"the training data end before the {len(self.loader)} batches of an epoch; correct their number of "
                "samples, which is too high"
            )
        return found

    def _prepare(self, epoch: int) -> None:
        self.task.train()
        seed_epoch(self.settings.seed, self.world.rank, epoch)
        for loader in self.loaders:
            for part in (loader.dataset, loader.sampler):  # streamed datasets shuffle by themselves
                if hasattr(part, "set_epoch"):
                    part.set_epoch(epoch)
        off = self.settings.mixup_off_epoch
        if off and epoch >= off and getattr(self.loader, "mixup_enabled", False):
            self.loader.mixup_enabled = False

    def _step(self, batches: Iterator[Batch], step: int) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
        """Make one update from the batches of a step; return its mean loss, its last images, and the routes of all."""
        routes, total = self.task.draw(step, self.world.rank), torch.zeros((), device=self.world.device)
        accumulate = self.settings.grad_accum_steps
        accumulate = min(accumulate, len(self.loader) - step % self.updates_per_epoch * accumulate)
        if self.reducer is not None:
            self.reducer.broadcast_buffers()
        for number in range(1, accumulate + 1):
            images, labels = next(batches)
            if self.settings.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            # Gradients add up over the batches, so DistributedDataParallel needs to exchange them only with the last.
            with nullcontext() if number == accumulate else self.task.no_sync():
                with self.autocast():
                    loss = self.task(images, labels, *routes)["loss"] / accumulate
                scaled = loss if self.scaler is None else self.scaler.scale(loss)
                torch.autograd.backward(scaled)
            total += loss.detach()
        self._update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.settings.synchronize_step:
            wait_for(self.world.device)
        return total, images, routes

    def _update(self) -> None:
        """Exchange gradients, clip them, and move the parameters by them."""
        if self.reducer is not None:
            self.reducer.reduce()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)  # the limit is not for the scaled gradients
        if self.settings.clip_grad is not None:
            # timm's agc leaves out the last two parameters, which are the head of a plain model, but not of a network
            # with routes.
            exclude_head = self.settings.clip_mode == "agc" and not self.task.num_routes
            parameters = self.task.get_clip_parameters(exclude_head=exclude_head)
            dispatch_clip_grad(parameters, self.settings.clip_grad, mode=self.settings.clip_mode)
        if self.scaler is not None:
            self.scaler.step(self.optimizer)  # skips the step and lowers the scale if a gradient is not finite
            self.scaler.update()
        else:
            self.optimizer.step()
