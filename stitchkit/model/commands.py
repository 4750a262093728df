"""The `convert` command, which rewrites released weights."""

from __future__ import annotations

import argparse
import json

from stitchkit.errors import InputError
from stitchkit.files import replacing
from stitchkit.parser import Command, add_network_flags, new_file


def _add_convert_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="IN", help="a released file, or one of ours")
    parser.add_argument("output", metavar="OUT.safetensors", help="file to write")
    add_network_flags(parser, required=True)


def _convert(flags: argparse.Namespace) -> None:
    from safetensors.torch import save

    from stitchkit.model.create import create_snnet
    from stitchkit.networks.weights import load_checkpoint
    from stitchkit.settings.stitch_config import StitchConfig

    output = new_file(flags.output)
    if output.suffix != ".safetensors":
        raise InputError(f"'{output}' must be a safetensors file; give a name that ends with .safetensors")
    config = StitchConfig.load(flags.stitch_config)
    model = create_snnet(config, checkpoints=False, num_classes=flags.num_classes, img_size=flags.img_size)
    load_checkpoint(model, flags.checkpoint)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    about = {"format": "pt", "stitch_config": json.dumps(config.to_dict()), "source": flags.checkpoint}
    with replacing(output) as draft:
        draft.write_bytes(save(weights, metadata=about))
    print(f"{len(weights)} tensors are in {output}; use it as --resume with --eval, or in stitchkit.load_checkpoint")


convert = Command(_convert, "rewrite a released checkpoint under our names, as safetensors", _add_convert_flags)
