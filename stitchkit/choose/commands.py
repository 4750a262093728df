"""The command that chooses joints before training: `choose`."""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from stitchkit.errors import InputError
from stitchkit.parser import Command, add_network_flags, add_shared, new_file
from stitchkit.settings.fields import Batch, Count, Seed, Workers
from stitchkit.settings.schema import Settings, flag_of, parse


@dataclass(frozen=True)
class ChooseSettings(Settings):
    """How joints are chosen; each setting is a flag of `stitchkit choose`."""

    buckets: Count = 20
    tau: Annotated[float, Field(ge=0, le=1)] = 0.05
    images: Annotated[Batch, Field(ge=2)] = 2048
    seed: Seed = 0
    batch_size: Batch = 32
    workers: Workers = 4


def _add_flags(parser: argparse.ArgumentParser) -> None:
    about = "data set with a training split, as in stitchkit train, or a folder or .txt list of images without labels"
    parser.add_argument("data", nargs="?", metavar="DATA", help=about)
    parser.add_argument("--dataset", default="", metavar="NAME", help="name of the data set, as in stitchkit train")
    add_network_flags(parser)
    about = "what probes learn: the labels, or what their own anchor predicts"
    parser.add_argument("--by", default="klas", choices=("klas", "klas-label-free"), help=about)
    parser.add_argument("--buckets", type=int, metavar="N", help="equal parts of the FLOPs where joints compete")
    parser.add_argument(
        "--tau", type=float, metavar="SHARE", help="keep scores up to this share over the bucket's best"
    )
    parser.add_argument("--pair", action="store_true", help="first keep only the two anchors that agree most (Theta)")
    parser.add_argument("--images", type=int, metavar="N", help="images to score on, drawn from the training split")
    parser.add_argument("--seed", type=int, metavar="N", help="decides which images these are, and what probes draw")
    parser.add_argument("-b", "--batch-size", type=int, metavar="N", help="images at a time")
    parser.add_argument("-j", "--workers", type=int, metavar="N", help="loader processes, at most one for each core")
    parser.add_argument("--no-pretrained", action="store_true", help="random weights, without any download")
    parser.add_argument("-o", "--output", metavar="FILE", help="configuration to write, e.g. chosen.json")
    parser.set_defaults(**asdict(ChooseSettings()))
    add_shared(parser, "--device")


def _check(flags: argparse.Namespace) -> tuple[argparse.Namespace, ChooseSettings, Path]:
    if not (flags.data or flags.dataset) or not flags.stitch_config or not flags.output:
        raise InputError("give DATA, --stitch-config CONFIG and -o chosen.json")
    content = {field.name: getattr(flags, field.name) for field in fields(ChooseSettings)}
    settings = parse(ChooseSettings, content, name=flag_of)
    output = new_file(flags.output)
    if output.suffix != ".json":
        raise InputError(f"'{output}' must be a JSON file; give a name that ends with .json")
    return flags, settings, output


choose = Command(
    "stitchkit.choose.choose:run", "choose the joints of a configuration before training", _add_flags, check=_check
)
