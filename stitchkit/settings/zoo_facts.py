"""What a configuration of the zoo says about itself, so that the zoo is listed without building networks."""

from __future__ import annotations

from pydantic import Field, StrictStr
from pydantic.dataclasses import dataclass

from stitchkit.settings.fields import Amount, Classes, Count, Natural, Side
from stitchkit.settings.schema import Settings


@dataclass(frozen=True)
class ZooFacts(Settings):
    """What a configuration of the zoo says about itself; `docs/zoo_table.py` measures it.

    Args:
        stitches: Number of stitches.
        flops: FLOPs of the cheapest and of the costliest stitch, for one image.
        input_size: Channels, height and width of an image.
        num_classes: Number of classes; 0 for networks without a classifier.
        licence: Licence of the weights as timm states it, such as `apache-2.0`.
        tokens: Of networks without a classifier, the features of each anchor: prefix tokens, rows and columns.
    """

    stitches: Count
    flops: tuple[Amount, Amount]
    input_size: tuple[Side, Side, Side]
    num_classes: Classes
    licence: StrictStr = Field(min_length=1)
    tokens: tuple[tuple[Natural, Count, Count], ...] = ()

    @property
    def classes(self) -> str:
        """The number of classes in words."""
        return str(self.num_classes) if self.num_classes else "headless"

    @property
    def image(self) -> str:
        """The size of an image in words: `224`, or `224x192` if it is not square."""
        _, height, width = self.input_size
        return str(height) if height == width else f"{height}x{width}"

    @property
    def positions(self) -> str:
        """The features in words: `16 x 16 + 5` with five prefix tokens; of each anchor, if they differ."""
        words = [f"{height} x {width}" + f" + {prefix}" * (prefix > 0) for prefix, height, width in self.tokens]
        return ", ".join(words if len({*words}) > 1 else words[:1])
