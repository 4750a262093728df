"""The command that chooses joints before training: `choose`."""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from stitchkit.display import counted
from stitchkit.errors import InputError
from stitchkit.parser import Command, add_network_flags, add_shared, new_file
from stitchkit.settings.fields import Batch, Count, Seed, Workers
from stitchkit.settings.schema import Settings, parse

if TYPE_CHECKING:
    from stitchkit.choose.klas import SomeImages


@dataclass(frozen=True)
class ChooseSettings(Settings):
    """How joints are chosen; each setting is a flag of `stitchkit choose`."""

    buckets: Count = 20
    tau: Annotated[float, Field(ge=0, le=1)] = 0.05
    images: Annotated[Batch, Field(ge=2)] = 2048
    seed: Seed = 0
    batch_size: Batch = 32
    workers: Workers = 4


def _add_choose_flags(parser: argparse.ArgumentParser) -> None:
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


def _choose(flags: argparse.Namespace) -> None:
    if not (flags.data or flags.dataset) or not flags.stitch_config or not flags.output:
        raise InputError("give DATA, --stitch-config CONFIG and -o chosen.json")
    from stitchkit.settings.recipe import flag_of
    from stitchkit.settings.stitch_config import StitchConfig

    content = {field.name: getattr(flags, field.name) for field in fields(ChooseSettings)}
    settings = parse(ChooseSettings, content, name=flag_of)
    output = new_file(flags.output)
    if output.suffix != ".json":
        raise InputError(f"'{output}' must be a JSON file; give a name that ends with .json")
    config = StitchConfig.load(flags.stitch_config)
    if config.dense is not None:
        raise InputError(
            f"'{flags.stitch_config}' is for {config.dense.task}, and choose needs classes of whole images; remove "
            '"dense" and give images of classes, or train all stitches'
        )
    import torch

    from stitchkit.choose.choose import check_way, choose, closest_pair, scores_file, write_config, write_scores
    from stitchkit.choose.klas import SomeImages
    from stitchkit.data.open_dataset import open_dataset
    from stitchkit.data.source import Source, is_unlabelled
    from stitchkit.distributed import choose_device
    from stitchkit.model.create import create_snnet
    from stitchkit.networks.data_config import data_config_of

    new_file(str(scores_file(output)))
    device = choose_device(flags.device)
    source = Source(flags.dataset, flags.data, needs_labels=False)
    check_way(flags.by, has_labels=not is_unlabelled(source))
    options: dict[str, Any] = {"pretrained": not flags.no_pretrained}
    for key in ("num_classes", "img_size"):
        options[key] = config.recipe.get(key) if (value := getattr(flags, key)) is None else value
    torch.manual_seed(settings.seed)  # for weights that are random
    model = create_snnet(config, **options).to(device).eval()
    images = open_dataset(source, "train", is_training=True)
    prepared = data_config_of({}, model.input_size, model.pretrained_cfg)

    def batches(what: str) -> SomeImages:
        sampling = {"batch_size": settings.batch_size, "seed": settings.seed, "workers": settings.workers}
        return SomeImages(images, prepared, count=settings.images, device=device, what=what, **sampling)

    if flags.pair:
        config, table = closest_pair(config, model, batches("anchors"))
        print(f"{table}\nkept: {' and '.join(anchor.label for anchor in config.anchors)}, whose predictions agree most")
        model = create_snnet(config, **options).to(device).eval()
    choice = choose(model, batches(flags.by), flags.by, buckets=settings.buckets, tau=settings.tau, seed=settings.seed)
    chosen = write_config(output, config, choice.kept)
    write_scores(scores_file(output), choice)
    left = len(chosen.space_of([*model.views.values()]))
    print(
        f"{choice.table}\n"
        f"{len(choice.kept)} of {counted(len(choice.candidates), 'joint')} kept by {flags.by}, and {left} of "
        f"{counted(len(model.space), 'stitch')}; * marks the lowest score of a bucket\n"
        f"the configuration is {output}, all scores are in {scores_file(output)}"
    )


choose = Command(_choose, "choose the joints of a configuration before training", _add_choose_flags)
