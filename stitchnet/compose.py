"""A whole composition: images from a folder, a search, and the best networks evaluated and written."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from stitchkit.display import counted
from stitchkit.errors import InputError
from stitchkit.files import own_folder, write_text
from stitchkit.measure.ledger import Row, write_rows
from stitchkit.settings.files import settings_text
from stitchkit.settings.stitch_config import AnchorSpec, StitchConfig
from stitchnet.composition import Composition
from stitchnet.data import stitching_images
from stitchnet.drawing import write_contact_sheet
from stitchnet.journal import Journal
from stitchnet.net import ABOUT, WEIGHTS
from stitchnet.networks import specified
from stitchnet.pool import Pool
from stitchnet.scores import Scores
from stitchnet.search import Search
from stitchnet.settings import ComposeSettings
from stitchnet.task import CompositionTask, against_parents, judged

LEDGER, SHEET = "stitches_res.txt", "networks.html"
_SETTINGS = "compose.yaml"
"""The settings of a composition, for people and for the report."""
_DRAWING = "net.svg"
_SEARCH = ("threshold", "total_threshold", "max_depth", "width", "order", "max_macs", "max_params", "pretrained")
"""Settings that are arguments of `Search`."""


def networks_of(settings: ComposeSettings) -> list[AnchorSpec]:
    """The specifications of the networks, as `specified` checks them."""
    is_config = settings.nets.endswith(".json")
    return specified(list(StitchConfig.load(settings.nets).anchors) if is_config else settings.nets)


def begin_search(task: CompositionTask, settings: ComposeSettings, journal: Journal) -> Search:
    """A search with images of a task, resumed from a journal."""
    images = stitching_images(task.train, settings.num_images, seed=settings.seed).to(settings.device or "cpu")
    nets = networks_of(settings)
    scores = Scores(settings.score, seed=settings.seed)
    search = Search(images, nets=nets, scores=scores, **{name: getattr(settings, name) for name in _SEARCH})
    output_map = None if isinstance(task.classifier, str) else repr(task.classifier)
    journal.agree_on_content({"images and weights": _digest(search.pool, task), "output map": output_map})
    search.journal = journal
    return search


def find_best(search: Search, top: int) -> list[Composition]:
    """The `top` compositions with the highest scores, best first, without the uncut networks.

    With the order `best` the search ends with them; otherwise it visits all compositions.
    """
    found: Iterable[Composition] = (one for one in search.compositions() if not one.is_uncut)
    if search.order == "best":
        found = islice(found, top)
    with tqdm(found, desc="composing", unit=" found", leave=False, disable=None) as progress:
        search.on_step = lambda counts: progress.set_postfix_str(str(counts))
        best = heapq.nlargest(top, progress, key=lambda one: one.score)
    search.on_step = lambda _: None  # the closed bar must not be drawn again
    if not best:
        raise InputError(
            f"no composition passes except the uncut networks ({search.counts}); lower --threshold or --total-threshold"
        )
    return best


def compose(task: CompositionTask, settings: ComposeSettings, journal: Journal) -> None:
    """Search, then write the ledger, the drawings and the networks beside the journal."""
    output = journal.path.parent

    def folder(number: int) -> Path:
        return output / f"{number:03d}"

    def is_written(number: int) -> bool:
        return all((folder(number) / name).is_file() for name in (WEIGHTS, ABOUT, _DRAWING))

    search = begin_search(task, settings, journal)
    write_text(output / _SETTINGS, settings_text(asdict(settings)))
    print(f"{counted(len(search.pool.fragments), 'fragment')} of {counted(len(search.pool.specs), 'network')}")
    best = find_best(search, settings.top)
    rows: list[Row] = []
    found = judged(search, best, task, journal, is_written=is_written)
    for row, net in tqdm(found, desc="evaluating", unit=" networks", leave=False, disable=None):
        rows.append(row)
        if net is not None:
            # The row is written last, and only then added to the journal, so every row has a complete network.
            place = own_folder(folder(row["cfg_id"]))
            net.save(place)
            net.draw_svg(place / _DRAWING)
            write_rows(output / LEDGER, rows)
    write_rows(output / LEDGER, rows)  # a journal may have all rows, and somebody may have removed the ledger
    write_contact_sheet(rows, [folder(row["cfg_id"]) / _DRAWING for row in rows], output / SHEET)
    print(f"compositions: {search.counts}")
    print(against_parents(rows))
    print(f"all are evaluated by --classifier {settings.classifier}; * marks the parents")
    print(f"the ledger is {output / LEDGER}; beside it, for each cfg_id, a folder with the network and its drawing")
    print(f"{output / SHEET} shows all of them; open it in a browser")


def _digest(pool: Pool, task: CompositionTask) -> str:
    """A hash of the images, labels and weights, which may change in files of the same name."""
    digest = hashlib.blake2b(task.digest.encode(), digest_size=16)
    weights = nn.ModuleList(fragment.module for fragment in pool.fragments).state_dict()
    for name, value in {"images": pool.images, **weights}.items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
