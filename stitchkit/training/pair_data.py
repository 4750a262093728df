"""The splits of a data set of images with masks or depth maps, and their loaders, from a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch.utils.data import DataLoader, Subset
from torch.utils.data.distributed import DistributedSampler

from stitchkit.data.batches import DirectLoader
from stitchkit.data.decoding import Decoding
from stitchkit.data.dense.pairs import ImagePairs, open_pairs
from stitchkit.data.dense.transforms import evaluation_transform, training_transform
from stitchkit.data.loader_processes import outlive_signals, workers_for
from stitchkit.data.unreadable import report
from stitchkit.distributed import World
from stitchkit.measure.recalibrate import num_images
from stitchkit.settings.recipe import Recipe
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.training.data import Loaders, check_step, drawn_numbers, opened_to_train, preparation, weights_dtype

PORTION = 8
"""Training images whose windows renew batch-norm statistics together, whatever the batch size."""
Pair = tuple[torch.Tensor, torch.Tensor]
"""An image `[C, H, W]` and its target `[H, W]`."""


class PairLoader:
    """The images of this rank, each once, at their own sizes: rank r of n has the images r, r + n, ...

    `numbers` are those of the images, in the order of the ranks; by default all.
    """

    def __init__(
        self, pairs: ImagePairs, batch_size: int, workers: int, world: World, numbers: Sequence[int] | None = None, *,
        dtype: torch.dtype = torch.float32,
    ):  # fmt: skip
        self.dataset, self.dtype = pairs, dtype
        self._numbers = range(len(pairs)) if numbers is None else numbers
        self._world, self._workers, self.batch_size = world, workers, batch_size

    def __len__(self) -> int:
        """The batches of a rank, the most of any."""
        most = -(-len(self._numbers) // self._world.size)
        return -(-most // self.batch_size)

    def __iter__(self) -> Iterator[list[Pair]]:
        return self.batches()

    @property
    def own(self) -> Sequence[int]:
        """The numbers of this rank's images."""
        return self._numbers[self._world.rank :: self._world.size]

    def batches(self, done: int = 0, after_batch: Callable[[], None] = lambda: None) -> Iterator[list[Pair]]:
        """The pairs of this rank after the first `done`, on its device; `after_batch` is called equally often on all
        ranks.
        """
        images = Subset(self.dataset, self.own[done:])
        loader: DataLoader[Pair] = DataLoader(images, self.batch_size, num_workers=self._workers, collate_fn=list)
        outlive_signals(loader)
        device = self._world.device
        for batch in loader:
            yield [(image.to(device, self.dtype), target.to(device)) for image, target in batch]
            after_batch()
        for _ in range(len(self) - len(loader)) if not done else ():
            after_batch()
        report(self.dataset)


def open_splits(recipe: Recipe, config: StitchConfig | None = None) -> tuple[ImagePairs | None, ImagePairs]:
    """The training split, unless an evaluation has no use for it, and the one for validation."""
    data, file = recipe.data, ""
    wanted = recipe.model.num_classes or 0
    if wanted and config is not None and config.recipe.get("num_classes") == wanted:
        file = str(recipe.model.stitch_config)
    train = opened_to_train(recipe, lambda: open_split(recipe, data.train_split, num_classes=wanted, given_in=file))
    if train is not None:
        wanted = train.num_classes
    return train, open_split(recipe, data.val_split, num_classes=wanted, given_in=file)


def open_split(recipe: Recipe, split: str, *, num_classes: int = 0, given_in: str = "") -> ImagePairs:
    """A split by its name; the number of classes is found if it is 0, and may be `given_in` a file."""
    data = recipe.data
    return open_pairs(
        data.dataset or str(data.data_dir), split, recipe.dense.task, num_classes=num_classes, given_in=given_in,
        input_key=data.input_key or "image", target_key=data.target_key or "",
        download=data.dataset_download and not recipe.run.dry_run,
    )  # fmt: skip


def create_pair_loaders(
    train: ImagePairs | None, judged: ImagePairs, recipe: Recipe, world: World, *, input_size: tuple[int, ...],
    model_config: Mapping[str, object],
) -> Loaders:  # fmt: skip
    """Loaders over this rank's part of the splits; arguments as for `create_loaders`."""
    data, augment, task = recipe.data, recipe.augment, recipe.dense.task
    prepared = preparation(recipe, input_size, model_config)
    colours = {"mean": tuple(prepared["mean"]), "std": tuple(prepared["std"])}
    for pairs in (train, judged):
        if pairs is not None:
            pairs.decoding = Decoding.of(prepared)
    judged.transform = evaluation_transform(task, **colours)
    batch_size = data.validation_batch_size or data.batch_size
    dtype = weights_dtype(recipe)
    validation = PairLoader(judged, batch_size, workers_for(judged, data.workers, world), world, dtype=dtype)
    if train is None:
        return Loaders(None, validation, **colours)
    if recipe.run.eval:
        train.transform, workers = judged.transform, workers_for(train, data.workers, world)
        renewing, judging = num_images(len(train), recipe.run.recalibrate_bn, PORTION)
        numbers, alone = drawn_numbers(len(train), renewing + judging, recipe.run.seed), World(0, 1, world.device)
        renew, *held_out = (
            PairLoader(train, PORTION, workers, alone, part, dtype=dtype)
            for part in filter(None, (numbers[:renewing], numbers[renewing:]))
        )
        return Loaders(renew, validation, **colours, held_out=tuple(held_out))
    low, high = (1.0, 1.0) if augment.no_aug else recipe.dense.zoom
    train.transform = training_transform(
        task, (input_size[1], input_size[2]), **colours, scale=(low, high),
        hflip=0 if augment.no_aug else augment.hflip, color_jitter=not augment.no_aug and augment.color_jitter > 0,
    )  # fmt: skip
    loader: DataLoader[Pair] = DataLoader(
        train, data.batch_size, sampler=DistributedSampler(train, world.size, world.rank, seed=recipe.run.seed),
        num_workers=workers_for(train, data.workers, world), pin_memory=data.pin_mem, drop_last=True,
    )  # fmt: skip
    check_step(len(loader), len(train), recipe, world)
    direct = DirectLoader(loader, device=world.device, dtype=dtype)
    return Loaders(direct, validation, **colours)
