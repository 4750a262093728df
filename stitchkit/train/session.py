"""The session: the open data and the network that training and evaluation share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import nn

from stitchkit.data.loaders import Loaders
from stitchkit.distributed import World
from stitchkit.engine.precision import Autocast, create_precision
from stitchkit.files import write_text
from stitchkit.settings.files import settings_text
from stitchkit.settings.recipe import Recipe
from stitchkit.settings.stitch_config import StitchConfig


@dataclass(frozen=True)
class Session:
    """A run with open data and a built network.

    Args:
        recipe: All settings.
        config: The stitch configuration; None for a plain model.
        model: The SN-Net or plain model, on the device of this rank.
        loaders: The data.
        input_size: Size of an input image, `(C, H, W)`.
        classes: Class names in the order of their numbers; empty where the dataset does not know them.
        world: This process among all.
        folder: The folder of the run.
    """

    recipe: Recipe
    config: StitchConfig | None
    model: nn.Module
    loaders: Loaders
    input_size: tuple[int, ...]
    classes: tuple[str, ...]
    world: World
    folder: Path

    @cached_property
    def autocast(self) -> Autocast:
        """The context of forward passes in an evaluation."""
        return create_precision(self.world.device, amp=self.recipe.optim.amp, amp_dtype=self.recipe.optim.amp_dtype)[0]

    def save_settings(self, name: str) -> None:
        """Save the effective settings in the run's folder, as a file for `-c`."""
        write_text(self.folder / name, settings_text(self.recipe.for_files()))
