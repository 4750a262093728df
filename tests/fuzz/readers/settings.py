"""Readers of settings: configurations, recipes, jobs, sweeps, data sets and flags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import stitchkit
from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.parts.network import check_network
from stitchkit.assembly.sweep.config import load_sweep
from stitchkit.assembly.sweep.kinds.search import plan_search
from stitchkit.data.folders import open_images
from stitchkit.data.open_dataset import open_dataset
from stitchkit.data.prepare import COLLECTIONS, read_collection
from stitchkit.data.source import Source
from stitchkit.data.timm_readers import _check_card
from stitchkit.parser import Parser
from stitchkit.settings.combinations import check
from stitchkit.settings.files import read_settings_file
from stitchkit.settings.flags import add_flags, gather
from stitchkit.settings.recipe import Recipe
from tests.fuzz.inputs import Seed
from tests.fuzz.readers.base import JSON, LINES, SETTINGS, Reader, arguments, shipped
from tests.jobs import JOBS, job_config, write_job
from tests.results import write_result
from tests.support import ROOT, SWEEP, pico_config


def _create_snnet(path: Path) -> object:
    with torch.device("meta"):
        return stitchkit.create_snnet(path)


def _recipes() -> list[Seed]:
    saved = {key: value for key, value in Recipe().flat().items() if value is not None}
    some = (read_settings_file(ROOT / "configs/digits_anchor.yaml"), saved)
    return [Seed({**one, "model": "resnet18", "data_dir": "x"}, SETTINGS) for one in some]


def _load_job(path: Path) -> object:
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


def _two_images(folder: Path) -> list[Seed]:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(folder / name)
    return [Seed(b"a.png\nb.png\n")]


def _check_flags(path: Path) -> None:
    parser = Parser()
    add_flags(parser)
    check(gather(vars(parser.parse_args(arguments(path))))[0])


def _data_sets() -> Seed:
    job = {**job_config("x"), "pretrained": False, "datasets": ["a", "b"], "seeds": [1, 2], "slurm": {"hours": 2}}
    del job["train_config"]["dataset"]
    return Seed(job, SETTINGS)


def _tuned(folder: Path) -> list[Seed]:
    config = write_job(folder, {**job_config("x"), "pretrained": False}, "config.yml")
    (folder / "checkpoint.pth").touch()
    return [Seed({"ft_configs": [str(config)], "seed": 5, "metrics": [{}], "slurm": {}}, SETTINGS)]


def _searched(folder: Path) -> list[Seed]:
    write_job(folder, {**job_config("x"), "pretrained": False}, "base.yml")
    kinds = {
        "bayes": {"lr": {"min": 1e-4, "max": 0.1, "distribution": "log_uniform_values"}, "epochs": {"value": 1}},
        "random": {"batch_size": {"min": 4, "max": 8}, "optimizer": {"values": ["Adam", "SGD"]}},
        "grid": {"lr": {"values": [0.1, 0.2]}, "amp": {"values": [True, False]}},
    }
    shared = {
        "job": "base.yml",
        "metric": {"name": "Avg Test Accuracy", "goal": "maximize"},
        "run_cap": 2,
        "seeds": [1],
    }
    return [Seed({**shared, "method": name, "parameters": some}, SETTINGS) for name, some in kinds.items()]


def _journal(folder: Path) -> list[Seed]:
    seed = _searched(folder)[0]
    rounds = plan_search(write_job(folder, {**seed.content, "run_cap": 5}, "search.yml")).rounds(folder, None)
    for number, [job] in enumerate(rounds):
        if number == 4:  # this one has begun
            break
        write_result(folder, job.name, job.metadata, [0.1 * number])
    return [Seed([json.loads(line) for line in (folder / "search.journal").open()], LINES)]


def _continue_search(path: Path) -> None:
    next(iter(plan_search(path.with_name("search.yml")).rounds(path.parent, None)), None)


_TRAIN = {"dataset": "x", "data_preprocessing": {"image_size": 16}, "epochs": 2, "batch_size": 8, "seed": 3}


def _shards(folder: Path) -> list[Seed]:
    (folder / "a.tar").touch()
    split = {"num_samples": 1, "filenames": ["a.tar"], "shard_lengths": [1], "name": "train", "alt_label": ""}
    return [Seed({"splits": {"train": split}}, JSON)]


_CARD = {"configs": [{"config_name": "a", "data_files": [{"split": "train", "path": "x.parquet"}]}]}
_FLAGS = [
    "x --model resnet18 --model-kwargs img_size=32 depth=[1,2] --opt adamw --lr 1e-3 -b 8",
    "x --model resnet18 --input-size 3 32 32 --mean 0.5 --crop-pct 0.9 --seed 3",
    "x --model vit_tiny_patch16_224 --epochs 3 --sched cosine --opt-kwargs eps=1e-3 --decay-epochs 1 --seed 3",
]

READERS = {
    "stitch configuration": Reader("fuzzed.yml", shipped("*.json"), stitchkit.StitchConfig.load),
    "stitch configuration, JSON": Reader("fuzzed.json", shipped("*.json", JSON), stitchkit.StitchConfig.load),
    "network of a stitch configuration": Reader(
        "fuzzed.yml", [Seed(pico_config(joints=["ti[0] > s[1]", "s[2] > b[2]"]), SETTINGS)], _create_snnet
    ),
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
    "sweep over data sets": Reader("fuzzed.yml", [_data_sets()], lambda path: load_sweep(path).jobs),
    "sweep of heads by encoders": Reader("fuzzed.yml", _tuned, lambda path: load_sweep(path).jobs),
    "search": Reader("fuzzed.yml", _searched, lambda path: load_sweep(path).jobs),
    "journal of a search": Reader("search.journal", _journal, _continue_search),
    "collection": Reader(
        "fuzzed.yml",
        [Seed(read_settings_file(path), SETTINGS) for path in COLLECTIONS.values()],
        lambda path: read_collection(str(path)),
    ),
    "class map": Reader(
        "fuzzed.txt", _class_folders, lambda path: open_images(path.with_name("images"), class_map=str(path))
    ),
    "list of images": Reader(
        "fuzzed.txt", _two_images, lambda path: open_dataset(Source("", path, needs_labels=False), "train")
    ),
    "card of a data set": Reader(
        "card/README.md",
        [Seed(_CARD, SETTINGS)],
        lambda path: _check_card(path.parent),
        lambda text: b"---\n" + text + b"\n---\n",
    ),
    "what a stream says of itself": Reader(
        "_info.json", _shards, lambda path: open_dataset(Source("wds/x", path.parent), "train")
    ),
    "flags of train": Reader("arguments", [Seed(one.replace(" ", "\n").encode()) for one in _FLAGS], _check_flags),
}
