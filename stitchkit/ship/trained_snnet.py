"""Trained SN-Nets from checkpoint, configuration and settings."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.data import create_transform
from torch.utils.data import IterableDataset

from stitchkit._version import __version__
from stitchkit.data.decoding import Decoding
from stitchkit.data.dense.pairs import spread
from stitchkit.data.dense.transforms import evaluation_transform
from stitchkit.data.loader_processes import more_than_cores
from stitchkit.data.open_dataset import open_dataset
from stitchkit.data.unlabelled import has_labels
from stitchkit.data.unreadable import NO_CLASS, CheckedImages
from stitchkit.distributed import World, init_world
from stitchkit.errors import InputError
from stitchkit.measure.ledger import LEDGER, read_rows
from stitchkit.measure.ledger_origin import changed, origin_file, read_origin
from stitchkit.measure.recalibrate import freezes_anchors, own_norms, with_calibration
from stitchkit.measure.statistics_file import check_statistics, load_statistics
from stitchkit.model.create import anchors_and_space
from stitchkit.model.snnet import SNNet
from stitchkit.networks.data_config import DataConfig, data_config_of, given_data_config, set_data_config, timm_config
from stitchkit.networks.meta import without_values
from stitchkit.networks.trained_with import TrainedWith
from stitchkit.networks.weights import load_content, read_hashed
from stitchkit.routes import Stitch
from stitchkit.settings.flags import gather
from stitchkit.settings.recipe import Recipe
from stitchkit.settings.schema import flag_of
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.settings.tasks import DENSE
from stitchkit.ship.description import FORMAT, portable
from stitchkit.tasks.windows import Windows
from stitchkit.training.checkpoint import check_header
from stitchkit.training.data import Datasets, Loaders, create_loaders, open_datasets
from stitchkit.training.inputs import source_of
from stitchkit.training.network import create_network, with_trained_classes
from stitchkit.training.own_statistics import own_statistics
from stitchkit.training.pair_data import create_pair_loaders, open_split, open_splits
from stitchkit.training.session import labels_judge

_SIZES = ("img_size", "input_size")


@dataclass(frozen=True)
class Trained:
    """An SN-Net with its weights, in evaluation mode on the CPU, and the class names of its checkpoint, if it has any.

    `keeps_anchors` says whether the anchors, with the statistics of their batch norms, were not trained.
    """

    model: SNNet
    config: StitchConfig
    recipe: Recipe
    trained_for: tuple[str, ...] = ()
    weights_sha256: str = ""
    keeps_anchors: bool = False

    @property
    def data_config(self) -> DataConfig:
        """How images are decoded and prepared."""
        return data_config_of({}, self.model.input_size, self.model.pretrained_cfg)

    @property
    def has_data(self) -> bool:
        """Whether a data set was given."""
        return bool(self.recipe.data.data_dir or self.recipe.data.dataset)

    @cached_property
    def datasets(self) -> Datasets:
        """The splits for evaluation and recalibration, opened once because each opening is logged."""
        return open_datasets(self.recipe)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits; empty if neither checkpoint nor data know them."""
        number = self.model.num_classes  # perhaps not the checkpoint's, as after --num-classes
        if len(self.trained_for) == number:
            return self.trained_for
        data = self.recipe.data
        if self.config.dense is not None:
            return ()
        names = self.datasets.classes if data.data_dir and not data.dataset else ()
        return names if len(names) == number else ()


