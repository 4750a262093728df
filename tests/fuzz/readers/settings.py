"""Readers of settings: configurations, recipes, jobs, sweeps, data sets and flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

import stitchkit
from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.config.job_settings import check_job
from stitchkit.assembly.parts.network import check_network
from stitchkit.assembly.sweep.config import load_sweep
from stitchkit.data.folders import open_images
from stitchkit.data.prepare import COLLECTIONS, read_collection
from stitchkit.data.timm_readers import _check_card
from stitchkit.parser import Parser
from stitchkit.settings.combinations import check
from stitchkit.settings.files import read_settings_file
from stitchkit.settings.flags import add_flags, gather
from stitchkit.settings.recipe import Recipe
from tests.fuzz.inputs import Seed
from tests.fuzz.readers.base import JSON, SETTINGS, Reader, arguments, shipped
from tests.jobs import JOBS, job_config
from tests.support import ROOT, SWEEP, pico_config


def _create_snnet(path: Path) -> object:
    with torch.device("meta"):
        return stitchkit.create_snnet(path)


def _recipes() -> list[Seed]:
    saved = {key: value for key, value in Recipe().flat().items() if value is not None}
    some = (read_settings_file(ROOT / "configs/digits_anchor.yaml"), saved)
    return [Seed({**one, "model": "resnet18", "data_dir": "x"}, SETTINGS) for one in some]


def _load_job(path: Path) -> object:
    check_job(path)
    return JobConfig.load(path).network


def _jobs() -> list[Seed]:
    whole: dict[str, Any] = {**job_config("x"), "pretrained": False}
    train = whole["train_config"]
    parts = [JOBS[name] for name in ("own blocks", "block replaced", "Swin to CNN, by a block")]
    jobs = [whole, *({"assembly": some, "pretrained": False, "train_config": train} for some in parts)]
    return [Seed(job, SETTINGS) for job in jobs]


def _class_folders(folder: Path) -> list[Seed]:
    for name in ("a", "b"):
        (folder / f"images/{name}").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / f"images/{name}/0.png")
    return [Seed(b"a\nb\n")]


def _check_flags(path: Path) -> None:
    parser = Parser()
    add_flags(parser)
    check(gather(vars(parser.parse_args(arguments(path))))[0])


_TRAIN = {"dataset": "x", "data_preprocessing": {"image_size": 16}, "epochs": 2, "batch_size": 8, "seed": 3}
_CARD = {"configs": [{"config_name": "a", "data_files": [{"split": "train", "path": "x.parquet"}]}]}
_FLAGS = [
    "x --model resnet18 --model-kwargs img_size=32 depth=[1,2] --opt adamw --lr 1e-3 -b 8",
    "x --model resnet18 --input-size 3 32 32 --mean 0.5 --crop-pct 0.9 --seed 3",
    "x --model vit_tiny_patch16_224 --epochs 3 --sched cosine --opt-kwargs eps=1e-3 --decay-epochs 1 --seed 3",
]

READERS = {
    "stitch configuration": Reader("fuzzed.yml", shipped("*.json"), stitchkit.StitchConfig.load),
    "stitch configuration, JSON": Reader("fuzzed.json", shipped("*.json", JSON), stitchkit.StitchConfig.load),
    "network of a stitch configuration": Reader("fuzzed.yml", [Seed(pico_config(), SETTINGS)], _create_snnet),
    "recipe": Reader("fuzzed.yml", _recipes(), lambda path: check(gather({"config": str(path)})[0])),
    "job": Reader("fuzzed.yml", shipped("assembly/*.yml"), _load_job),
    "network of a job": Reader(
        "fuzzed.yml",
        _jobs(),
        lambda path: check_network(JobConfig.load(path).network, num_classes=4, input_size=(3, 32, 32)),
    ),
    "sweep": Reader(
        "fuzzed.yml",
        [Seed({**SWEEP, "train_config": _TRAIN, "slurm": {}}, SETTINGS)],
        lambda path: load_sweep(path).jobs,
    ),
    "collection": Reader(
        "fuzzed.yml",
        [Seed(read_settings_file(path), SETTINGS) for path in COLLECTIONS.values()],
        lambda path: read_collection(str(path)),
    ),
    "class map": Reader(
        "fuzzed.txt", _class_folders, lambda path: open_images(path.with_name("images"), class_map=str(path))
    ),
    "card of a data set": Reader(
        "card/README.md",
        [Seed(_CARD, SETTINGS)],
        lambda path: _check_card(path.parent),
        lambda text: b"---\n" + text + b"\n---\n",
    ),
    "flags of train": Reader("arguments", [Seed(one.replace(" ", "\n").encode()) for one in _FLAGS], _check_flags),
}
