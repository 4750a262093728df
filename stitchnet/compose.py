"""A whole composition: images from a folder, a search, the best networks judged and written."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from stitchkit.config import AnchorSpec, StitchConfig
from stitchkit.errors import InputError
from stitchkit.measure.ledger import write_rows
from stitchkit.measure.pareto import table
from stitchnet.composition import Composition
from stitchnet.data import image_folder, stitching_images
from stitchnet.net import Net
from stitchnet.scores import Scores
from stitchnet.search import Search

LEDGER = "stitches_res.txt"
_VALIDATION = ("validation", "val", "test")


def compose(
    data: Path,
    output: Path,
    *,
    nets: str,
    pretrained: bool,
    top: int,
    num_images: int,
    img_size: int,
    score: str,
    classifier: str,
    seed: int,
    **options: Any,
) -> None:
    """Search, then write the ledger, the drawings and the networks.

    Args:
        data: Image folder with `train/` and `validation/`.
        output: Folder to write.
        nets: Names of networks with commas between, or the path of a stitch configuration.
        pretrained: Fetch their weights.
        top: How many networks are built. With the order `best` the search ends with them; else all are searched.
        num_images: Stitching images.
        img_size: Side of the images.
        score: How fragments are compared.
        classifier: What is fitted to the outputs of the networks.
        seed: Which images are drawn.
        options: Of `Search`.

    Raises:
        InputError: If anything that was given cannot be used, or nothing is found.
    """
    train = image_folder(data / "train", img_size)
    validation = image_folder(_validation_folder(data), img_size)
    images = stitching_images(train, num_images, seed=seed)
    search = Search(images, nets=_nets(nets), pretrained=pretrained, scores=Scores(score, seed=seed), **options)
    print(f"{len(search.pool.fragments)} fragments of {len(search.pool.specs)} networks")
    best = _best(search, top)
    print(f"compositions: {search.counts}")
    if not best:
        raise InputError(f"no composition passes ({search.counts}); lower --threshold or --total-threshold")
    rows = []
    for number, composition in enumerate(best):
        net = search.build(composition).fit(train, classifier=classifier)
        rows.append({"cfg_id": number, **_row(net), "acc1": 100 * net.evaluate_dataset(validation)["accuracy"]})
        net.save(output / f"{number:03d}")
        net.draw_svg(output / f"{number:03d}" / "net.svg")
        write_rows(output / LEDGER, rows)
    print(table(rows))
    print(f"the ledger is {output / LEDGER}; beside it, for each cfg_id, a folder with the network and its drawing")


def _best(search: Search, top: int) -> list[Composition]:
    """The compositions of highest score, best first."""
    found: Iterable[Composition] = search.compositions()
    if search.order == "best":
        found = islice(found, top)
    best: list[Composition] = []
    with tqdm(found, desc="composing", unit=" found", leave=False, disable=None) as progress:
        for composition in progress:
            progress.set_postfix_str(str(search.counts))
            best = sorted([*best, composition], key=lambda one: -one.score)[:top]
    return best


def _row(net: Net) -> dict[str, Any]:
    cost = net.get_macs_params()
    return {"stitch": net.name, "flops": cost["macs"], "params": cost["params"], "score": net.score}


def _nets(nets: str) -> list[AnchorSpec | str]:
    if not nets.endswith(".json"):
        return [name.strip() for name in nets.split(",")]
    return list(StitchConfig.load(nets).anchors)


def _validation_folder(data: Path) -> Path:
    for name in _VALIDATION:
        if (data / name).is_dir():
            return data / name
    raise InputError(f"'{data}' has none of the folders {', '.join(_VALIDATION)}; give one with images to validate")
