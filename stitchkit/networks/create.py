"""Models and anchors by name: from timm's registry, with timm's or local weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, is_model, list_models, list_pretrained

from stitchkit.classes import note_origin
from stitchkit.errors import InputError, one_line, unknown
from stitchkit.networks.anchor import Anchor, view
from stitchkit.networks.timm_model import TimmModel, as_timm
from stitchkit.networks.weight_names import own_names
from stitchkit.networks.weights import load_content, read_checkpoint, weights_of
from stitchkit.settings.stitch_config import AnchorSpec


def create_model(
    name: str, *, checkpoint: str | Path | None = None, pretrained: bool = False, **kwargs: Any
) -> TimmModel:
    """A timm model with its weights.

    Args:
        name: timm's name, with or without a tag.
        checkpoint: A local file with the weights, which replaces `pretrained`. If its classifier has another number of
            classes than requested, only the classifier is re-initialised.
        pretrained: Download timm's weights for the name.
        kwargs: Arguments of `timm.create_model`; those that are None are left out.

    Raises:
        InputError: If timm has no such model, rejects an argument, or cannot download the weights.
    """
    known = published_config(name)
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    img_size = kwargs.get("img_size")
    if known is not None and not known.fixed_input_size:
        kwargs.pop("img_size", None)  # the model takes any size, and rejects the argument
    content = None if checkpoint is None else read_checkpoint(checkpoint)
    try:
        model = as_timm(timm.create_model(name, pretrained=pretrained and content is None, **kwargs))
    except Exception as error:  # timm, torch and the hub's client raise many kinds
        reason = one_line(error)
        if pretrained and content is None:
            raise InputError(
                f"pretrained '{name}' cannot be loaded: {reason}; check the tag, the arguments and the network, "
                "give a local checkpoint, or start from random weights (--no-pretrained)"
            ) from error
        raise InputError(f"timm cannot build '{name}' with {kwargs}: {reason}") from error
    if img_size is not None:
        _describe_input(model, img_size)
    if content is not None and checkpoint is not None:
        _load(model, content, checkpoint, num_classes=kwargs.get("num_classes"))
    return model


def published_config(name: str) -> PretrainedCfg | None:
    """timm's description of the published weights of a name; None for a name that is a place, such as `hf-hub:...`."""
    if name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        return None
    bare, _, tag = name.partition(".")
    if not is_model(name):
        raise unknown("timm model", bare, list_models())
    try:
        config: PretrainedCfg = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = [full.partition(".")[2] for full in list_pretrained(f"{bare}.*")]
        raise unknown(f"tag of {bare}", tag, tags) from error
    return config


def _describe_input(model: TimmModel, img_size: int | Sequence[int]) -> None:
    """Record the size of images in timm's description, the only place where all models have it."""
    sides = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    model.pretrained_cfg = model.pretrained_cfg | {"input_size": (model.pretrained_cfg["input_size"][0], *sides)}


def _load(model: TimmModel, content: Mapping[str, object], path: str | Path, *, num_classes: int | None) -> None:
    """Load weights with any number of classes; the classifier is re-initialised if another number is requested."""
    # The file's own classifier is loaded even if it is replaced below: loading checks every name and shape.
    found = _classes_in(own_names(model, weights_of(content)), model)
    if found is not None and found != model.num_classes:
        model.reset_classifier(found)
    load_content(model, content, path)
    if num_classes is not None and num_classes != model.num_classes:
        model.reset_classifier(num_classes)
    else:
        note_origin(model, content, path)


def _classes_in(weights: Mapping[str, torch.Tensor], model: TimmModel) -> int | None:
    """Number of classes of some weights, by timm's name of the classifier."""
    classifier = model.pretrained_cfg["classifier"]
    if isinstance(classifier, tuple | list):
        classifier = classifier[0]
    weight = weights.get(f"{classifier}.weight")
    return None if weight is None or not weight.ndim else len(weight)


def create_anchor(
    spec: AnchorSpec, *, pretrained: bool = True, checkpoints: bool | None = None, **overrides: Any
) -> Anchor:
    """The anchor of a specification.

    Args:
        spec: Name, label, arguments and checkpoint.
        pretrained: Load its weights: those of its checkpoint, or timm's if it has none. Otherwise they are random.
        checkpoints: Load the checkpoint of the specification, if it has one; by default if `pretrained`.
        overrides: Further arguments of `timm.create_model`, stronger than those of the specification.

    Raises:
        InputError: If the model cannot be built, loaded or viewed as steps.
    """
    checkpoint = spec.checkpoint if (pretrained if checkpoints is None else checkpoints) else None
    kwargs = {**spec.kwargs, **{key: value for key, value in overrides.items() if value is not None}}
    try:
        model = create_model(spec.name, checkpoint=checkpoint, pretrained=pretrained, **kwargs)
    except InputError as error:
        raise InputError(f"anchor '{spec.label}': {error}") from error
    anchor = view(model, label=spec.label)
    _check_input_size(anchor, kwargs.get("img_size"))
    return anchor


def _check_input_size(anchor: Anchor, img_size: int | Sequence[int] | None) -> None:
    """Check that an anchor takes images of the requested size; some round it to their strides."""
    if img_size is None:
        return
    asked = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if anchor.input_size[1:] != asked:
        raise InputError(
            f"anchor '{anchor.label}' takes images of {anchor.input_size[1:]}, not {asked}; choose a multiple of its "
            "strides as img_size"
        )
