"""The frame of all benchmarks: their flags and networks, turns of several ways to do the same work, and the result."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypeVar

import torch
from timm.models.vision_transformer import VisionTransformer

from stitchkit import InputError, SNNet, StitchConfig, create_snnet

Answer = TypeVar("Answer")
Seconds = dict[str, list[float]]
"""Seconds of each run, by way."""

ROOT = Path(__file__).parent.parent
DEIT = str(ROOT / "configs/deit_ti_s_b.json")
DIGITS = str(ROOT / "configs/digits_vit.json")

DEVICES = ("cpu", "cuda")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Options:
    """The choices on the command line; `quick` shows that a benchmark runs, not how fast ours is."""

    quick: bool = False
    device: str = "cpu"
    stitch_config: str = DEIT
    precision: str = "float32"

    @property
    def label(self) -> str:
        """The words that end every description of the work."""
        return f"{self.precision}, {Path(self.stitch_config).name}, {self.device}{', quick' if self.quick else ''}"

    @property
    def dtype(self) -> torch.dtype:
        """The precision of matrix products."""
        dtype: torch.dtype = getattr(torch, self.precision)
        return dtype

    @property
    def amp(self) -> dict[str, object]:
        """The settings of a recipe that lead to this precision."""
        return {} if self.precision == "float32" else {"amp": True, "amp_dtype": self.precision}

    def alternate(
        self, ways: Mapping[str, Callable[[], Answer]], *, rounds: int, limit: Callable[[], object] | None = None
    ) -> tuple[Seconds, dict[str, Answer]]:
        """Time several ways to do the same work, in turn.

        Args:
            ways: The work, by the way it is done.
            rounds: How often each is timed, after a round that does not count; if 0 or `quick`, only that one counts.
            limit: Other work to time beside them, under this name.

        Returns:
            Seconds of each run, and the answer of each way in its first run.
        """
        # Round by round, not way by way: whatever else slows the machine down then falls on all of them alike.
        seconds: Seconds = {name: [] for name in (*ways, *(["limit"] if limit else []))}
        answers: dict[str, Answer] = {}
        for _ in range(1 if self.quick else rounds + 1):
            for name, work in ways.items():
                start = self._now()
                answer = work()
                seconds[name].append(self._now() - start)
                answers.setdefault(name, answer)
            if limit is not None:
                start = self._now()
                limit()
                seconds["limit"].append(self._now() - start)
        return {name: runs[1:] or runs for name, runs in seconds.items()}, answers  # the first fills caches

    def wait(self) -> None:
        """Wait for a GPU, whose kernels run asynchronously: without this only their launch is timed."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _now(self) -> float:
        self.wait()
        return time.perf_counter()


def ratio(seconds: Seconds, way: str, other: str) -> float:
    """Median time of one way over that of another."""
    return median(seconds[way]) / median(seconds[other])


class Check(NamedTuple):
    """How far two answers are apart, and how far they may be."""

    what: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the answers agree."""
        return self.difference <= self.tolerance  # False for a NaN, which `not difference > tolerance` would let pass


@dataclass(frozen=True)
class Result:
    """The result of a benchmark.

    Args:
        name: The benchmark.
        work: The work, in words.
        seconds: Seconds of each run of `ours`, of the `reference`, and of further ways.
        checks: What was compared; none if the answers are not comparable.
        details: Further figures.
    """

    name: str
    work: str
    seconds: Seconds
    checks: tuple[Check, ...]
    details: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def agree(self) -> bool | None:
        """Whether all answers agree; None if none was compared."""
        return all(check.passed for check in self.checks) if self.checks else None

    def table(self) -> str:
        """The result for a person."""
        lines = [f"{self.name}: {self.work}", f"  {'':28}{'median s':>10}{'fastest':>10}{'slowest':>10}{'runs':>6}"]
        for way, runs in self.seconds.items():
            lines.append(f"  {way:28}{median(runs):10.4f}{min(runs):10.4f}{max(runs):10.4f}{len(runs):6}")
        lines.append(f"  reference / ours {ratio(self.seconds, 'reference', 'ours'):.3f}")
        lines += [f"  {name} {value}" for name, value in self.details.items()]
        for check in self.checks:
            verdict = "agree" if check.passed else "DIFFER"
            lines.append(f"  {check.what}: {check.difference:.3g}, tolerance {check.tolerance:g}: {verdict}")
        return "\n".join(lines if self.checks else [*lines, "  answers: not compared"])

    def json_line(self) -> str:
        """The result for a program; `ratio` says how many times longer the reference takes."""
        first = self.checks[0] if self.checks else None
        figures = {
            "name": self.name,
            "ratio": ratio(self.seconds, "reference", "ours"),
            **{f"{way}_s": median(self.seconds[way]) for way in ("ours", "reference")},
            "agree": self.agree,
            "difference": first and first.difference,
            "tolerance": first and first.tolerance,
            **self.details,
            "work": self.work,
        }
        return json.dumps(figures)


def command(
    measure: Callable[[Options], Result],
    about: str | None,
    *,
    config: str = DEIT,
    devices: Sequence[str] = ("cpu",),
    precisions: Sequence[str] = ("float32",),
    arguments: Sequence[str] | None = None,
) -> int:
    """Run one benchmark and print a table, then one JSON line.

    Returns:
        The exit status: 0, 1 if the answers differ, or 2 for bad input.
    """
    parser = argparse.ArgumentParser(description=about, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="little work and one round, within a minute")
    parser.add_argument("--device", choices=devices, default="cpu", help="where it computes")
    parser.add_argument("--precision", choices=precisions, default="float32", help="of matrix products")
    parser.add_argument("--stitch-config", "--stitch_config", metavar="CONFIG", default=config, help="another SN-Net")
    try:
        options = Options(**vars(parser.parse_args(arguments)))
        if options.device == "cuda" and not torch.cuda.is_available():
            raise InputError("there is no GPU on this machine; use --device cpu")
        result = measure(options)
    except InputError as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        return 2
    print(result.table())
    print(result.json_line())
    return 1 if result.agree is False else 0


def random_snnet(options: Options, anchors: slice | None = None) -> SNNet:
    """An SN-Net with seeded random weights, in evaluation mode; its speed does not depend on their values.

    `anchors` are all by default, or the two cheapest if `options.quick`.
    """
    if anchors is None:
        anchors = slice(2) if options.quick else slice(None)
    torch.manual_seed(0)
    config = StitchConfig.load(options.stitch_config)
    model = create_snnet(replace(config, anchors=config.anchors[anchors]), checkpoints=False)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # a zero classifier makes all logits equal, and no comparison could fail
                parameter.normal_(std=0.02)
    return model.to(options.device).eval()


def random_images(model: SNNet, count: int, *, seed: int = 0) -> torch.Tensor:
    """Seeded noise `[count, C, H, W]` on the device of the model, distributed as normalised images are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *model.input_size, generator=generator).to(next(model.parameters()).device)


def vits(model: SNNet) -> dict[str, VisionTransformer]:
    """The networks of the anchors by label, if each is a ViT that classifies by a class token."""
    nets = {label: anchor.model for label, anchor in model.views.items()}
    for label, net in nets.items():
        # Subclasses forward differently, so they do not count.
        if type(net) is not VisionTransformer or net.global_pool != "token" or net.num_prefix_tokens != 1:
            raise InputError(
                f"anchor '{label}' is not a ViT that classifies by a class token, the only kind the plain reference "
                "is written for; choose a configuration such as configs/deit_ti_s_b.json"
            )
    return nets
