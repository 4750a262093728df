"""The published weights of timm's models: timm's description of them, and checks before they are downloaded."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torchvision
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from timm.models import PretrainedCfg, is_model, list_pretrained
from torch import nn

from stitchkit.errors import InputError, one_line, prefixed, unknown
from stitchkit.networks.meta import without_values
from stitchkit.settings.files import read_settings_file
from stitchkit.settings.names import (
    TORCHVISION,
    cached_folder,
    has_weights,
    is_on_hub,
    torchvision_names,
    unknown_name,
)
from stitchkit.settings.schema import ModelArguments, image_size, parse

_ADAPTED = ("num_classes", "img_size", "in_chans", "patch_size", "window_size")
"""Arguments that timm adapts published weights to; those named `drop*` change no weight."""
_USUAL_SIDE = 1024
"""No network needs much more memory for images of such sides than for timm's own."""
ADVICE = "give a local checkpoint, or start from random weights (--no-pretrained)"


def torchvision_name(name: str) -> str | None:
    """torchvision's own name of one that stands behind `torchvision/`; None for any other."""
    return name.removeprefix(TORCHVISION) if name.startswith(TORCHVISION) else None


def is_architecture(name: str) -> bool:
    """Whether timm or torchvision can build a model of this name without any file."""
    return bool(is_model(name)) or torchvision_name(name) is not None


def published_config(name: str) -> PretrainedCfg | None:
    """timm's description of the published weights of a name; None for a place (`hf-hub:...`) and for torchvision's."""
    if name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        return None
    if (own := torchvision_name(name)) is not None:
        if own not in torchvision_names():
            raise unknown("torchvision model", own, torchvision_names())
        return None
    bare, _, tag = name.partition(".")
    if not is_model(name):
        raise unknown_name(f"unknown timm model '{bare}'", name)
    try:
        config: PretrainedCfg = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = [full.partition(".")[2] for full in list_pretrained(f"{bare}.*")]
        raise unknown(f"tag of {bare}", tag, tags) from error
    return config


