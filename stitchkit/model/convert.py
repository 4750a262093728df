"""Released weights of an SN-Net as a file of ours."""

from __future__ import annotations

import argparse
import json

from safetensors.torch import save

from stitchkit.errors import InputError
from stitchkit.files import replacing
from stitchkit.model.create import create_snnet
from stitchkit.networks.weights import load_checkpoint
from stitchkit.parser import new_file
from stitchkit.settings.stitch_config import StitchConfig


def convert(flags: argparse.Namespace) -> None:
    """Run `stitchkit convert`."""
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