def open_trained(
    settings: Mapping[str, object], *, cfg_id: int | None = None, ledger: str | Path | None = None
) -> Trained:
    """The SN-Net of a checkpoint, with the number of classes and the image size that it was trained with.

    Its images are prepared as the given settings say; what these leave open, as in the training that the checkpoint
    records; and otherwise as the stitch configuration says, then the anchors.

    Args:
        settings: By flag name: `stitch_config` and `resume`, optionally a `config` of settings, and all others that
            shaped the network or its images in training.
        cfg_id: The stitch that will be needed; an unknown one is refused before anything is loaded.
        ledger: The ledger whose batch-norm statistics stitches get; by default that in the folder of the run, or beside
            the checkpoint, if it has any for these weights, from as many portions as are set.
    """
    recipe, config = gather({**settings, "eval": True})
    if config is None:
        raise InputError("there is no stitch configuration; give --stitch-config FILE")
    path = recipe.run.resume
    if path is None:
        raise InputError("there are no trained weights; give --resume CHECKPOINT")
    if cfg_id is not None:
        with without_values():
            _ = anchors_and_space(config, pretrained=False, checkpoints=False)[1][cfg_id]
    content, digest = read_hashed(path)
    recipe = with_calibration(recipe, config, content)
    size = check_header(content, config, path)
    is_of_config = all(getattr(recipe.model, key) == config.recipe.get(key) for key in _SIZES)
    if size and is_of_config and not settings.keys() & set(_SIZES):
        recipe = replace(recipe, model=replace(recipe.model, input_size=size, img_size=None, in_chans=None))
    in_config = given_data_config(config.recipe)  # `gather` has put it into the recipe; the model has it anyway
    merged = given_data_config(recipe.flat())
    chosen = {key: value for key, value in merged.items() if key in settings or value != in_config.get(key)}
    unset = {key: getattr(Recipe().data, key) for key in in_config.keys() - chosen.keys()}
    recipe = replace(recipe, data=replace(recipe.data, **unset))
    trained = TrainedWith.read(content, path)
    classes = tuple(trained.classes[0]) if trained.classes and len(trained.classes) == 1 else ()
    model = create_network(with_trained_classes(recipe, content) if not classes else recipe, config, classes)
    assert isinstance(model, SNNet), "it was made of a stitch configuration"
    load_content(model, content, path, ema=recipe.optim.model_ema)
    # `chosen` before the checkpoint before the model's, which is that of the configuration before its anchors.
    image = data_config_of(chosen, model.input_size, {**model.pretrained_cfg, **trained.image})
    set_data_config(model, image)
    trained.say_unlike(model.pretrained_cfg)
    nearby = [recipe.folder / LEDGER, Path(path).with_name(LEDGER)]
    if (portions := recipe.run.recalibrate_bn) is not None:
        known = [(file, read_origin(file, advice="remove it")) for file in nearby if origin_file(file).is_file()]
        nearby = [file for file, origin in known if origin["recalibrate_bn"] == portions]
    for file in nearby if ledger is None else [ledger]:
        if not model.statistics:
            load_statistics(model, file)
    return Trained(model.eval(), config, recipe, classes, digest, freezes_anchors(content))


def trained_of(flags: argparse.Namespace, *, cfg_id: int | None = None) -> Trained:
    """The SN-Net that flags of a command name, with a stitch of this number if one is given."""
    names = ("stitch_config", "num_classes", "img_size", "resume", "data_dir", "config", "recalibrate_bn", "model_ema")
    settings = {name: value for name in names if (value := getattr(flags, name)) is not None}
    ledger = getattr(flags, "ledger", None)
    if ledger is not None and origin_file(ledger).is_file():  # by default as it was measured
        origin = read_origin(ledger, advice="remove it")
        settings = {"recalibrate_bn": origin["recalibrate_bn"], **settings}
    return open_trained(settings, cfg_id=cfg_id, ledger=ledger)


def check_origin(ledger: str | Path, trained: Trained, *, otherwise: str) -> None:
    """Check that a ledger was measured with these weights and statistics; `otherwise` is the other thing to do."""
    recipe = trained.recipe
    if not origin_file(ledger).is_file():  # published ledgers have none
        check_statistics(trained.model.statistics, ledger, read_rows(ledger))
        return
    before = {"weights_sha256": trained.weights_sha256} | read_origin(ledger, advice=otherwise)
    now = {"model_ema": recipe.optim.model_ema, "recalibrate_bn": recipe.run.recalibrate_bn}
    if key := changed(before, now):
        fault = f"was measured with {key} {before[key]}, not {now[key]}"
        raise InputError(f"ledger '{ledger}' {fault}; give the same {flag_of(key)}, or {otherwise}")
    if before["weights_sha256"] != trained.weights_sha256:
        fault = f"was measured with other weights than '{recipe.run.resume}'"
        raise InputError(f"ledger '{ledger}' {fault}; give the checkpoint it was measured with, or {otherwise}")
    check_statistics(trained.model.statistics, ledger, read_rows(ledger))


def needs_calibration(trained: Trained, stitch: int) -> bool:
    """Whether a stitch lacks the batch-norm statistics of an evaluation; data to compute them must then be there."""
    number, model = trained.recipe.run.recalibrate_bn, trained.model
    is_kept = trained.keeps_anchors and number is None
    if number == 0 or stitch in model.statistics or not own_norms(model, stitch, keeps_anchors=is_kept):
        return False
    if not trained.has_data:
        raise InputError(
            f"recalibrating the batch norms of stitch {stitch}, as in --eval, requires training images; add "
            "--data DIR, -c with the eval_args.yaml beside a ledger that has them, or --recalibrate-bn 0 to keep those "
            "of the checkpoint"
        )
    return True


def calibrate(trained: Trained, stitch: int) -> None:
    """Give a stitch the batch-norm statistics that it gets in an evaluation, if it has none from a ledger."""
    recipe, model = trained.recipe, trained.model
    if not needs_calibration(trained, stitch):
        return
    world = init_world(next(model.parameters()).device.type)
    try:
        with more_than_cores():
            loaders, by_agreement = _create_loaders(trained, world)
            chosen = own_statistics(
                recipe, model, loaders, [stitch], keeps_anchors=trained.keeps_anchors, by_agreement=by_agreement
            )
    finally:
        dist.destroy_process_group()
    model.statistics = {**model.statistics} | {cfg_id: each.statistics for cfg_id, each in chosen.items()}


