"""A whole composition: images from a folder, a search, and the best networks evaluated and written."""

from __future__ import annotations

import argparse
import hashlib
import heapq
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import TypeVar

import torch
from pydantic import FiniteFloat
from torch import nn
from tqdm import tqdm
from typing_extensions import TypedDict

from stitchkit.data.open_dataset import agreed_classes
from stitchkit.display import aligned, counted, quantity
from stitchkit.distributed import choose_device
from stitchkit.errors import InputError, NotFinite
from stitchkit.files import own_folder, write_text
from stitchkit.measure.ledger import Row, write_rows
from stitchkit.measure.pareto import is_anchor
from stitchkit.settings.files import settings_text
from stitchkit.settings.schema import parse
from stitchkit.settings.stitch_config import AnchorSpec, StitchConfig
from stitchnet.activations import Scores
from stitchnet.classifier import OutputMap
from stitchnet.composition import Composition, Pool, uncut
from stitchnet.data import Examples, batches, in_memory, open_split, stitching_images
from stitchnet.journal import Journal, resumable
from stitchnet.net import ABOUT, WEIGHTS, Net
from stitchnet.networks import specified
from stitchnet.search import Search
from stitchnet.settings import ComposeSettings, flag_of

_logger = logging.getLogger(__name__)

Kind = TypeVar("Kind", bound=ComposeSettings)


class JudgedNetwork(TypedDict):
    """The figures of a network, as a journal keeps them."""

    stitch: str
    flops: int
    params: int
    score: FiniteFloat
    acc1: FiniteFloat


@dataclass(frozen=True)
class CompositionTask:
    """Images to fit classifiers to the outputs of networks, or a map of outputs; and others to evaluate."""

    train: Examples
    validation: Examples
    output_map: OutputMap | None = None
    classes: Sequence[str] = ()

    @classmethod
    def load(
        cls, data: str | Path, img_size: int, classifier: str = "knn", output_map: str | None = None, *,
        download: bool = False,
    ) -> CompositionTask:  # fmt: skip
        """A task from an image folder with `train/` and `validation/`, or from a data set by name."""
        if output_map is None and classifier != "knn":
            raise InputError(f"--classifier {classifier} needs --output-map; name the file")
        if output_map is not None and classifier == "knn":
            raise InputError("--output-map is not for --classifier knn; choose max, sum or argmax")
        train, validation = (open_split(data, split, img_size, download=download) for split in ("train", "validation"))
        classes = agreed_classes(train.dataset, validation.dataset)
        mapped = None if output_map is None else OutputMap.read(output_map, classifier, classes)
        return cls(in_memory(train), in_memory(validation), mapped, classes)

    @cached_property
    def digest(self) -> str:
        """A hash of all images and labels: files of the same names may hold others."""
        digest = hashlib.blake2b(digest_size=16)
        for split in (self.train, self.validation):
            for images, labels in batches(split):
                digest.update(images.contiguous().numpy().data)
                digest.update(labels.data)
        return digest.hexdigest()

    def accuracy(self, net: Net) -> float:
        """Give a network its classifier; the percentage of the validation images that it then classifies correctly."""
        if self.output_map is None:
            net.fit(self.train)
        else:
            net.classifier = self.output_map
        return 100 * net.evaluate_dataset(self.validation)["accuracy"]


def judged(
    search: Search, compositions: Iterable[Composition], task: CompositionTask, journal: Journal | None = None, *,
    is_written: Callable[[int], bool] = lambda _: True,
) -> Iterator[tuple[Row, Net | None]]:  # fmt: skip
    """The uncut networks, then the composed ones, all evaluated alike; each with its row of the ledger.

    The row of a composed network also has `parents_acc1`, the mean of its parents. A composed network whose outputs are
    not finite is skipped and counted. Rows of the journal come without a network, unless a file of theirs is missing. A
    new row enters the journal only when the next one is requested: after the caller has written all files of the row.
    """
    alone: dict[str, float] = {}
    number = 0
    for composition in (*uncut(search.pool.fragments), *compositions):
        net = None
        figures = kept = _recalled(composition, journal) if journal else None
        if figures is None or (figures and not is_written(number)):
            net = search.build(composition)
            figures = _judge(net, composition, task)
        row = {"cfg_id": number, **figures} if figures else {}
        if row:
            number += 1
            if composition.is_uncut:
                alone[composition.fragment.network] = row["acc1"]
            else:
                row["parents_acc1"] = fmean(alone[label] for label in {part.network for part in composition.fragments})
            yield row, net
        else:
            search.counts.skipped["its outputs are not finite"] += 1
        if journal is not None and figures != kept:
            journal.add(row, "row", composition.name)


def _recalled(composition: Composition, journal: Journal) -> Row | None:
    """A network's figures from the journal; empty if its outputs are not finite."""
    if journal.find(dict[str, object], "row", composition.name) == {} and not composition.is_uncut:
        return {}
    row = journal.find(JudgedNetwork, "row", composition.name)
    return None if row is None else Row(**row)


def _judge(net: Net, composition: Composition, task: CompositionTask) -> Row:
    """The figures of a network; empty if its outputs are not finite."""
    try:
        accuracy = task.accuracy(net)
    except NotFinite as error:
        if composition.is_uncut:
            raise InputError(f"network '{composition.fragment.network}': {error}") from error
        return {}
    cost = net.get_macs_params()
    return {
        "stitch": net.name, "flops": cost["macs"], "params": cost["params"], "score": net.score, "acc1": accuracy
    }  # fmt: skip


