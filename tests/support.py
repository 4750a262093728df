"""Pico models, a pico dataset and ways to run commands, for all tests."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

import stitchkit
from stitchkit.assembly.sweep.kinds.gaps import plan_gaps
from stitchkit.assembly.sweep.launch import write_folders
from stitchkit.assembly.sweep.worker import SweepJob
from stitchkit.data.demo import write_digits
from tests.networks import TRACED

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
DEPTH = 3

# torch raises an error where the signal of a dead loader process arrives. Within a `__del__`, Python can only print it;
# the run ends by the connection that is lost.
LOADER_DIES = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

_T = TypeVar("_T")


def mostly_full(values: Iterable[_T], *, quick: Iterable[_T]) -> list[object]:
    """Parameters of a test: `make test` takes only the quick ones, `make test-all` every one.

    A tuple gives a value to each of several arguments.
    """
    chosen, every = list(quick), list(values)
    assert all(value in every for value in chosen), f"{chosen} are not all among {every}"
    return [
        value
        if value in chosen
        else pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.full)
        for value in every
    ]


def products(**choices: Iterable[object]) -> list[dict[str, object]]:
    """Every combination of choices, by name."""
    return [dict(zip(choices, row, strict=True)) for row in itertools.product(*choices.values())]


def pairwise(rows: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """Few of these combinations, in which every two values that meet in one of all meet in one of them."""

    def pairs(row: dict[str, object]) -> set[object]:
        return set(itertools.combinations(row.items(), 2))

    left, chosen = set[object]().union(*map(pairs, rows)), []
    while left:
        chosen.append(max(rows, key=lambda row: len(pairs(row) & left)))
        left -= pairs(chosen[-1])
    return chosen


def pico_anchor(label: str, width: int, **kwargs: Any) -> dict[str, Any]:
    """An anchor entry of a configuration: 16 x 16 images, 4 patches, 3 blocks."""
    arguments = {"img_size": 16, "patch_size": 8, "embed_dim": width, "depth": DEPTH, "num_heads": 2, "num_classes": 4}
    return {"label": label, "name": "vit_tiny_patch16_224", "kwargs": arguments | kwargs}


def pico_config(**changes: Any) -> dict[str, Any]:
    """A configuration of three pico anchors."""
    anchors = [pico_anchor("ti", 8), pico_anchor("s", 16), pico_anchor("b", 32)]
    return {"anchors": anchors, **changes}


def _pico(label: str, name: str, **kwargs: Any) -> dict[str, Any]:
    return {"label": label, "name": name, "kwargs": {"num_classes": 4, **kwargs}}


def _swin(label: str, width: int, *depths: int) -> dict[str, Any]:
    size = {"img_size": 64, "window_size": 4, "embed_dim": width, "depths": depths, "num_heads": (1, 2, 2, 4)}
    return _pico(label, "swin_tiny_patch4_window7_224", **size)


def _resnet(label: str, name: str, *layers: int) -> dict[str, Any]:
    return _pico(label, name, layers=layers, channels=(8, 16, 16, 32), img_size=64)


def _levit(label: str, name: str, width: int) -> dict[str, Any]:
    widths = (width, width + 8, width + 16)
    return _pico(label, name, img_size=64, embed_dim=widths, key_dim=8, num_heads=(2, 2, 2), depth=(3, 3, 2))


def _vit(label: str, **kwargs: Any) -> dict[str, Any]:
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "num_heads": 2}
    return _pico(label, "vit_tiny_patch16_224", **size | kwargs)


_BOTH_WAYS = {"rule": "proportional", "directions": "both"}

FAMILIES: dict[str, dict[str, Any]] = {
    "vit": pico_config(),
    "vit without final norm, all pairs": pico_config(stitched_final_norm=False, nearest_stitching=False),
    "swin": {"anchors": [_swin("ti", 8, 2, 2, 2, 2), _swin("s", 8, 2, 2, 4, 2), _swin("b", 16, 2, 2, 4, 2)]},
    "resnet": {"anchors": [_resnet("r18", "resnet18", 1, 2, 2, 1), _resnet("r50", "resnet50", 1, 3, 4, 1)]},
    "resnet to swin": {"anchors": [_resnet("r18", "resnet18", 1, 2, 2, 1), _swin("ti", 8, 2, 2, 4, 2)]},
    "swin to resnet": {"anchors": [_swin("ti", 8, 2, 2, 2, 2), _resnet("r50", "resnet50", 2, 2, 4, 1)]},
    "levit": {"anchors": [_levit("s", "levit_128s", 16), _levit("m", "levit_128", 24)]},
    "vits of other grids and tokens, both ways": {
        "anchors": [
            _vit("reg", depth=4, reg_tokens=2),
            _vit("gap", depth=3, patch_size=4, class_token=False, global_pool="avg"),
            _vit("cls", depth=5),
        ],
        **_BOTH_WAYS,
        "nearest_stitching": False,
    },
    "resnet and vit, both ways": {
        "anchors": [_resnet("r18", "resnet18", 3, 2, 2, 1), _vit("vit", depth=3, img_size=64)],
        **_BOTH_WAYS,
        "stages": [0],
    },
    "vits, two-way, of low rank": {
        "anchors": [_vit("s", depth=3), _vit("b", depth=6, embed_dim=24)],
        "rule": "two_way",
        "lora_r": 2,
    },
    "resnets and swins, two-way, of two layers": {
        "anchors": [_resnet("r18", "resnet18", 1, 2, 2, 1), _swin("ti", 8, 2, 2, 3, 2), _swin("b", 16, 2, 2, 4, 2)],
        "rule": "two_way",
        "nearest_stitching": False,
        "layer": "mlp",
    },
    "resnets of a deeper front": {
        "anchors": [_resnet("front", "resnet18", 2, 3, 2, 1), _resnet("end", "resnet50", 1, 2, 2, 2)],
        "rule": "proportional",
        "stages": [0, 1, 2, 3],
    },
    "levit of convolutions": {"anchors": [_levit("s", "levit_conv_128s", 16), _levit("m", "levit_conv_128", 24)]},
}
"""Pico configurations of every family with a view, and of what their layouts and options allow."""


def headless(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration whose anchors have no classifier: the output of a stitch is a feature."""
    anchors = [{**anchor, "kwargs": {**anchor["kwargs"], "num_classes": 0}} for anchor in config["anchors"]]
    return {**config, "anchors": anchors}