def hub_fault(repository: str, *, revision: str | None = None, cache_dir: str | Path | None = None) -> str:
    """Why a repository of the Hub is unavailable: not in the cache, and nothing answers; empty if it is available.

    The Hub's client would try for a minute.
    """
    try:
        folder = snapshot_download(repository, revision=revision, cache_dir=cache_dir, local_files_only=True)
        # An interrupted download leaves a folder without them.
        if has_weights(Path(folder)):
            return ""
    except LocalEntryNotFoundError:
        pass
    try:
        HfApi().model_info(repository, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except HfHubHTTPError:
        pass  # an answer; the download says more
    except Exception as error:  # the client's library of connections has changed more than once
        return f"{constants.ENDPOINT} does not answer ({one_line(error)})"
    return ""


def described_in(name: str) -> Path | None:
    """The folder with the description of a model on the Hub, which is fetched if the cache lacks it."""
    if is_on_hub(name) and cached_folder(name) is None:
        check_reachable(name)
        repository, _, revision = name.partition(":")[2].partition("@")
        hf_hub_download(repository, "config.json", revision=revision or None)
    return cached_folder(name)


def check_reachable(name: str) -> None:
    """Refuse published weights that must be downloaded from the Hub if nothing answers there."""
    config = published_config(name)
    repository_id = config.hf_hub_id if config is not None else name.partition(":")[2]
    if not repository_id or name.startswith("local-dir:"):
        return
    repository, _, revision = repository_id.partition("@")
    if fault := hub_fault(repository, revision=revision or None):
        raise InputError(f"pretrained '{name}' cannot be downloaded: {fault}; check the network, {ADVICE}")


def taken(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a model without those that are None, and without a size that it would reject."""
    config = published_config(name)
    takes_any_size = config is not None and not config.fixed_input_size
    return {
        key: value for key, value in kwargs.items() if value is not None and not (takes_any_size and key == "img_size")
    }


def check_fit(name: str, kwargs: Mapping[str, object]) -> None:
    """Refuse arguments that change the architecture so much that the published weights of a name cannot fit."""
    kwargs = taken(name, kwargs)
    adapted = {key: value for key, value in kwargs.items() if key in _ADAPTED or key.startswith("drop")}
    if adapted.keys() == kwargs.keys() or torchvision_name(name) is not None:  # timm knows none of torchvision's
        return
    try:
        with without_values():
            models = [timm.create_model(name, **options) for options in (kwargs, adapted)]
    except Exception as error:  # timm and torch raise many kinds
        raise not_built(name, kwargs, error) from error
    ours, theirs = ({key: [*value.shape] for key, value in model.state_dict().items()} for model in models)
    wrong = next((key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)), None)
    if wrong is not None:
        changed = ", ".join(key for key in kwargs if key not in adapted)
        difference = f"{wrong} is {ours.get(wrong, 'absent')}, in timm's weights {theirs.get(wrong, 'absent')}"
        raise InputError(f"pretrained '{name}' does not fit the kwargs {changed}: {difference}; {ADVICE}")


def check_size(name: str, kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments, also those in the folder of a model, that make it too large for this machine's memory."""
    arguments = {**_folder_arguments(name), **kwargs}
    parse(ModelArguments, arguments, f"the model of '{name}'" if arguments.keys() > kwargs.keys() else "kwargs")
    changed = {key: value for key, value in arguments.items() if key not in _ADAPTED and not key.startswith("drop")}
    sides = arguments.get("img_size") or 0
    if not changed and max(sides if isinstance(sides, list | tuple) else [sides]) <= _USUAL_SIDE:
        return
    check_memory(lambda: timm.create_model(name, **kwargs), f"'{name}' with {arguments}")


def check_memory(build: Callable[[], nn.Module], what: str) -> None:
    """Refuse a network, called `what`, whose weights do not fit into this machine's memory."""
    try:
        with without_values():
            tensors = [*build().state_dict(keep_vars=True).values()]
    except Exception:  # timm and torch raise many kinds, and raise them again where the network is built
        return
    needed, memory = sum(tensor.nbytes for tensor in tensors), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise InputError(
            f"{what} has {needed / 2**30:,.0f} GiB of weights, and this machine {memory / 2**30:,.0f} GiB of memory; "
            "lower its arguments"
        )


def _folder_arguments(name: str) -> dict[str, Any]:
    """The arguments of a model that its folder sets, and the sizes that timm takes from its description of weights."""
    if not name.startswith("local-dir:"):
        return {}
    path = Path(name.partition(":")[2], "config.json")
    content = read_settings_file(path)
    weights, arguments = content.get("pretrained_cfg", content), content.get("model_args") or {}
    if not isinstance(weights, dict) or not isinstance(arguments, dict):
        raise InputError(f"'{path}': pretrained_cfg is {weights!r:.60}, model_args {arguments!r:.60}, not settings")
    with prefixed(f"'{path}': "):
        size = image_size(weights.get("input_size", (3, 224, 224)))
    sizes = {"num_classes": content.get("num_classes", weights.get("num_classes")), "in_chans": size[0]}
    return {**sizes, "img_size": max(size[1:]), **arguments}


def not_built(name: str, kwargs: Mapping[str, object], error: Exception) -> InputError:
    """The error for a model that timm cannot build."""
    suffix = f" with {dict(kwargs)}" if kwargs else ""
    return unknown_argument(name, kwargs, error) or InputError(f"timm cannot build '{name}'{suffix}: {one_line(error)}")


def unknown_argument(name: str, kwargs: Mapping[str, object], error: Exception) -> InputError | None:
    """The error for an argument that the class of a model does not take, if that is why it could not be built."""
    if not isinstance(error, TypeError):
        return None
    if (own := torchvision_name(name)) is not None:
        kinds = inspect.signature(torchvision.models.get_model_builder(own)).return_annotation.__mro__
    elif published_config(name) is None:
        return None
    else:
        with without_values():
            kinds = type(timm.create_model(name)).__mro__
    constructors = [vars(kind)["__init__"] for kind in kinds if "__init__" in vars(kind)]
    known = {argument: None for constructor in constructors for argument in inspect.signature(constructor).parameters}
    strange = next((key for key in kwargs if key not in known and f"'{key}'" in str(error)), None)
    allowed = [argument for argument in known if argument not in ("self", "args", "kwargs")]
    return None if strange is None else unknown(f"{name} argument", strange, allowed)
