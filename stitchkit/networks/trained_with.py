"""What a checkpoint says of its training: one place for all that open checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from stitchkit.classes import trained_classes
from stitchkit.errors import InputError
from stitchkit.networks.data_config import set_data_config, trained_data_config
from stitchkit.settings.schema import image_size

_logger = logging.getLogger(__name__)

_NOTE = "trained_with"


@dataclass(frozen=True)
class TrainedWith:
    """What a checkpoint says of its training; published checkpoints say nothing.

    Args:
        path: Its file.
        classes: Class names in the order of their numbers, one list per task. On a network, None if its classifier is
            not from the file.
        image: The preparation of images, as in `saved_data_config`; of several tasks, what they share.
        input_size: Size of an image, `(C, H, W)`.
    """

    path: str
    classes: Sequence[Sequence[str]] | None = ()
    image: Mapping[str, Any] = field(default_factory=dict)
    input_size: tuple[int, ...] | None = None

    @classmethod
    def read(cls, content: Mapping[str, object], path: str | Path) -> TrainedWith:
        """What the content of a file says; something else in its place counts as nothing."""
        saved = content.get("image")
        tasks = [trained_data_config({"image": each}) for each in (saved if isinstance(saved, list) else [saved])]
        image = tasks[0] if tasks else {}
        shared = {key: value for key, value in image.items() if all(task.get(key) == value for task in tasks)}
        size: tuple[int, int, int] | None = None
        with suppress(InputError):
            size = image_size(content.get("input_size"))
        return cls(str(path), trained_classes(content), shared, size)

    def unlike(self, here: Mapping[str, Any]) -> dict[str, Any]:
        """Its preparation and size of images, under timm's names, as far as `here` says otherwise."""
        known = {**self.image, "input_size": self.input_size or here.get("input_size")}
        return {key: value for key, value in known.items() if key in here and here[key] != value}

    def say_taken(self, taken: Mapping[str, Any], of: str = "") -> None:
        """Log in one line what is taken over from its training for the images `of` a task."""
        said = "; ".join(f"{key} {value}" for key, value in taken.items())
        _logger.info("images%s are prepared as in the training of '%s': %s", of and f" of '{of}'", self.path, said)

    def say_unlike(self, here: Mapping[str, Any]) -> None:
        """Warn in one line if images are prepared otherwise than in its training."""
        if changes := self.unlike(here):
            _logger.warning(
                "checkpoint '%s' was trained on images prepared with %s", self.path, compared(changes, here)
            )


def compared(trained: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Settings of images in training, and those here, in words."""
    return "; ".join(f"{key} {value}, here {here[key]}" for key, value in trained.items())


def take_over(
    network: nn.Module, content: Mapping[str, object], path: str | Path, *, with_classifier: bool = True
) -> TrainedWith:
    """Prepare images for a network as in the training of its weights, and note on it what their file says.

    `with_classifier` is false if the network's classifier is not from the file.
    """
    trained = TrainedWith.read(content, path)
    set_data_config(network, trained.image)
    note(network, trained if with_classifier else replace(trained, classes=None))
    return trained


def note(network: object, trained: TrainedWith | None) -> None:
    """Note on a network what the file of its weights says of their training."""
    setattr(network, _NOTE, trained)


def noted(network: object) -> TrainedWith | None:
    """What is noted on a network; None if its weights are from no file."""
    trained: TrainedWith | None = getattr(network, _NOTE, None)
    return trained


def all_noted(network: nn.Module) -> list[TrainedWith]:
    """What is noted on a network, and on the anchors of an SN-Net."""
    return [trained for each in (network, *getattr(network, "anchors", ())) if (trained := noted(each)) is not None]
