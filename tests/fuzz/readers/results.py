"""Readers of results: ledgers, tables of runs and jobs, and choices among what a ledger holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from stitchkit.assembly.sweep.report.tables import collect
from stitchkit.display import count
from stitchkit.measure.evaluate import Unfinished
from stitchkit.measure.intervals import add_intervals
from stitchkit.measure.ledger import Ledger, read_rows, strict_json
from stitchkit.measure.ledger_origin import read_origin
from stitchkit.measure.overlay import read_overlay, verdict
from stitchkit.measure.pareto import in_view, pareto_front, table
from stitchkit.measure.per_class import write_per_class
from stitchkit.measure.per_image import PerImage
from stitchkit.measure.profile import Cost
from stitchkit.measure.scores import AccuracyScore
from stitchkit.measure.statistics_file import read_statistics
from stitchkit.model.snnet import SNNet
from stitchkit.model.statistics import copied_statistics, weights_digest
from stitchkit.routes import Stitch, StitchSpace
from stitchkit.settings.recipe import Recipe
from stitchkit.ship.pick import Budget, pick
from stitchkit.ship.report import _training, read_ledgers
from stitchkit.training.summary import cut_summaries, read_summary
from tests.fuzz.inputs import Seed, in_lines, in_yaml
from tests.fuzz.readers.base import JSON, LINES, ROWS, SETTINGS, Reader, arguments
from tests.support import ROOT, family_snnet, pico_snnet

_LEDGER = "stitches_res.txt"
_SPACE = StitchSpace(dict(enumerate(map(Stitch.parse, ["ti[0:3]", "s[0:3]", "b[0:3]", "ti[0:1] > s[1:3]"]))), {}, 3)


def _read_ledger(path: Path) -> object:
    rows = read_rows(path)
    add_intervals(rows, None)
    table([row for row in rows if row.keys() >= {"flops", "params"}])
    pick(rows, Budget(max_flops=15))
    return pareto_front(rows), Ledger(path, _SPACE, lambda cfg_id: Cost(10 + 10 * (cfg_id > 2), 5, 1)).missing


def _published_rows() -> Seed:
    lines = (ROOT / "results/digits_vit" / _LEDGER).read_text().splitlines()[:4]
    return Seed([json.loads(line) for line in lines], LINES)


def _recipe_beside_a_ledger(folder: Path) -> list[Seed]:
    (folder / _LEDGER).write_text(in_lines(ROWS))
    return [Seed(Recipe().flat(), SETTINGS)]


def _read_losses(path: Path) -> None:
    strict_json(_training(path.parent))
    cut_summaries(path.parent, 1)


def _read_summary(path: Path) -> None:
    read_summary(path.parent)
    _read_losses(path)


def _read_overlay(path: Path) -> object:
    models = read_overlay([path], ["flops", "params"]).models
    return verdict(ROWS, models, "flops"), in_view(models, ROWS, "flops")


def _continue_per_class(path: Path) -> None:
    images = PerImage.of_all([1], AccuracyScore(), np.array([[[True], [False]]]), np.array([[0], [1]]))
    write_per_class(path.parent, ["a", "b"], images, {"1": 1}, keep=["0"])


def _with_hits(text: bytes) -> bytes:
    tensors = {name: torch.full((2, 1), 255).byte() for name in ("right", "seen")}
    tensors["totals"] = torch.zeros(2, 2).double()
    names = torch.tensor([*b'["a", "b", "c"]']).byte()
    return save({**tensors, "labels": torch.zeros(3).int(), "names": names}, {"about": text.decode(errors="replace")})


@cache
def _snnet() -> SNNet:
    return family_snnet("resnet")


def _with_statistics(text: bytes) -> bytes:
    """The statistics of the norms of a stitch."""
    tensors = {f"2.{name}": value for name, value in copied_statistics(_snnet().norms_of(2)).items()}
    return save(tensors, {"about": text.decode(errors="replace")})


def _of_statistics() -> Seed:
    routes = {"2": {"stitch": _snnet().space[2].name, "bn": "renewed", "recalibrate_bn": 2}}
    about = {
        "format": "stitchkit statistics 1",
        "weights_sha256": weights_digest(_snnet().state_dict()),
        "origin": None,
    }
    return Seed({**about, "routes": routes}, JSON)


def _with_sums(text: bytes) -> bytes:
    """Of two networks on one image, of which each predicts one class."""
    numbers = {"counts": torch.ones(2, 1), "columns": torch.full((2,), 3)}
    tensors = {name: each.to(torch.uint16) for name, each in numbers.items()}
    tensors |= {"values": torch.full((2,), 5).int(), "truth": torch.tensor([[5, 0]]).int()}
    tensors["names"] = torch.tensor([*b'["a"]']).byte()
    return save(tensors, {"about": text.decode(errors="replace")})


_SUMS: dict[str, object] = {"format": "stitchkit sums 1", "cfg_ids": [0, 3], "task": "segmentation", "num_classes": 2}
_METADATA = Seed(
    {
        "arch": "a", "adapter": "linear", "first_deleted_block": 1, "last_deleted_block": 1, "num_downsamples": 0,
        "num_trainable_params": 1,
    },
    SETTINGS,
)  # fmt: skip
_RESULT = Seed(b"Epoch,Overall/digits/Test Accuracy\n0,0.5\n")


def _beside(name: str, text: str, seed: Seed) -> Callable[[Path], Sequence[Seed]]:
    """Good content of a file of a job, which has another one."""

    def prepare(folder: Path) -> list[Seed]:
        (folder / "job" / name).write_text(text)
        return [seed]

    return prepare


def _pick(path: Path) -> object:
    flops, params = (arguments(path) * 2)[:2]
    return pick(ROWS, Budget(max_flops=count(flops), max_params=count(params)))


@cache
def _space() -> StitchSpace:
    return pico_snnet().space


def _select(path: Path) -> object:
    text = "\n".join(arguments(path))
    return _space().select(text) if "[" not in text else (Stitch.parse(text), _space().find(text))


READERS = {
    "ledger": Reader("fuzzed.txt", [Seed(ROWS, LINES)], _read_ledger),
    "report": Reader(
        "fuzzed.txt", [_published_rows(), Seed(ROWS, LINES)], lambda path: strict_json(read_ledgers([path]))
    ),
    "settings beside a ledger": Reader(
        "args.yaml", _recipe_beside_a_ledger, lambda path: strict_json(read_ledgers([path.with_name(_LEDGER)]))
    ),
    "origin of a ledger": Reader(
        "fuzzed.yaml",
        [Seed({"weights_sha256": "0", "dataset": "", "img_size": 16}, SETTINGS)],
        lambda path: read_origin(path.with_suffix(".txt"), advice="move it"),
    ),
    "summary.csv": Reader(
        "summary.csv", [Seed(b"epoch,train_loss,eval_ti_acc1,lr\n0,2.0,10.0,0.1\n1,1.5,20.0,0.1\n")], _read_summary
    ),
    "losses.csv": Reader(
        "losses.csv",
        [Seed(b"epoch,cfg_id,stitch,loss,steps\n0,0,ti[0:3],1.0,3\n1,3,ti[0:1] > s[1:3],0.5,1\n")],
        _read_losses,
    ),
    "other models": Reader(
        "fuzzed.csv", [Seed(b'model,top1,infer_gmacs,param_count\na.x,80.1,4.5,5.7\nb,70,,"1,014.45"\n')], _read_overlay
    ),
    "per_class.csv": Reader("per_class.csv", [Seed(b"class,images,0\na,1,50.0\nb,1,50.0\n")], _continue_per_class),
    "answers so far": Reader(
        "fuzzed.part0",
        [Seed({"format": "stitchkit hits 1", "cfg_ids": [0, 3], "of": {"a": 1}}, JSON)],
        lambda path: Unfinished(path, {"a": 1}).restore(AccuracyScore(), [0, 3]),
        _with_hits,
    ),
    "hits": Reader(
        "fuzzed.hits", [Seed({"format": "stitchkit hits 1", "cfg_ids": [0, 3]}, JSON)], PerImage.read, _with_hits
    ),
    "statistics of stitches": Reader(
        "fuzzed.statistics.safetensors",
        [_of_statistics()],
        lambda path: read_statistics(path, _snnet()),
        _with_statistics,
    ),
    "sums of images": Reader("fuzzed.sums", [Seed(_SUMS, JSON)], PerImage.read, _with_sums),
    "metadata of a job": Reader(
        "job/metadata.yml",
        _beside("result-3.csv", _RESULT.content.decode(), _METADATA),
        lambda path: collect(path.parent.parent),
    ),
    "results of a job": Reader(
        "job/result-3.csv",
        _beside("metadata.yml", in_yaml(_METADATA.content), _RESULT),
        lambda path: collect(path.parent.parent),
    ),
    "budget": Reader("arguments", [Seed(b"5G\n1.3e9"), Seed(b"300M\n12k")], _pick),
    "choice of stitches": Reader("arguments", [Seed(b"3,5,10-12"), Seed(b"ti[0:1] > s[1:3]")], _select),
}