def against_parents(rows: Iterable[Row]) -> str:
    """A table of the rows from `judged`, the parents marked with `*`, and a line on how many beat their parents."""
    head = ["", "cfg_id", "network", "FLOPs", "params", "score", "acc1", "parents", "gain"]
    body, composed = [], []
    for row in rows:
        parents = ["-", "-"]
        if "parents_acc1" in row:
            composed.append(row)
            parents = [f"{row['parents_acc1']:.2f}", f"{_gain(row):+.2f}"]
        mark = "*" if is_anchor(row) else ""
        figures = [quantity(row["flops"]), quantity(row["params"]), f"{row['score']:.3f}", f"{row['acc1']:.2f}"]
        body.append([mark, str(row["cfg_id"]), row["stitch"], *figures, *parents])
    return f"{aligned([head, *body], left={0, 2})}\n{_verdict(composed)}"


def _verdict(composed: list[Row]) -> str:
    better = [row for row in composed if _gain(row) > 0]
    if not better:
        return "no composed network beats the average of its parents"
    best = max(better, key=lambda row: row["acc1"])
    return (
        f"{len(better)} of {len(composed)} composed networks beat the average of their parents, without training; "
        f"the most accurate is {best['cfg_id']}: {best['acc1']:.2f} against {best['parents_acc1']:.2f} %"
    )


def _gain(row: Row) -> float:
    return float(row["acc1"] - row["parents_acc1"])


LEDGER = "stitches_res.txt"
_SETTINGS = "compose.yaml"  # the settings of a composition, for people and for the report
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
    output_map = None if task.output_map is None else repr(task.output_map)
    journal.agree_on_content({"images and weights": _digest(search.pool, task), "output map": output_map})
    search.journal = journal
    return search


def find_best(search: Search, top: int) -> list[Composition]:
    """The `top` compositions with the highest scores, best first, without the uncut networks.

    With the order `best` the search ends with them; otherwise it visits all compositions.
    """
    passing = (composition for composition in search.compositions() if not composition.is_uncut)
    first = islice(passing, top if search.order == "best" else None)
    with tqdm(first, desc="composing", unit=" found", leave=False, disable=None) as progress:
        search.on_step = lambda counts: progress.set_postfix_str(str(counts))
        best = heapq.nlargest(top, progress, key=lambda composition: composition.score)
    search.on_step = lambda _: None  # the closed bar must not be drawn again
    if not best:
        raise InputError(f"no composition passes ({search.counts}); lower --threshold or --total-threshold")
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
    results = judged(search, best, task, journal, is_written=is_written)
    for row, net in tqdm(results, desc="evaluating", unit=" networks", leave=False, disable=None):
        rows.append(row)
        if net is not None:
            # The row is written last, and only then added to the journal, so every row has a complete network.
            own = own_folder(folder(row["cfg_id"]))
            net.save(own)
            net.draw_svg(own / _DRAWING)
            write_rows(output / LEDGER, rows)
    write_rows(output / LEDGER, rows)  # a journal may have all rows, and somebody may have removed the ledger
    print(f"compositions: {search.counts}")
    print(against_parents(rows))
    print(f"all are evaluated by --classifier {settings.classifier}; * marks the parents")
    print(f"the ledger is {output / LEDGER}; beside it, for each cfg_id, a folder with the network and its drawing")


def _digest(pool: Pool, task: CompositionTask) -> str:
    """A hash of the images, labels and weights, which may change in files of the same name."""
    digest = hashlib.blake2b(task.digest.encode(), digest_size=16)
    weights = nn.ModuleList(fragment.module for fragment in pool.fragments).state_dict()
    for name, value in {"images": pool.images, **weights}.items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def run(flags: argparse.Namespace) -> None:
    """Run `stitchkit compose`."""
    with begun("compose", flags, ComposeSettings, LEDGER) as (task, settings, journal):
        compose(task, settings, journal)


@contextmanager
def begun(
    name: str, flags: argparse.Namespace, kind: type[Kind], *results: str
) -> Iterator[tuple[CompositionTask, Kind, Journal]]:
    """The task of a command, its settings, and the journal in its folder for resuming it."""
    values = vars(flags)
    folder, download = Path(values.pop("output")), values.pop("download", False)
    values["device"] = str(choose_device(values.get("device")))
    # A resumed command may name the same file by another path.
    is_file = {"data": Path(flags.data).is_dir(), "nets": values.get("nets", "").endswith(".json"), "output_map": True}
    for key in values.keys() & is_file.keys():
        if is_file[key]:
            values[key] = str(Path(values[key]).resolve())
    settings = parse(kind, values, name=flag_of)
    by_flag = {flag_of(key): value for key, value in asdict(settings).items()}
    with _plain_warnings(), resumable(folder, name, by_flag, results, growing="--top") as journal:
        torch.manual_seed(settings.seed)  # for random weights
        networks_of(settings)  # a wrong name must not wait until all images are read
        task = CompositionTask.load(
            settings.data, settings.img_size, settings.classifier, settings.output_map, download=download
        )
        yield task, settings, journal


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Log Python's warnings as a line, without a place in our code."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _logger.warning("%s", message)
        yield
