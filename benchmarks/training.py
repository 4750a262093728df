"""A short training of an SN-Net, and an evaluation of all its stitches, on glyphs that are rendered on the spot.

There is no reference: the last line is JSON with images per second, the loss of the first and the last epoch, and the
accuracy of the best stitch. The exit status is 1 if the loss did not fall.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import stitchkit
from benchmarks.frame import DEVICES, PRECISIONS
from stitchkit.data.demo import GLYPHS, write_demo_glyphs

_IMAGES = 50 * len(GLYPHS)
"""Training images."""


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Train and evaluate in a temporary folder; on a GPU with compiled blocks and channels last."""
    widths, depth, epochs = ((8, 16), 2, 2) if options.quick else ((192, 384), 12, 8)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "glyphs")
        write_demo_glyphs(data)
        config = Path(folder, "config.json")
        config.write_text(json.dumps({"anchors": [_anchor(width, depth) for width in widths]}))
        settings: dict[str, Any] = {
            "stitch_config": str(config), "device": options.device, "output": folder, "pretrained": False, "workers": 2,
            "batch_size": 128, "hflip": 0.0, "color_jitter": 0.0, "distillation_type": "none",
        }  # fmt: skip
        settings |= {"amp": True, "amp_dtype": options.precision} if options.precision != "float32" else {}
        on_gpu = options.device == "cuda"
        fast = {"torchcompile": "inductor", "channels_last": True} if on_gpu else {}
        learning = {"opt": "adamw", "lr": 5e-3 if options.quick else 5e-4, "warmup_epochs": 1}
        start = time.perf_counter()
        run = stitchkit.train(
            data, **settings, **fast, **learning, experiment="training", epochs=epochs, val_interval=epochs,
        )  # fmt: skip
        trained = time.perf_counter()
        rows = stitchkit.evaluate(data, **settings, experiment="evaluation", resume=str(run.checkpoint))
        evaluated = time.perf_counter()
    losses = [epoch["train_loss"] or 0.0 for epoch in run.summary]
    how = f"{options.precision}, {options.device}{', quick' if options.quick else ''}"
    return {
        "name": "training",
        "images_per_s": epochs * _IMAGES / (trained - start),
        "training_s": trained - start,
        "evaluation_s": evaluated - trained,
        "stitches": len(rows),
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "best_acc1": max(row["acc1"] for row in rows),
        "agree": losses[-1] < losses[0],
        "work": f"{epochs} epochs of {_IMAGES} glyphs, ViTs of widths {widths} and {depth} blocks, {how}; with start, "
        "compilation and a validation",
    }


def _anchor(width: int, depth: int) -> dict[str, object]:
    size = {"img_size": 32, "patch_size": 4, "embed_dim": width, "depth": depth, "num_heads": max(2, width // 64)}
    return {"label": f"w{width}", "name": "vit_tiny_patch16_224", "kwargs": size}


def main() -> int:
    """Train, and print the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="little work, within a minute")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where it computes")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of matrix products")
    found = measure(parser.parse_args())
    print(json.dumps(found))
    return 0 if found["agree"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