def _create_loaders(trained: Trained, world: World) -> tuple[Loaders, bool]:
    """The loaders of an evaluation, and whether answers are compared with those of the anchors."""
    recipe, model = trained.recipe, trained.model
    images: dict[str, Any] = {"input_size": model.input_size, "model_config": model.pretrained_cfg}
    if trained.config.dense is not None:
        return create_pair_loaders(*open_splits(recipe), recipe, world, **images), False
    known = [[*trained.trained_for]] if trained.trained_for else []
    by_agreement = not labels_judge(recipe, trained.datasets, model.num_classes, known)
    classes = 0 if by_agreement else model.num_classes
    return create_loaders(trained.datasets, recipe, world, num_classes=classes, **images), by_agreement


def describe(trained: Trained, stitch: Stitch | int) -> dict[str, object]:
    """The description for a stitch's exports, without paths of this machine."""
    model, settings = trained.model, trained.recipe.model
    route = model.resolve(stitch)
    labels, of_dense = {segment.anchor for segment in route.segments}, {}
    if (dense := trained.config.dense) is not None:
        labels.add(trained.config.anchors[-1].label)  # its levels are those of the head
        of_dense = {"dense": asdict(dense)}
    specs = [spec for spec in trained.config.anchors if spec.label in labels]
    return {
        "format": FORMAT,
        "stitchkit": __version__,
        "cfg_id": model.space.find(route),
        "stitch": route.name,
        "anchors": [portable(spec, model, global_pool=settings.gp) for spec in specs],
        "stitched_final_norm": model.backbone.stitched_final_norm,
        # Updates of low rank are folded, so that the layer is linear.
        "layer": "mlp" if trained.config.layer == "mlp" else "linear",
        "bn_eps": settings.bn_eps,
        **of_dense,
        "input": trained.data_config,
        "output": model.route_head.described(route),
        "classes": list(trained.classes),
    }


def sample_images(trained: Trained, number: int, *, train: bool = False) -> tuple[torch.Tensor, str]:
    """At most `number` images `[B, C, H, W]` prepared as for evaluation, and their source; else seeded noise."""
    data, model, config = trained.recipe.data, trained.model, trained.data_config
    if not trained.has_data:
        noise = torch.rand(number, *model.input_size, generator=torch.Generator().manual_seed(0))
        mean, std = (torch.tensor(values)[:, None, None] for values in (config["mean"], config["std"]))
        return (noise - mean) / std, "images of seeded noise, since there is no --data"
    if trained.config.dense is not None:
        return _sample_windows(trained, number, data.train_split if train else data.val_split)
    opened = trained.datasets
    split, dataset = (data.train_split, opened.train) if train else (data.val_split, opened.validation)
    if dataset is None:
        dataset = open_dataset(source_of(trained.recipe), split, is_training=True, num_samples=data.train_num_samples)
    transform = create_transform(**timm_config(config), is_training=False)
    dataset.decoding = Decoding.of(config)
    if isinstance(dataset, IterableDataset):  # its reader skips bad images itself
        samples = [(transform(image), label) for image, label in islice(dataset, number)]
    else:
        good = CheckedImages(dataset, num_classes=model.num_classes, is_training=False, limit=data.max_unreadable)
        good.transform = transform
        # Spread evenly over the split, whose first images are all of the first class.
        samples = [good[index] for index in spread(len(good), number)]
        good.report()
    images = [image for image, label in samples if label != NO_CLASS or not has_labels(dataset)]
    where = f"the {split} split of '{data.data_dir or data.dataset}'"
    if not images:
        raise InputError(f"no image in {where} can be used; check its images, or name another split")
    return torch.stack(images), f"images from {where}"


def _sample_windows(trained: Trained, number: int, split: str) -> tuple[torch.Tensor, str]:
    """A window of each of some images of a split, spread evenly over it."""
    recipe, config, (_, *sides) = trained.recipe, trained.data_config, trained.model.input_size
    pairs = open_split(recipe, split, num_classes=recipe.model.num_classes or 0)
    pairs.decoding = Decoding.of(config)
    pairs.transform = evaluation_transform(recipe.dense.task, mean=config["mean"], std=config["std"])
    windows = Windows((sides[0], sides[1]), max(sides), keeps_scale=DENSE[recipe.dense.task].keeps_scale)
    images = [windows.cut([pairs[index][0]]).windows[0] for index in spread(len(pairs), number)]
    return torch.stack(images), f"images from the {split} split of '{recipe.data.data_dir or recipe.data.dataset}'"
