"""The network of a run: built from its recipe, set up for training, and placed on its device."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from timm.layers import DropPath, convert_splitbn_model, convert_sync_batchnorm, set_fast_norm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from stitchkit.classes import check_classes
from stitchkit.distributed import World
from stitchkit.engine.checkpoint_files import start_from
from stitchkit.engine.settings import suit_precision
from stitchkit.errors import InputError, one_line, prefixed
from stitchkit.measure.profile import Profiler
from stitchkit.model.coverage import fits_any_patches, warn_of_borders
from stitchkit.model.create import build_snnet
from stitchkit.model.snnet import SNNet
from stitchkit.networks.create import create_model
from stitchkit.networks.data_config import given_data_config, set_data_config, unlike_images
from stitchkit.networks.families import anchor_of, has_view
from stitchkit.networks.hub_weights import check_fit, published_config
from stitchkit.networks.timm_model import as_timm, classifier_layers
from stitchkit.networks.trained_with import TrainedWith, all_noted
from stitchkit.settings.fields import MOST_CLASSES
from stitchkit.settings.recipe import ModelRecipe, Recipe
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.training.data import check_normalisation, preparation, weights_dtype
from stitchkit.training.preserve import trainable_stitches
from stitchkit.training.run_network import run_network
from stitchkit.training.samplers import Sampler, create_sampler

_logger = logging.getLogger(__name__)

_DROP_PATH = re.compile(r"(.+\.)?drop_path\d*")
"""What timm calls the drop paths of a block."""


def create_network(recipe: Recipe, config: StitchConfig | None, classes: Sequence[str] | None) -> nn.Module:
    """The SN-Net or the plain model, with its initial weights; `classes` are those of the data, if known."""
    settings, num_classes = recipe.model, len(classes) if classes else None
    set_fast_norm(settings.fast_norm)  # norms read it when they are created
    options: dict[str, Any] = {  # for every network; the model decides those that are None
        "pretrained": settings.pretrained and not _starts_elsewhere(recipe),
        "num_classes": num_classes if settings.num_classes is None else settings.num_classes,
        "img_size": settings.sides, "in_chans": settings.channels if settings.input_size else settings.in_chans,
        "global_pool": settings.gp, "drop_rate": settings.drop, "drop_path_rate": settings.drop_path_rate,
        "drop_block_rate": settings.drop_block,
    }  # fmt: skip
    model: nn.Module
    if config is not None:
        # --no-pretrained prevents downloads; a file that the configuration names is still loaded.
        model = build_snnet(config, checkpoints=not _starts_elsewhere(recipe), **options)
        model.keeps_statistics = True  # a training means all routes to share them, and an evaluation gives its own
        if not (recipe.data.mean and recipe.data.std) and (warning := unlike_images(model.views)):
            _logger.warning("%s", warning)  # a run normalises in one way
        params = {label: sum(map(torch.numel, anchor.model.parameters())) for label, anchor in model.views.items()}
        # Stitches lead from one anchor to the next, so the order decides which exist; a plan orders them by FLOPs.
        if not settings.anchors and list(params.values()) != sorted(params.values()):
            listed = ", ".join(f"{label} {count:,}" for label, count in params.items())
            message = "anchors must be listed from cheap to costly, but their parameters do not ascend: %s"
            _logger.warning(message, listed)
    else:
        assert settings.model is not None
        checkpoint = settings.pretrained_path if options["pretrained"] else None
        model = create_model(settings.model, checkpoint=checkpoint, **(options | (settings.model_kwargs or {})))
    if settings.initial_checkpoint and not recipe.run.resume:
        start_from(model, settings.initial_checkpoint)
    for trained in all_noted(model):  # the files of classifiers, which must number the classes as the data do
        check_classes(trained.classes or (), [classes or ()], trained.path, strict=recipe.run.eval)
    _adjust(model, settings)
    if settings.grad_checkpointing:
        as_timm(model).set_grad_checkpointing()
    outputs = as_timm(model).num_classes
    judges_features = not outputs and recipe.run.eval and run_network(model).gives_features
    if num_classes is not None and num_classes > outputs and not judges_features:
        advice = f"omit --num-classes, or set it to at least {num_classes}"
        raise InputError(f"the dataset has {num_classes} classes, but the network has {outputs} outputs; {advice}")
    size = input_size(model, recipe)
    if size[0] != settings.channels:
        raise InputError(f"the network needs images with {size[0]} channels; set --in-chans {size[0]}")
    if config is None and not fits_any_patches(model, size[1:]):
        with suppress(InputError):  # models that cannot be anchors are not seen through
            warn_of_borders([anchor_of(model, label=str(settings.model))])
    set_data_config(model, preparation(recipe, size, as_timm(model).pretrained_cfg))
    for trained in all_noted(model):
        trained.say_unlike(as_timm(model).pretrained_cfg)
    return model


def with_trained_classes(recipe: Recipe, content: Mapping[str, object]) -> Recipe:
    """A recipe with the number of classes in a checkpoint of an SN-Net, unless it gives its own."""
    number = content.get("num_classes")
    if recipe.model.num_classes is not None or type(number) is not int or not 0 <= number <= MOST_CLASSES:
        return recipe
    return replace(recipe, model=replace(recipe.model, num_classes=number))


def prepare_as_trained(model: nn.Module, recipe: Recipe, content: Mapping[str, object]) -> None:
    """Prepare images as in the training of `--resume`, whose content this is, if settings leave open all that differs.

    A resumed run does not read the files of its anchors, which may have decided the preparation.
    """
    trained = TrainedWith.read(content, str(recipe.run.resume))
    changes = trained.unlike(as_timm(model).pretrained_cfg)
    changes.pop("input_size", None)  # the network decides it
    if changes and not changes.keys() & given_data_config(recipe.flat()).keys():
        set_data_config(model, changes)
        trained.say_taken(changes)


def _starts_elsewhere(recipe: Recipe) -> bool:
    """Whether all weights come from a checkpoint of the whole network."""
    return recipe.run.resume is not None or recipe.model.initial_checkpoint is not None


def _adjust(model: nn.Module, settings: ModelRecipe) -> None:
    """Set options that timm's models have no argument for: initial classifiers, constant drop path, and batch norms."""
    wanted = (settings.head_init_scale, settings.head_init_bias) != (None, None)
    for layer in chain.from_iterable(map(classifier_layers, run_network(model).networks)) if wanted else []:
        if settings.head_init_scale is not None:
            for parameter in layer.parameters():
                parameter.data.mul_(settings.head_init_scale)
        if settings.head_init_bias is not None and layer.bias is not None:
            nn.init.constant_(layer.bias, settings.head_init_bias)
    if settings.anchor_drop_path is not None:
        network = run_network(model)
        _set_drop_path(dict(zip(network.anchors, network.networks, strict=False)), settings.anchor_drop_path)
    for norm in _batch_norms(model):
        norm.momentum = norm.momentum if settings.bn_momentum is None else settings.bn_momentum
        norm.eps = norm.eps if settings.bn_eps is None else settings.bn_eps


