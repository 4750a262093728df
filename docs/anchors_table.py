"""Measure which models of timm and torchvision can be anchors, and write the table of docs/anchors.md.

    PYTHONPATH=. python docs/anchors_table.py

The page keeps every finished row, so an interrupted run resumes. To measure models again, name them, or `timm/MODULE`:

    PYTHONPATH=. python docs/anchors_table.py convnext_atto torchvision/resnet18

A model has random weights and small images, and, where it is large, fewer blocks. Its steps run one after the other
against the whole, in evaluation mode and, from the same random state, in training mode. Equal means equal to the bit.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import model_entrypoint
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.models import get_model_builder

from stitchkit.errors import InputError, one_line
from stitchkit.networks.anchor import Anchor
from stitchkit.networks.create import create_model, create_torchvision
from stitchkit.networks.families import anchor_of, has_view
from stitchkit.settings.names import TORCHVISION, torchvision_names

PAGE = Path(__file__).parent / "anchors.md"
HEAD = (
    "| module | model | anchor by | blocks | exact | measured with | why not |\n"
    "| --- | --- | --- | --- | --- | --- | --- |\n"
)
SIZES = (64, 96, 128, 192, None, 299)
"""Sides of images, tried in this order; None is the model's own."""
LARGE = 150e6
"""Parameters above which a model gets fewer blocks, if it takes an argument for them."""
GIANT = 3e9
"""Parameters above which a model is not built."""
FEWER: tuple[dict[str, Any], ...] = ({"depth": 2}, {"depths": (1, 1, 2, 1)}, {"layers": (1, 1, 2, 1)}, {})


@dataclass(frozen=True)
class Row:
    """The measurements of one model.

    Args:
        name: timm's name, or torchvision's behind `torchvision/`.
        way: `view` or `trace`; empty if it cannot be an anchor.
        blocks: Number of blocks of each stage, as measured.
        is_exact: Whether its steps give what the whole gives, in both modes.
        setup: How it was measured: the side of the images, and arguments that leave out blocks.
        reason: Why it cannot be an anchor, or by how much it differs.
    """

    name: str
    way: str = ""
    blocks: tuple[int, ...] = ()
    is_exact: bool = False
    setup: str = ""
    reason: str = ""

    def __str__(self) -> str:
        own = self.name.removeprefix(TORCHVISION)
        entry = model_entrypoint(own) if own == self.name else get_model_builder(own)
        module = ("" if own == self.name else TORCHVISION) + entry.__module__.rpartition(".")[2]
        exact = ("yes" if self.is_exact else "no") if self.way else ""
        blocks = "-".join(map(str, self.blocks))
        reason = self.reason.replace("|", "/")
        return f"| {module} | `{self.name}` | {self.way} | {blocks} | {exact} | {self.setup} | {reason} |"


class WithoutInitialisation(TorchFunctionMode):
    """Skips the initialisation of weights, which takes longer than all measurements of a model."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "erfinv_"):
            # Zeros, because torch draws a truncated distribution until all values are within its bounds.
            return (args or [*kwargs.values()])[0].zero_()
        return func(*args, **(kwargs or {}))


def measure(name: str) -> Row:
    """Cut a model between all of its blocks and rejoin it."""
    try:
        model, images, setup = small_model(name)
    except Exception as error:  # timm and torch raise many kinds
        return Row(name, reason=f"not measured: {str(error) if isinstance(error, InputError) else one_line(error)}")
    try:
        anchor = anchor_of(model, label="a", input_size=(images.shape[1], images.shape[2], images.shape[3]))
        way = "view" if has_view(model) else "trace"
        differs = [mode for mode in ("evaluation", "training") if not _is_exact(anchor, images, mode == "training")]
    except InputError as error:
        return Row(name, setup=setup, reason=str(error).removeprefix("anchor 'a': "))
    reason = f"differs in {' and '.join(differs)}" if differs else ""
    return Row(name, way, anchor.depths, not differs, setup, reason)


@torch.no_grad()
def _is_exact(anchor: Anchor, images: torch.Tensor, training: bool) -> bool:
    model = anchor.model.train(training)
    torch.manual_seed(1)
    whole = model(images)
    torch.manual_seed(1)
    x = images
    for number in range(len(anchor)):
        x = anchor.module(number).train(training)(x)
    return _same(whole, x)


def _same(left: object, right: object) -> bool:
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return _same([*left.values()], [*right.values()])
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    return left is right


def small_model(name: str) -> tuple[nn.Module, torch.Tensor, str]:
    """A model with random weights, two of the smallest images that it takes, and how both were made smaller."""
    error: Exception | None = None
    with torch.device("meta"):
        count = sum(map(torch.numel, _build(name, None, {}).parameters()))
    for fewer in FEWER if count > LARGE else ({},):
        if not fewer and count > GIANT:
            raise InputError(
                f"its {count / 1e9:.1f}G parameters are too many for this machine, and no argument lowers them"
            )
        for size in SIZES:
            try:
                with torch.no_grad(), WithoutInitialisation():
                    model = _build(name, size, fewer)
                side = size or getattr(model, "pretrained_cfg", {"input_size": (3, 224, 224)})["input_size"][1]
                channels = getattr(model, "in_chans", 3)
                torch.manual_seed(0)
                images = torch.randn(2, channels, side, side)
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.uniform_(-0.05, 0.05)
                    model.train()(images)
                    model.eval()(images)
            except Exception as problem:  # noqa: PERF203 # images too small, or no such argument
                error = problem
            else:
                text = "".join(f", {key} {value}" for key, value in fewer.items())
                return model, images, f"{side} px{text}"
    assert error is not None
    raise error


def _build(name: str, size: int | None, arguments: Mapping[str, Any]) -> nn.Module:
    if not name.startswith(TORCHVISION):
        return create_model(name, img_size=size, **arguments)
    own = name.removeprefix(TORCHVISION)
    if own in ("inception_v3", "googlenet"):
        arguments = {**arguments, "init_weights": False}
    return create_torchvision(own, {**arguments, **({"image_size": size} if own.startswith("vit") and size else {})})


def all_names() -> list[str]:
    """All names of timm and of torchvision's classifiers."""
    return [*timm.list_models(), *(TORCHVISION + name for name in torchvision_names())]


def rows() -> dict[str, str]:
    """The rows of the page, by model."""
    if not PAGE.exists():
        return {}
    lines = PAGE.read_text().partition(HEAD)[2].splitlines()
    return {match[1]: line for line in lines if (match := re.match(r"\| \S+ \| `([^`]+)` \|", line))}


@contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def main(names: list[str]) -> None:
    """Measure the named models, or those that the page lacks."""
    every = all_names()
    chosen = [name for name in every if name in names] if names else [name for name in every if name not in rows()]
    for name in chosen:
        with _quiet():
            row = str(measure(name))
        print(row, flush=True)
        write({**rows(), name: row})
        gc.collect()


def write(found: Mapping[str, str]) -> None:
    """Write the page with its rows in timm's order, and how many there are."""
    text = PAGE.read_text().partition(HEAD)[0] if PAGE.exists() else ""
    PAGE.with_suffix(".draft").write_text(text + HEAD + "\n".join(found[n] for n in all_names() if n in found) + "\n")
    os.replace(PAGE.with_suffix(".draft"), PAGE)


if __name__ == "__main__":
    main(sys.argv[1:])
