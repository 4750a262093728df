"""Reference of `benchmarks.evaluate_files`: for each stitch, a trace by fvcore and a pass over the image files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable

import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.utils import AverageMeter, accuracy
from torch.nn import functional as F

from benchmarks.profile import trace
from stitchkit import SNNet, StitchConfig, create_snnet, load_checkpoint
from stitchkit.networks.mode import unfused_attention


def main(data: str, config_path: str, checkpoint: str, num_stitches: str, ledger: str) -> None:
    """Append a row for each stitch to a ledger."""
    config = StitchConfig.load(config_path)
    model = create_snnet(config, checkpoints=False)
    load_checkpoint(model, checkpoint)
    model.eval()
    wanted = {"input_size": model.input_size, "crop_pct": config.recipe.get("crop_pct")}
    loader = create_loader(
        create_dataset("", root=data, split="validation"),
        batch_size=config.recipe.get("batch_size", 128),
        num_workers=config.recipe.get("workers", 4),
        device=torch.device("cpu"),
        persistent_workers=False,
        **resolve_data_config(wanted, pretrained_cfg=model.pretrained_cfg),
    )
    image = torch.zeros(1, *model.input_size)
    with torch.no_grad(), unfused_attention(model):  # the released code spells attention out
        for cfg_id in range(int(num_stitches)):
            model.reset_stitch_id(cfg_id)
            flops, _ = trace(model, image)
            row = {"cfg_id": cfg_id, "flops": flops, **_validate(model, loader)}
            with open(ledger, "a") as file:
                file.write(json.dumps(row) + "\n")


def _validate(model: SNNet, loader: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    meters = {name: AverageMeter() for name in ("acc1", "acc5", "loss")}
    for images, labels in loader:
        logits = model(images)
        acc1, acc5 = accuracy(logits, labels, topk=(1, 5))
        values = {"acc1": acc1, "acc5": acc5, "loss": F.cross_entropy(logits, labels)}
        for name, value in values.items():
            meters[name].update(value.item(), len(images))
    return {name: meter.avg for name, meter in meters.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