FAMILIES |= {f"headless {family}": headless(FAMILIES[family]) for family in ("vit", "resnet to swin", "levit")}
SPACES = FAMILIES | TRACED
"""These, and those of networks that are traced."""

QUICK_SPACES = (
    *("vit", "vit without final norm, all pairs", "resnet to swin", "levit", "levit of convolutions", "headless vit"),
    *("vits of other grids and tokens, both ways", "resnet and vit, both ways", "vits, two-way, of low rank"),
    *("resnets and swins, two-way, of two layers", "NCHW, batch norm", "NHWC", "NLC, 5 prefix tokens"),
)
"""Those of `make test`: each view, rule, layer and way of pooling, and the layouts of traced networks."""


def family_snnet(family: str) -> stitchkit.SNNet:
    """An SN-Net of one of `SPACES` in evaluation mode, with seeded random weights that are not tiny."""
    return _copy_of(*_random_snnet(family))


def pico_snnet(**changes: Any) -> stitchkit.SNNet:
    """An SN-Net of pico anchors in evaluation mode, with seeded random weights that are not tiny."""
    return _copy_of(*(_make_random(pico_config(**changes)) if changes else _random_snnet("vit")))


@functools.cache
def _random_snnet(family: str) -> tuple[stitchkit.SNNet, torch.Tensor]:
    """Each network is made once; to trace one takes a second, and to copy it a fiftieth of that."""
    return _make_random(SPACES[family])


def _make_random(config: dict[str, Any]) -> tuple[stitchkit.SNNet, torch.Tensor]:
    torch.manual_seed(0)
    model = stitchkit.create_snnet(config)
    randomize(model)
    return model.eval(), torch.get_rng_state()


def _copy_of(model: stitchkit.SNNet, random: torch.Tensor) -> stitchkit.SNNet:
    torch.set_rng_state(random)
    return copy.deepcopy(model)


