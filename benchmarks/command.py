"""The flags that all benchmarks share, and the networks they measure."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.timing import Result
from stitchkit import InputError, SNNet, StitchConfig, create_snnet

ROOT = Path(__file__).parent.parent
DEIT = str(ROOT / "configs/deit_ti_s_b.json")
DIGITS = str(ROOT / "configs/digits_vit.json")


@dataclass(frozen=True)
class Options:
    """The choices on the command line; `quick` shows that a benchmark runs, not how fast ours is."""

    quick: bool = False
    device: str = "cpu"
    stitch_config: str = DEIT

    @property
    def label(self) -> str:
        """The words that end every description of the work."""
        return f"{Path(self.stitch_config).name}, {self.device}{', quick' if self.quick else ''}"


def command(
    measure: Callable[[Options], Result],
    about: str | None,
    *,
    config: str = DEIT,
    devices: Sequence[str] = ("cpu",),
    arguments: Sequence[str] | None = None,
) -> int:
    """Run one benchmark and print a table, then one JSON line.

    Returns:
        The exit status: 0, 1 if the answers differ, or 2 for bad input.
    """
    parser = argparse.ArgumentParser(description=about, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="little work and one round, within a minute")
    parser.add_argument("--device", choices=devices, default="cpu", help="where it computes")
    parser.add_argument("--stitch_config", "--stitch-config", metavar="JSON", default=config, help="another SN-Net")
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
    model = create_snnet(replace(config, anchors=config.anchors[anchors]))
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # a zero classifier makes all logits equal, and no comparison could fail
                parameter.normal_(std=0.02)
    return model.to(options.device).eval()


def random_images(model: SNNet, count: int, *, seed: int = 0) -> torch.Tensor:
    """Seeded noise `[count, C, H, W]` on the device of the model, distributed as normalised images are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *model.input_size, generator=generator).to(next(model.parameters()).device)