def _set_drop_path(anchors: Mapping[str, nn.Module], rates: Sequence[float]) -> None:
    """Give all blocks of an anchor one rate of stochastic depth; those of timm grow from block to block."""
    if len(rates) != len(anchors):
        raise InputError(f"--anchor-drop-path is {[*rates]}; give one rate for each of {', '.join(anchors)}")
    for rate, (label, anchor) in zip(rates, anchors.items(), strict=True):
        names = [name for name, _ in anchor.named_modules() if _DROP_PATH.fullmatch(name)]
        if rate and not names:
            raise InputError(f"anchor '{label}' has no drop path; set its rate in --anchor-drop-path to 0")
        for name in names:
            anchor.set_submodule(name, DropPath(rate))  # where timm's rate is 0, there is none to change


def _batch_norms(model: nn.Module) -> list[_BatchNorm]:
    return [part for part in model.modules() if isinstance(part, _BatchNorm)]


def input_size(model: nn.Module, recipe: Recipe) -> tuple[int, ...]:
    """Size of an input image, `(C, H, W)`."""
    if has_view(model):
        return anchor_of(model, label="model").input_size
    channels = getattr(model, "in_chans", recipe.model.channels)  # not all of timm's models have the attribute
    return (channels, *as_timm(model).pretrained_cfg["input_size"][1:])


