"""The sizes of the study: networks, data, and the training that each row may spend."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large everything in the study is.

    Args:
        widths: Channels of the second stage of ConvNeXts that differ in nothing else: the first stage has half as many,
            the later ones twice as many. The first and the last network are the anchors.
        depths: Blocks of each stage.
        side: Pixels of an image.
        images: Of each class, by split. Networks are chosen on `validation` and judged on `test`.
        pretraining: Epochs of the anchors, which are given to every row.
        budget: Multiply-adds that a row may spend on its training, with that of teachers and choices.
        warmup: Share of the steps with a rising learning rate.
        lr: Learning rate of networks that start from trained weights.
        lr_scratch: Learning rate of random ones.
        amp: Train in bfloat16.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    side: int
    images: dict[str, int]
    pretraining: int
    budget: float
    batch_size: int
    warmup: float = 0.1
    lr: float
    lr_scratch: float
    rank: int
    amp: bool = False

    @property
    def anchors(self) -> tuple[int, int]:
        """Widths of the cheap and the costly anchor."""
        return self.widths[0], self.widths[-1]

    @property
    def between(self) -> tuple[int, ...]:
        """Widths of the networks between the anchors."""
        return self.widths[1:-1]


SIZES = {
    "cpu": Size(
        widths=(16, 24, 32, 40, 48, 64), depths=(2, 4, 4, 1), side=32,
        images={"train": 400, "validation": 50, "test": 100}, pretraining=30, budget=1.5e12, batch_size=64, lr=1e-3,
        lr_scratch=3e-3, rank=16,
    ),
    "gpu": Size(
        widths=(64, 96, 128, 160, 192, 256), depths=(3, 3, 9, 3), side=64,
        images={"train": 2000, "validation": 100, "test": 200}, pretraining=30, budget=4e14, batch_size=256, lr=1e-3,
        lr_scratch=3e-3, rank=32, amp=True,
    ),
}  # fmt: skip
"""By name: a row of one seed trains for 70 to 200 s on one core (see `records`); on a GPU it was not measured."""
