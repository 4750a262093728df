"""A picture beside the ledger of a dense task: some images, their truth, and what stitches of the front predict."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from stitchkit.display import counted, quantity
from stitchkit.distributed import from_primary
from stitchkit.errors import InputError
from stitchkit.measure.figure import new_figure, save_figure
from stitchkit.measure.ledger import Ledger, Row
from stitchkit.measure.metric import in_sentence, metric_of
from stitchkit.measure.pareto import pareto_front
from stitchkit.model.onepass import OnePass
from stitchkit.model.snnet import SNNet
from stitchkit.networks.mode import evaluating
from stitchkit.tasks.table import TASKS
from stitchkit.tasks.task import GREY, Example, Map
from stitchkit.tasks.windows import Windows
from stitchkit.training.pair_data import Pair, PairLoader
from stitchkit.training.session import Session

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLES = "examples.png"
"""The picture's name in the folder of a run."""
_MOST_IMAGES = 4
_logger = logging.getLogger(__name__)


def write_examples(session: Session, model: SNNet, ledgers: Sequence[Ledger]) -> None:
    """Draw four images of the validation split and three stitches of the front of a ledger, on the primary rank.

    The figures are complete without the picture, so if it cannot be drawn, the log says why.
    """
    shown = [row for ledger in ledgers for row in shown_stitches(ledger.rows)]

    def draw() -> None:
        if not shown:
            return
        path = session.folder / EXAMPLES
        try:
            save_figure(_figure(session, shown, examples(session, model, [row["cfg_id"] for row in shown])), path)
        except (InputError, ImportError) as error:
            _logger.warning("'%s' is not drawn: %s", path, error)
            return
        stitches = counted(len(shown), "stitch")
        _logger.info("%s shows images and their truth, with the predictions of %s of the front", path, stitches)

    from_primary(session.world, draw)


def shown_stitches(rows: Sequence[Row]) -> list[Row]:
    """The cheapest, a middle and the costliest row of the front, as far as they differ."""
    front = pareto_front(rows)
    return [front[index] for index in sorted({0, len(front) // 2, len(front) - 1})]


def examples(session: Session, model: SNNet, cfg_ids: Sequence[int]) -> list[Example]:
    """What stitches make of images that are evenly spread over the validation split."""
    loader = session.loaders.validation
    assert isinstance(loader, PairLoader), "it is of a dense task"
    pairs, device = loader.dataset, session.world.device
    windows = Windows.of_task(session.recipe.dense, (session.input_size[1], session.input_size[2]))
    run, task = OnePass(model, cfg_ids).outputs, TASKS[session.recipe.dense.task]
    numbers = np.linspace(0, len(pairs) - 1, min(_MOST_IMAGES, len(pairs))).round().astype(int)
    shown = []
    for number in numbers.tolist():
        image, target = (part.to(device) for part in pairs[number])
        image = image.to(loader.dtype)
        # One at a time, since outputs for all pixels are large.
        with torch.no_grad(), evaluating(model), session.autocast():
            outputs = windows.outputs(run, [image], loader.batch_size)
            maps = {cfg_id: task.predicted(next(merged([target]))) for cfg_id, merged in outputs}
        shown.append(_example(session, (image, target), [maps[cfg_id] for cfg_id in cfg_ids]))
    return shown


def _example(session: Session, pair: Pair, predicted: Sequence[Map]) -> Example:
    image, target = (part.cpu() for part in pair)
    image = image.float()
    mean, std = (torch.tensor(colour)[:, None, None] for colour in (session.loaders.mean, session.loaders.std))
    pixels = (image * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
    known = TASKS[session.recipe.dense.task].known(target, session.recipe.dense)
    return Example(pixels, target.numpy(), known.numpy(), tuple(predicted))


def _figure(session: Session, shown: Sequence[Row], drawn: Sequence[Example]) -> Figure:
    metric = metric_of(shown)
    name = in_sentence(metric)
    labels = [f"{row['stitch']}\n{name} {row[metric]:.1f} %\n{quantity(row['flops'])} FLOPs" for row in shown]
    titles = ["image", "truth", *labels]
    figure = new_figure(2.3 * len(titles), 2.2 * len(drawn) + 1.3)
    grid = figure.subplots(len(drawn), len(titles), squeeze=False)
    paint = TASKS[session.recipe.dense.task].paint(figure, grid, drawn, session.loaders.validation.dataset.outputs)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, size="small", parse_math=False)
    for line, example in zip(grid, drawn, strict=True):
        line[0].imshow(example.image)
        pictures = [paint(values) for values in (example.truth, *example.predicted)]
        pictures[0][~example.known] = GREY
        for axes, picture in zip(line[1:], pictures, strict=True):
            axes.imshow(picture, interpolation="nearest")
    for axes in grid.flat:
        axes.set_axis_off()
    return figure