def check_names(recipe: Recipe, config: StitchConfig | None) -> None:
    """Refuse names that timm and torch do not have, and values that do not fit, before the data are opened."""
    teacher = None if recipe.stitch.distillation_type == "none" else recipe.stitch.teacher_model
    named = {f"anchor '{anchor.label}': ": anchor.name for anchor in config.anchors} if config is not None else {}
    for prefix, name in {**named, "": recipe.model.model, "teacher: ": teacher}.items():
        if name:
            with prefixed(prefix):
                published_config(name)
    check_normalisation(recipe, recipe.model.channels)
    if recipe.model.torchcompile:
        _compile(nn.Identity(), recipe.model.torchcompile, recipe.model.torchcompile_mode)  # refuses what torch lacks
    if recipe.run.dry_run and config is not None and recipe.model.pretrained and not _starts_elsewhere(recipe):
        for anchor in config.anchors:
            if anchor.checkpoint is None:
                with prefixed(f"anchor '{anchor.label}': "):
                    check_fit(anchor.name, anchor.kwargs)  # a dry run downloads no weights, which would show it


def check_device(recipe: Recipe, world: World) -> None:
    """Refuse settings that this device does not support, before anything is built."""
    if recipe.distributed.sync_bn and world.device.type != "cuda":
        raise InputError(f"--sync-bn needs GPUs, but the device is {world.device.type}; use --dist-bn reduce")


def suit_training(model: nn.Module, recipe: Recipe, world: World) -> None:
    """Split and synchronise batch norms; an evaluation uses no additional ones, and one rank computes statistics."""
    if recipe.model.split_bn:
        norms = [norm for norm in _batch_norms(model) if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm3d)]
        if flat := {type(norm).__name__ for norm in norms}:
            raise InputError(f"--split-bn splits only 2-d batch norms, but this network has {', '.join(flat)}; omit it")
        convert_splitbn_model(model, max(recipe.augment.aug_splits, 2))
    if recipe.distributed.sync_bn and world.size > 1:
        convert_sync_batchnorm(model)


def place_network(model: nn.Module, recipe: Recipe, world: World) -> None:
    """Move the network to its device, in the requested precision and layout, and compile it."""
    settings = recipe.model
    model.to(world.device, weights_dtype(recipe))
    suit_precision(model, world.device, amp=recipe.optim.amp, how="--amp --amp-dtype bfloat16")
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if settings.torchcompile:
        _compile(model, settings.torchcompile, settings.torchcompile_mode)


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run a network as it was before `--torchcompile`: compiled code can be neither traced nor counted."""
    compiled = {part: part._compiled_call_impl for part in model.modules()}
    for part in compiled:
        part._compiled_call_impl = None
    try:
        yield
    finally:
        for part, call in compiled.items():
            part._compiled_call_impl = call


def sampler_of(model: SNNet, recipe: Recipe) -> Sampler:
    """The sampler of a run: of the routes that have something to train, with their costs as fvcore counts them."""
    cost = uncompiled(model)(Profiler(model).cost)
    routes, anchors = trainable_stitches(model), range(model.space.num_anchors)
    return create_sampler(routes, lambda cfg_id: cost(cfg_id).flops, recipe.stitch, recipe.run.seed, anchors)


def _compile(model: nn.Module, backend: str, mode: str | None) -> None:
    """Compile in place, without renaming parameters."""
    parts = run_network(model).compiled
    # Blocks of one class share a cache of compiled code, whose default limit suits a single network.
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 8 * len(parts))
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 8 * len(parts))
    try:
        for part in parts:
            part.compile(backend=backend, mode=mode)
    except Exception as error:  # backends are plug-ins, which raise anything
        reason = f"torch cannot compile with backend '{backend}', mode {mode}: {one_line(error)}"
        raise InputError(f"{reason}; see torch.compiler.list_backends()") from error
