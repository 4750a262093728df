"""Readers of networks: checkpoints, exports and folders of the hub."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path

import onnx
import torch
from safetensors.torch import save

import stitchkit
from stitchkit.model.anchor_sources import anchor_source
from stitchkit.networks.weights import read_checkpoint
from stitchkit.settings.recipe import Recipe
from stitchkit.ship.predictors import open_predictor
from stitchkit.ship.stitch_files import open_exported
from stitchkit.ship.trained_snnet import Trained, describe
from tests.fuzz.inputs import Seed
from tests.fuzz.readers.base import JSON, Reader
from tests.support import pico_config, pico_snnet

_CLASSES = ("a", "b", "c", "d")


@cache
def _trained() -> Trained:
    return Trained(pico_snnet(), stitchkit.StitchConfig.parse(pico_config()), Recipe(), _CLASSES)


def _about(_: Path) -> list[Seed]:
    return [Seed(describe(_trained(), 1), JSON)]


def _exported(about: bytes) -> bytes:
    weights = {name: value.contiguous() for name, value in _trained().model.extract(1).state_dict().items()}
    return save(weights, metadata={"format": "pt", "stitchkit": about.decode(errors="replace")})


@cache
def _header_and_weights() -> tuple[bytes, bytes]:
    whole = _exported(json.dumps(describe(_trained(), 1)).encode())
    end = 8 + int.from_bytes(whole[:8], "little")
    return whole[8:end], whole[end:]


def _read_export(path: Path) -> object:
    read_checkpoint(path)
    return open_exported(path)


def _onnx(about: bytes) -> bytes:
    places = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 3, 16, 16])
        for name in ("images", "logits")
    ]
    node = onnx.helper.make_node("Identity", ["images"], ["logits"])
    graph = onnx.helper.make_graph([node], "net", places[:1], places[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    model.metadata_props.add(key="stitchkit", value=about.decode(errors="replace"))
    return bytes(model.SerializeToString())


def _checkpoint(*, is_zip: bool) -> list[Seed]:
    file = io.BytesIO()
    content = {"state_dict": {"a": torch.ones(3)}, "classes": ["a"], "epoch": 3, "arch": "resnet18"}
    content |= {"model_kwargs": {"layers": [1, 1, 1, 1]}, "input_size": [3, 8, 8]}
    torch.save(content, file, _use_new_zipfile_serialization=is_zip)
    return [Seed(file.getvalue())]


def _hub(folder: Path) -> list[Seed]:
    stitchkit.HubSNNet(pico_config(), classes=[*_CLASSES]).save_pretrained(folder)
    return [Seed(json.loads((folder / "config.json").read_text()), JSON)]


_MODEL = {
    "architecture": "vit_tiny_patch16_224", "num_classes": 4, "model_args": {"depth": 1, "embed_dim": 12},
    "pretrained_cfg": {"num_classes": 4, "input_size": [3, 32, 32], "fixed_input_size": True, "first_conv": "a"},
}  # fmt: skip

READERS = {
    "checkpoint": Reader("fuzzed.pth", _checkpoint(is_zip=True), read_checkpoint),
    "checkpoint as an anchor": Reader("fuzzed.pth", _checkpoint(is_zip=True), anchor_source),
    "legacy checkpoint": Reader("fuzzed.pth", _checkpoint(is_zip=False), read_checkpoint),
    "description of an export": Reader("fuzzed.safetensors", _about, stitchkit.load_stitch, _exported),
    "header of an export": Reader(
        "fuzzed.safetensors",
        lambda _: [Seed(json.loads(_header_and_weights()[0]), JSON)],
        _read_export,
        lambda text: len(text).to_bytes(8, "little") + text + _header_and_weights()[1],
    ),
    "description of an ONNX file": Reader("fuzzed.onnx", _about, lambda path: open_predictor(str(path)), _onnx),
    "folder of a model": Reader(
        "config.json", [Seed(_MODEL, JSON)], lambda path: stitchkit.create_model(f"local-dir:{path.parent}")
    ),
    "folder of the hub": Reader("config.json", _hub, lambda path: stitchkit.HubSNNet.from_pretrained(path.parent)),
}
