"""Models of timm and torchvision by name, with published or local weights, and anchors, which are timm's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from timm.layers import to_2tuple
from torch import nn

from stitchkit.errors import InputError, one_line, prefixed, unknown
from stitchkit.networks.anchor import Anchor
from stitchkit.networks.families import anchor_of
from stitchkit.networks.hub_weights import (
    ADVICE,
    check_fit,
    check_memory,
    check_reachable,
    check_size,
    described_in,
    not_built,
    published_config,
    taken,
    torchvision_name,
    unknown_argument,
)
from stitchkit.networks.meta import without_values
from stitchkit.networks.timm_model import TimmModel, as_timm, classifier_layers, classifier_of, resize_classifier
from stitchkit.networks.trained_with import take_over
from stitchkit.networks.weights import load_content, own_names, read_checkpoint, weights_of
from stitchkit.settings.names import TORCHVISION, has_weights, torchvision_names
from stitchkit.settings.schema import ModelArguments, parse
from stitchkit.settings.stitch_config import AnchorSpec

_logger = logging.getLogger(__name__)


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
    if torchvision_name(name) is not None:
        raise InputError(f"'{name}' is not a timm model; only timm models can be used here")
    kwargs = parse(ModelArguments, {key: value for key, value in kwargs.items() if value is not None}, "kwargs")
    img_size = kwargs.get("img_size")
    kwargs = taken(name, kwargs)
    content = None if checkpoint is None else read_checkpoint(checkpoint)
    is_download = pretrained and content is None
    try:
        folder = described_in(name)
        described = name if folder is None else f"local-dir:{folder}"
        check_size(described, kwargs)
        if not is_download or (folder is not None and has_weights(folder)):  # timm would ask for a newer version
            name = described
        if is_download:
            if known is not None:
                check_fit(name, kwargs)
            check_reachable(name)
        model = as_timm(timm.create_model(name, pretrained=is_download, **kwargs))
    except InputError:
        raise
    except Exception as error:  # timm, torch and the hub's client raise many kinds
        if not is_download or unknown_argument(name, kwargs, error) is not None:
            raise not_built(name, kwargs, error) from error
        raise InputError(
            f"pretrained '{name}' cannot be loaded: {one_line(error)}; check the tag, the arguments and the network, "
            f"{ADVICE}"
        ) from error
    # timm's description is the only place where all models have them.
    channels, *sides = model.pretrained_cfg["input_size"]
    size = (kwargs.get("in_chans", channels), *(sides if img_size is None else to_2tuple(img_size)))
    model.pretrained_cfg = model.pretrained_cfg | {"input_size": size}
    if content is not None and checkpoint is not None:
        load_any_classes(model, content, checkpoint, kwargs.get("num_classes"))
    elif is_download:
        _say_new_classifier(f"pretrained '{name}'", model.pretrained_cfg.get("num_classes"), model.num_classes)
    return model


def _given(arguments: Mapping[str, object]) -> str:
    return f" with {dict(arguments)}" if arguments else ""


def load_any_classes(
    model: nn.Module, content: Mapping[str, object], path: str | Path, num_classes: int | None
) -> None:
    """Load weights with any number of classes; the classifier is re-initialised if another number is requested."""
    weights, classifier = own_names(model, weights_of(content)), classifier_of(model)
    weight = weights.get(f"{classifier}.weight")
    num_trained = len(weight) if weight is not None and weight.ndim else None
    is_bare = num_classes is not None and not any(name.startswith(classifier) for name in weights)
    if is_bare and (hasattr(model, "reset_classifier") or not num_classes):
        num_trained = 0  # the file is of a network without classifier
    if num_trained is not None:  # the classifier is loaded even if it is replaced: loading checks every name and shape
        resize_classifier(model, num_trained)
    load_content(model, content, path)
    take_over(model, content, path, with_classifier=num_trained is None or num_classes in (None, num_trained))
    if num_classes is not None:
        _say_new_classifier(f"checkpoint '{path}'", num_trained, num_classes)
        resize_classifier(model, num_classes)


def _say_new_classifier(weights: str, trained: int | None, num_classes: int | None) -> None:
    """Warn in one line if the classifier of weights is re-initialised for another number of classes."""
    if trained is not None and num_classes not in (None, 0, trained):
        _logger.warning(
            "the classifier of %s is re-initialised, and random until it is trained: %d classes -> %d",
            weights, trained, num_classes,
        )  # fmt: skip


def create_network(
    spec: AnchorSpec, *, pretrained: bool = True, checkpoints: bool = True, **overrides: Any
) -> tuple[nn.Module, tuple[int, int, int] | None]:
    """The network of an anchor's specification, and the size of its images if it does not know it.

    Arguments and errors are those of `create_anchor`.
    """
    checkpoint = spec.checkpoint if checkpoints else None
    kwargs = {**spec.kwargs, **{key: value for key, value in overrides.items() if value is not None}}
    with prefixed(f"anchor '{spec.label}': "):
        parse(ModelArguments, kwargs, "kwargs")
        if (own := torchvision_name(spec.name)) is None:
            return create_model(spec.name, checkpoint=checkpoint, pretrained=pretrained, **kwargs), None
        published_config(spec.name)  # refuses a name that torchvision does not have
        sides = to_2tuple(kwargs.pop("img_size", None) or 224)
        return _load_torchvision(own, checkpoint=checkpoint, pretrained=pretrained, **kwargs), (3, *sides)


def create_anchor(spec: AnchorSpec, *, pretrained: bool = True, checkpoints: bool = True, **overrides: Any) -> Anchor:
    """The anchor of a specification.

    Args:
        spec: timm's name, or torchvision's behind `torchvision/`; label, arguments and checkpoint.
        pretrained: Download timm's weights if it has no checkpoint; otherwise they are random.
        checkpoints: Load its checkpoint, if it has one. False is for a network whose weights do not matter, or all come
            from another file.
        overrides: Further arguments of `timm.create_model`, stronger than those of the specification.
    """
    model, size = create_network(spec, pretrained=pretrained, checkpoints=checkpoints, **overrides)
    anchor = anchor_of(model, label=spec.label, input_size=size)
    asked = to_2tuple(overrides.get("img_size") or spec.kwargs.get("img_size"))
    embedding: Any = getattr(model, "patch_embed", None)
    if getattr(embedding, "grid_size", None):
        # timm builds a network whose images cannot be cut into patches, but it fails.
        sides, patch = embedding.img_size, embedding.patch_size
        is_exact = not (getattr(embedding, "strict_img_size", True) or embedding.dynamic_img_pad)
        is_cut = any(side % length for side, length in zip(sides, patch, strict=True))
        if 0 in embedding.grid_size or (is_exact and is_cut):
            raise InputError(
                f"anchor '{anchor.label}': images of {sides} cannot be cut into patches of {patch}; choose a multiple "
                "as img_size"
            )
    if asked[0] is not None and anchor.input_size[1:] != asked:  # some round it to their strides
        raise InputError(
            f"anchor '{anchor.label}' takes images of {anchor.input_size[1:]}, not {asked}; choose a multiple of its "
            "strides as img_size"
        )
    return anchor


def create_torchvision(name: str, arguments: Mapping[str, Any], *, weights: object = None) -> nn.Module:
    """A classifier of torchvision; `weights` are those to download, as torchvision takes them."""
    if name not in torchvision_names():
        raise unknown("torchvision model", name, torchvision_names())
    if any(type(value) is not bool and key != "num_classes" for key, value in arguments.items()):
        check_memory(
            lambda: torchvision.models.get_model(name, **arguments), f"torchvision's '{name}'{_given(arguments)}"
        )
    try:
        # Some cannot be built on the meta device.
        with torch.device("cpu"):
            model: nn.Module = torchvision.models.get_model(name, weights=weights, **arguments)
        model.to(torch.get_default_device())
    except Exception as error:  # torchvision, torch and the download raise many types
        if (refusal := unknown_argument(TORCHVISION + name, arguments, error)) is not None:
            raise refusal from error
        reason = f"{_given(arguments)}: {one_line(error)}"
        if weights is None:
            raise InputError(f"torchvision cannot build '{name}'{reason}") from error
        raise InputError(
            f"torchvision's '{name}' cannot be loaded{reason}; check the arguments and the network, {ADVICE}"
        ) from error
    return model


def _load_torchvision(
    name: str,
    *,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    **arguments: object,
) -> nn.Module:
    # Published weights fix the number of classes, so another number is set after they are loaded; so is 0, which
    # constructors would take for a layer without outputs.
    weights = "DEFAULT" if pretrained and checkpoint is None else None
    if weights is None and checkpoint is None and num_classes:
        arguments["num_classes"] = num_classes
    model = create_torchvision(name, arguments, weights=weights)
    if checkpoint is not None:
        load_any_classes(model, read_checkpoint(checkpoint), checkpoint, num_classes)
    elif num_classes is not None:
        if weights is not None:
            (layer,) = classifier_layers(model)
            _say_new_classifier(f"pretrained '{TORCHVISION}{name}'", len(layer.weight), num_classes)
        resize_classifier(model, num_classes)
    return model


LIBRARIES: dict[str, Callable[..., nn.Module]] = {
    "timm": create_model,
    "torchvision": _load_torchvision,
    "pytorch": _load_torchvision,
}
"""Functions that build models, by the library's names."""


def load_model(
    name: str,
    *,
    backend: str = "timm",
    pretrained: bool = True,
    checkpoint: str | Path | None = None,
    **arguments: object,
) -> nn.Module:
    """A model of a library, with its weights.

    Args:
        backend: `timm`, or `torchvision`, also called `pytorch`; names behind `torchvision/` need none.
        pretrained: Download its weights, unless a `checkpoint` is given.
        arguments: Further arguments of the model; None for the model's default.
    """
    if backend not in LIBRARIES:
        raise unknown("backend", backend, LIBRARIES)
    if (own := torchvision_name(name)) is not None:
        backend, name = "torchvision", own
    parse(ModelArguments, arguments, f"arguments of '{name}'")
    return LIBRARIES[backend](name, pretrained=pretrained, checkpoint=checkpoint, **arguments)


def bare_model(name: str, backend: str = "timm") -> tuple[nn.Module, torch.Tensor]:
    """A model of a library without weights, on the meta device, and an image that it takes."""
    with without_values():
        model = load_model(name, backend=backend, pretrained=False).eval()
    size = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
    return model, torch.empty(1, *size, device="meta")