def randomize(model: torch.nn.Module) -> None:
    """Weights large enough that every step shows in the output; timm's start is close to the identity."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer += 0.2 * torch.rand(buffer.shape, generator=generator)


def pico_images(count: int = 2, size: int = 16) -> torch.Tensor:
    """Images `[count, 3, size, size]`."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def write_images(folder: Path, *, train: int = 16, validation: int = 5, classes: int = 4) -> Path:
    """An image folder in which a class is a brightness: `train` and `validation` images of each class."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("validation", validation)):
        for label in range(classes):
            place = folder / split / f"class{label}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 60, (16, 16, 3)) + 60 * label
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    return folder


def write_scene_pairs(folder: Path, *, train: int = 16, validation: int = 5) -> Path:
    """Images of 32 x 32 whose halves are brighter the higher the class and the depth; masks and depths beside them."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("validation", validation)):
        for number in range(count):
            classes = np.repeat(random.integers(0, 3, (1, 2)), 16, axis=1).repeat(32, axis=0)
            unknown = np.arange(32)[:, None] < 4 * (number % 2)
            for kind, content in (
                ("images", (random.integers(0, 60, (32, 32, 3)) + 60 * classes[..., None]).astype(np.uint8)),
                ("masks", np.where(unknown, 255, classes).astype(np.uint8)),
                ("depths", np.where(unknown, 0, 1000 + 2000 * classes).astype(np.uint16)),
            ):
                (folder / split / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(content).save(folder / split / kind / f"{number}.png")
    return folder


def write_config(path: Path, **changes: Any) -> Path:
    """A pico configuration as a file."""
    path.write_text(json.dumps(pico_config(**changes)))
    return path


def demo_folder(folder: Path) -> Path:
    """A folder as `make demo` leaves it, without training and ledger: digits, configurations, weights."""
    (folder / "configs").symlink_to(ROOT / "configs")
    write_digits(folder / "data/digits")
    model = stitchkit.create_snnet(ROOT / "configs/digits_vit.json", checkpoints=False)
    randomize(model)
    state = {"state_dict": model.state_dict(), "classes": [*map(str, range(10))], "input_size": [3, 32, 32]}
    (folder / "outputs/digits_vit").mkdir(parents=True)
    torch.save(state, folder / "outputs/digits_vit/last.pth.tar")
    return folder


FLAGS = [
    *("--no-pretrained", "-b", "8", "-j", "0", "--epochs", "2", "--opt", "adamw", "--lr", "1e-3", "--hflip", "0"),
    *("--warmup-epochs", "0", "--log-interval", "2", "--stitch-init-bs", "16", "--device", "cpu"),
]
"""Flags of a run that takes a second."""


def launch(ranks: int, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`./distributed_train.sh ranks arguments...`, as a user runs it."""
    command = [str(ROOT / "distributed_train.sh"), str(ranks), *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, **environment},
        timeout=300,
        cwd=ROOT,
    )


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights in one of our checkpoints."""
    content: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return content


_VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 4, "num_heads": 2, "num_classes": 4}


def _vit_piece(begin: str | None, last: int | None) -> dict[str, Any]:
    """Blocks of a pico ViT as a piece of a sweep."""
    end = {"block_output": f"blocks.{last}", "out_format": ["bert", [8, 4]]} if last is not None else {}
    start = {"block_input": begin, "in_format": ["bert", [8, 4]]} if begin else {"in_format": "img"}
    names = {"block_output": "head", "out_format": "vector"} | end
    return {"Subnet": {"model_name": "vit_tiny_patch16_224", **_VIT, **start, **names}}


SWEEP: dict[str, Any] = {
    "stages": [
        _vit_piece(None, 0),
        _vit_piece("blocks.1", 1),
        _vit_piece("blocks.2", 2),
        _vit_piece("blocks.3", None),
    ],
    "gaps": [{"blocks_to_drop": [1, 1], "num_downsamples": 0}],
    "stitchers": ["finetune", "linear_no_downsample"],
    "workers": 0,
}
"""A sweep of two jobs and an uncut network, all pico; with `write_sweep` its pieces have weights from a file."""


def write_sweep(folder: Path, images: Path, **changes: Any) -> Path:
    """A pico sweep over an image folder as a file."""
    torch.manual_seed(0)
    checkpoint = folder / "vit.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224", **_VIT).state_dict(), checkpoint)
    stages = [{"Subnet": {**next(iter(piece.values())), "ckp_path": str(checkpoint)}} for piece in SWEEP["stages"]]
    train = {"dataset": str(images), "data_preprocessing": {"image_size": 16}, "epochs": 2, "batch_size": 8, "seed": 3}
    path = folder / "pico.yml"
    path.write_text(yaml.safe_dump({**SWEEP, "stages": stages, "train_config": train, **changes}))
    return path


def sweep_jobs(sweep: Path, output: Path, **changes: object) -> list[SweepJob]:
    """The jobs of a sweep, whose folders are written as the command writes them."""
    config = plan_gaps(sweep, **changes)
    return write_folders(config.jobs, output, config.seeds)


def skip_uncut_job(sweep: Path, output: Path) -> None:
    """Write the folders of a pico sweep with a result of its job for the uncut network, so that only the others run."""
    next(job.result for job in sweep_jobs(sweep, output) if "uncut" in job.path.name).touch()
