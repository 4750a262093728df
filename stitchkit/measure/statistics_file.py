"""The file beside a ledger with the batch-norm statistics of its stitches, which its figures depend on."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from stitchkit.errors import InputError
from stitchkit.files import replacing
from stitchkit.measure.ledger import Row, fault_of
from stitchkit.measure.ledger_origin import origin_file
from stitchkit.measure.recalibrate import FIGURES
from stitchkit.model.snnet import SNNet
from stitchkit.model.statistics import Statistics, weights_digest
from stitchkit.networks.weights import misfit
from stitchkit.settings.files import read_settings_file, unique_keys

_FORMAT = "stitchkit statistics 1"
_AGAIN = "remove it and its ledger, and repeat --eval"

Kept = tuple[Statistics, Mapping[str, object]]
"""The statistics of a stitch, none if it has the shared ones, and what its row in the ledger says of them."""


def statistics_file(ledger: str | Path) -> Path:
    """The file beside a ledger."""
    return Path(ledger).with_suffix(".statistics.safetensors")


def write_statistics(
    path: Path, model: SNNet, kept: Mapping[int, Kept], origin: Mapping[str, object] | None = None
) -> None:
    """Write the statistics of stitches, and with them their `origin`: all that they depend on beside the weights."""
    tensors = {
        f"{cfg_id}.{name}": value.detach().cpu().contiguous()
        for cfg_id, (statistics, _) in kept.items()
        for name, value in statistics.items()
    }
    routes = {cfg_id: {"stitch": model.space[cfg_id].name, **figures} for cfg_id, (_, figures) in kept.items()}
    about = {
        "format": _FORMAT,
        "weights_sha256": weights_digest(model.state_dict()),
        "origin": origin,
        "routes": routes,
    }
    with replacing(path) as draft:
        draft.write_bytes(save(tensors, metadata={"about": json.dumps(about)}))


def read_statistics(
    path: str | Path,
    model: SNNet,
    origin: Mapping[str, object] | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> dict[int, Kept] | None:
    """The statistics of stitches in a file, on the CPU; None if they are of other weights, or not of this origin.

    `weights` are those that were loaded into the model, if its own precision has rounded them.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["about"], object_pairs_hook=unique_keys)
            if about["format"] != _FORMAT:
                raise ValueError("it is of another format")
            if about["weights_sha256"] != weights_digest(weights or model.state_dict()):
                return None
            if origin is not None and about["origin"] != json.loads(json.dumps(origin)):
                return None
            routes: dict[int, dict[str, Any]] = {int(cfg_id): dict(row) for cfg_id, row in about["routes"].items()}
            parts = defaultdict[int, dict[str, torch.Tensor]](dict)
            shared = model.state_dict()
            for key in file.keys():  # noqa: SIM118 # not a mapping
                number, _, name = key.partition(".")
                if int(number) not in routes or not name.endswith((".running_mean", ".running_var")):
                    raise ValueError(f"{key} is not of its routes")
                parts[int(number)][name] = value = file.get_tensor(key)
                if fault := misfit(name, value, shared[name]):
                    raise ValueError(fault)
                if name.endswith(".running_var") and (value < 0).any():
                    raise ValueError(f"{key} is negative")
        for cfg_id, about_route in routes.items():
            if about_route.pop("stitch") != model.space[cfg_id].name:
                raise ValueError(f"cfg_id {cfg_id} is another stitch here")
            if fault := "other figures" if about_route.keys() - FIGURES else fault_of(about_route):
                raise ValueError(f"cfg_id {cfg_id} has {fault}")
            whole = {f"{name}.{kind}" for name in model.norms_of(cfg_id) for kind in ("running_mean", "running_var")}
            of_head = {name for name in whole if not name.startswith("anchors.")}
            if parts[cfg_id].keys() not in (set(), whole, of_head):
                raise ValueError(f"cfg_id {cfg_id} lacks some of its statistics")
    except Exception as error:  # a damaged file can hold anything
        raise InputError(
            f"'{path}', which has the batch-norm statistics of stitches, cannot be read: {error}; {_AGAIN}"
        ) from error
    return {cfg_id: (parts[cfg_id], about_route) for cfg_id, about_route in routes.items()}


def load_statistics(model: SNNet, ledger: str | Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """Give the stitches of a network the batch-norm statistics beside a ledger, if they fit its weights and origin."""
    path, origin = statistics_file(ledger), origin_file(ledger)
    made = read_settings_file(origin) if origin.is_file() else None
    kept = read_statistics(path, model, made, weights) if path.is_file() else None
    shared = model.state_dict()
    model.statistics = {
        cfg_id: {name: value.to(shared[name]) for name, value in statistics.items()}
        for cfg_id, (statistics, _) in (kept or {}).items()
    }


def without_statistics(known: Container[int], rows: Iterable[Row]) -> list[int]:
    """The `cfg_id`s of rows that were measured with statistics of their own, if these are not known."""
    return [row["cfg_id"] for row in rows if "recalibrate_bn" in row and row["cfg_id"] not in known]


def check_statistics(known: Container[int], ledger: str | Path, rows: Iterable[Row]) -> None:
    """Refuse a ledger with figures of statistics that are not known."""
    if lacking := without_statistics(known, rows):
        path = statistics_file(ledger)
        where = "lacks them, or is of other weights or another evaluation" if path.is_file() else "does not exist"
        raise InputError(
            f"ledger '{ledger}' was measured with batch-norm statistics of single stitches, such as cfg_id "
            f"{lacking[0]}, but '{path}' {where}; copy it from the run, or move the ledger away and repeat --eval"
        )
