"""The commands that export the networks of a ledger."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from stitchkit.display import command
from stitchkit.settings.by_name import read_settings


def export_commands(path: Path, cfg_ids: Iterable[int], stitch_config: str | None) -> list[str]:
    """The commands that export networks of a ledger as ONNX files."""
    export, commands = _export_command(path, stitch_config), []
    for number in cfg_ids:
        composed = path.with_name(f"{number:03d}")
        if (composed / "net.json").is_file():  # `stitchkit compose` leaves its networks beside the ledger
            code = f'import stitchnet; stitchnet.load({json.dumps(str(composed))}).save_onnx("net{number}.onnx")'
            commands.append(command("python", "-c", code))
        else:
            commands.append(f"{export} --cfg-id {number} -o stitch{number}.onnx")
    return commands


def _export_command(path: Path, stitch_config: str | None) -> str:
    # The settings of the evaluation have everything an export needs: weights, images to compare on, their preparation.
    settings: Mapping[str, object] = {}
    if (beside := path.with_name("eval_args.yaml")).is_file():
        settings = read_settings(str(beside), trains=False)  # as the command will, which must not fail later
    words = ["stitchkit", "export", *(["-c", str(beside)] if settings else [])]
    if stitch_config or not settings.get("stitch_config"):
        words += ["--stitch-config", stitch_config or "CONFIG.json"]
    if not settings.get("resume"):
        last = path.with_name("last.pth.tar")
        words += ["--resume", str(last) if last.exists() else "CHECKPOINT"]
    return command(*words)
