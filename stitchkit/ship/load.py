"""Weights of a checkpoint, with the batch-norm statistics of single stitches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from stitchkit.measure.ledger import LEDGER
from stitchkit.measure.recalibrate import freezes_anchors
from stitchkit.measure.statistics_file import load_statistics
from stitchkit.model.snnet import SNNet
from stitchkit.networks import weights


def load_checkpoint(
    model: nn.Module, path: str | Path, *, ema: bool = False, ledger: str | Path | None = None
) -> dict[str, Any]:
    """Load weights into a model from a released, timm or own checkpoint, safely and completely.

    A checkpoint of ours also says how images were prepared in training, which becomes the model's `pretrained_cfg`.
    Stitches with batch norms get the statistics beside a ledger of these weights, so that they have its figures; where
    there are none, the first use of such a stitch warns.

    Args:
        model: Its names and shapes must be those of the file.
        ema: Load the moving average.
        ledger: The ledger; by default `stitches_res.txt` beside the checkpoint.

    Returns:
        The whole content of the file.

    Raises:
        InputError: If the file cannot be read or belongs to another model, which is then unchanged; or if the file of
            statistics is damaged.
    """
    content = weights.load_checkpoint(model, path, ema=ema)
    if isinstance(model, SNNet):
        loaded = weights.own_names(model, weights.weights_of(content, ema=ema))
        load_statistics(model, ledger or Path(path).with_name(LEDGER), loaded)
        model.lacks_statistics = not (model.keeps_statistics or freezes_anchors(content))
    return content
