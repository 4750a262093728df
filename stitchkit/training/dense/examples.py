"""A picture beside the ledger of a dense task: some images, their truth, and what stitches of the front predict."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from stitchkit.display import counted, quantity
from stitchkit.distributed import from_primary
from stitchkit.errors import InputError
from stitchkit.measure.dense_sums import MIN_DEPTH, NOT_KNOWN
from stitchkit.measure.figure import new_figure, save_figure
from stitchkit.measure.ledger import Ledger, Row
from stitchkit.measure.metric import in_sentence, metric_of
from stitchkit.measure.pareto import pareto_front
from stitchkit.model.onepass import OnePass
from stitchkit.model.snnet import SNNet
from stitchkit.networks.mode import evaluating
from stitchkit.training.dense.data import Pair, PairLoader
from stitchkit.training.dense.windows import Windows
from stitchkit.training.session import Session

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLES = "examples.png"
"""The picture's name in the folder of a run."""
_MOST_IMAGES, _MOST_NAMES = 4, 20
_GREY = (0.6, 0.6, 0.6)
_TURN = 0.618034  # of the colour circle from a class to the next: the golden ratio keeps any number of them apart
_DEPTHS = "viridis_r"

Map = npt.NDArray[Any]
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """An image with what is true and what stitches predict at each pixel, `[H, W]`: classes, or metres."""

    image: Map  # RGB in 0 to 1, `[H, W, 3]`
    truth: Map
    known: Map  # whether the truth of a pixel counts
    predicted: tuple[Map, ...]


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
    run, task = OnePass(model, cfg_ids).outputs, session.recipe.dense.task
    numbers = np.linspace(0, len(pairs) - 1, min(_MOST_IMAGES, len(pairs))).round().astype(int)
    shown = []
    for number in numbers.tolist():
        image, target = (part.to(device) for part in pairs[number])
        image = image.to(loader.dtype)
        # One at a time, since outputs for all pixels are large.
        with torch.no_grad(), evaluating(model), session.autocast():
            outputs = windows.outputs(run, [image], loader.batch_size)
            maps = {cfg_id: predicted_map(next(merged([target])), task) for cfg_id, merged in outputs}
        shown.append(_example(session, (image, target), [maps[cfg_id] for cfg_id in cfg_ids]))
    return shown


def predicted_map(output: torch.Tensor, task: str) -> Map:
    """Classes or metres `[H, W]`, of outputs `[K, H, W]` for a task."""
    return (output[0] if task == "depth" else output.argmax(dim=0)).float().cpu().numpy()


def _example(session: Session, pair: Pair, predicted: Sequence[Map]) -> Example:
    image, target = (part.cpu() for part in pair)
    image = image.float()
    mean, std = (torch.tensor(colour)[:, None, None] for colour in (session.loaders.mean, session.loaders.std))
    pixels = (image * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
    is_depth, most = session.recipe.dense.task == "depth", session.recipe.dense.max_depth
    known = (target > MIN_DEPTH) & (target <= most) if is_depth else target != NOT_KNOWN
    return Example(pixels, target.numpy(), known.numpy(), tuple(predicted))


def class_colours(count: int) -> Map:
    """A colour in 0 to 1 for each class, `[count, 3]`; that of a class does not depend on how many there are."""
    from matplotlib.colors import hsv_to_rgb  # slow to import

    numbers = np.arange(count)
    saturations, values = np.array([0.75, 0.45, 0.9])[numbers % 3], np.array([0.9, 0.75, 0.6, 1.0])[numbers % 4]
    return np.asarray(hsv_to_rgb(np.stack([(0.6 + numbers * _TURN) % 1, saturations, values], axis=1)))


def _figure(session: Session, shown: Sequence[Row], drawn: Sequence[Example]) -> Figure:
    metric = metric_of(shown)
    name = in_sentence(metric)
    labels = [f"{row['stitch']}\n{name} {row[metric]:.1f} %\n{quantity(row['flops'])} FLOPs" for row in shown]
    titles = ["image", "truth", *labels]
    is_depth = session.recipe.dense.task == "depth"
    figure = new_figure(2.3 * len(titles), 2.2 * len(drawn) + 1.3)
    grid = figure.subplots(len(drawn), len(titles), squeeze=False)
    paint = _depth_paint(figure, grid, drawn) if is_depth else _class_paint(figure, session)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, size="small", parse_math=False)
    for line, example in zip(grid, drawn, strict=True):
        line[0].imshow(example.image)
        pictures = [paint(values) for values in (example.truth, *example.predicted)]
        pictures[0][~example.known] = _GREY
        for axes, picture in zip(line[1:], pictures, strict=True):
            axes.imshow(picture, interpolation="nearest")
    for axes in grid.flat:
        axes.set_axis_off()
    return figure


_Paint = Callable[[Map], Map]
"""The colours `[H, W, 3]` of a map, wherever its values count."""


def _class_paint(figure: Figure, session: Session) -> _Paint:
    """Colours of classes; few have their names below."""
    from matplotlib.patches import Patch

    judged = session.loaders.validation
    assert isinstance(judged, PairLoader), "it is of a dense task"
    colours = class_colours(judged.dataset.num_classes)
    if len(colours) <= _MOST_NAMES:
        names = session.classes or tuple(map(str, range(len(colours))))
        patches = [Patch(color=colour, label=name) for colour, name in zip(colours, names, strict=True)]
        patches.append(Patch(color=_GREY, label="ignored"))
        legend = figure.legend(handles=patches, loc="outside lower center", ncols=6, frameon=False, fontsize="small")
        for text in legend.get_texts():
            text.set_parse_math(False)
    return lambda classes: colours.take(classes.astype(int), axis=0, mode="clip")


def _depth_paint(figure: Figure, grid: Map, drawn: Sequence[Example]) -> _Paint:
    """Colours of depths, all on the scale of the known ones."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    known = np.concatenate([example.truth[example.known] for example in drawn])
    scale = Normalize(*((known.min(), known.max()) if known.size else (0, 1)))
    colours = colormaps[_DEPTHS]
    bar = figure.colorbar(ScalarMappable(scale, colours), ax=grid, location="bottom", shrink=0.5, aspect=40)
    bar.set_label("depth (m)")
    return lambda depths: colours(scale(depths))[..., :3]
