"""The record of a row with a seed: what its networks answer, which of them meet which budget, and what it has spent."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from stitchkit.display import counted
from stitchkit.errors import InputError, one_line
from stitchkit.evidence.entrants import Entrants
from stitchkit.evidence.images import Split
from stitchkit.evidence.size import Size
from stitchkit.evidence.train import Spent
from stitchkit.files import write_text
from stitchkit.measure.hits import Hits, hits_file, read_hits, write_hits
from stitchkit.measure.latency import processor
from stitchkit.measure.ledger import Row, read_rows, write_rows
from stitchkit.settings.files import unique_keys

BUDGETS = 20
_ABOUT, _VALIDATION, _TEST = "about.json", "validation.txt", "test.txt"
_BATCH = 256


def budgets(cheap: float, costly: float) -> list[float]:
    """Budgets from the cheap anchor's FLOPs to those of the costly one, in equal ratios."""
    return [*map(float, np.geomspace(cheap, costly, BUDGETS))]


def limits_of(rows: Sequence[Row]) -> list[float]:
    """The budgets of rows, of which the first two are the anchors."""
    return budgets(rows[0]["flops"], rows[1]["flops"])


def chosen(rows: Sequence[Row], limits: Sequence[float], cost: str = "flops") -> list[int]:
    """For each budget, the `cfg_id` of the most accurate row within it; the cheapest of equally accurate ones.

    The cost is `flops`, those of an image on average, or `worst_flops`, those of the costliest image.
    """
    found = []
    for limit in limits:
        within = [row for row in rows if row[cost] <= limit * (1 + 1e-9)]  # the ends are equal but for rounding
        found.append(max(within, key=lambda row: (row["acc1"], -row["flops"]))["cfg_id"])
    return found


@dataclass(frozen=True)
class Record:
    """A finished row of one seed.

    Args:
        about: What was run, where, and what it has spent.
        validation: The ledger of all networks on the images by which they are chosen.
        test: That of the chosen ones on the images by which the row is judged.
        hits: Those of `test`.
    """

    about: Mapping[str, Any]
    validation: list[Row]
    test: list[Row]
    hits: Hits

    @property
    def spent(self) -> Spent:
        """What its training took."""
        return Spent(**self.about["spent"])

    def chosen(self, cost: str = "flops") -> list[int]:
        """For each budget, the `cfg_id` of the network that meets it, as the function of this name."""
        return chosen(self.validation, limits_of(self.validation), cost)


@torch.no_grad()
def judge(entrants: Entrants, numbers: Sequence[int], split: Split, device: torch.device) -> tuple[list[Row], Hits]:
    """The rows and the hits of the networks with some numbers."""
    right, flops = [], []
    for images, labels in split.batches(_BATCH, device):
        answers = entrants.answer(images, numbers)
        right.append((answers.classes == labels).cpu())
        flops.append(answers.flops.double().cpu())
    bits, costs = torch.cat(right, dim=1).numpy(), torch.cat(flops, dim=1).numpy()
    rows: list[Row] = [
        {
            "cfg_id": number, "name": entrants.names[number], "flops": round(each.mean()),
            "worst_flops": round(each.max()), "params": entrants.params[number], "acc1": 100 * float(hits.mean()),
            "images": len(split),
        }
        for number, hits, each in zip(numbers, bits, costs, strict=True)
    ]  # fmt: skip
    names = tuple(f"{typeface}/{number}" for number, typeface in enumerate(split.typefaces.tolist()))
    return rows, Hits(tuple(numbers), bits, np.ones_like(bits), split.labels.numpy(), names)


def write_record(
    folder: Path, entrants: Entrants, splits: Mapping[str, Split], device: torch.device, about: Mapping[str, object],
    *, began: float,
) -> None:  # fmt: skip
    """Judge a row's networks and write its record; the last file says that it is complete.

    Args:
        began: When the row began, by `time.perf_counter`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows, hits = judge(entrants, range(len(entrants.names)), splits["validation"], device)
    best = [chosen(rows, limits_of(rows), cost) for cost in ("flops", "worst_flops")]
    tested, test_hits = judge(entrants, sorted({0, 1}.union(*best)), splits["test"], device)
    for name, some, bits in ((_VALIDATION, rows, hits), (_TEST, tested, test_hits)):
        write_rows(folder / name, some)
        write_hits(hits_file(folder / name), bits)
    whole = {**about, "whole_seconds": time.perf_counter() - began}
    write_text(folder / _ABOUT, json.dumps(whole, indent=2) + "\n")


def about_run(name: str, seed: int, size: Size, spent: Spent, images: str) -> dict[str, object]:
    """What a record says of its making; `images` identifies the data."""
    machine = f"{processor()}, {counted(torch.get_num_threads(), 'thread')}"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    return {
        "row": name, "seed": seed, "spent": asdict(spent), "images": images, "machine": machine,
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}",
        "size": asdict(size),
    }  # fmt: skip


def is_recorded(folder: Path, size: Size, images: str) -> bool:
    """Whether a row with a seed is finished; a record of another size or other images is refused."""
    if not (folder / _ABOUT).exists():
        return False
    found = _read_about(folder)
    if found["size"] != json.loads(json.dumps(asdict(size))) or found["images"] != images:
        raise InputError(
            f"'{folder}' was measured at another size or with other images; give another folder by -o, or remove it"
        )
    return True


def read_record(folder: Path) -> Record:
    """A finished record.

    Raises:
        InputError: If one of its files is missing or damaged.
    """
    about = _read_about(folder)
    with _undamaged(folder):
        test = folder / _TEST
        found = Record(about, read_rows(folder / _VALIDATION), read_rows(test), read_hits(hits_file(test)))
        for cost in ("flops", "worst_flops"):
            tested = {row["cfg_id"]: float(row[cost]) for row in found.test}
            _ = found.hits.of(found.chosen(cost)), [tested[cfg_id] for cfg_id in found.chosen(cost)]
    return found


def _read_about(folder: Path) -> dict[str, Any]:
    with _undamaged(folder):
        found: dict[str, Any] = json.loads((folder / _ABOUT).read_text(), object_pairs_hook=unique_keys)
        spent = Spent(**found["spent"])
        _ = spent.flops + spent.seconds + spent.images + found["size"]["budget"] + int(found["seed"])
        _ = float(found.get("whole_seconds", 0)), found["images"], found["machine"]
    return found


@contextmanager
def _undamaged(folder: Path) -> Iterator[None]:
    """Say of a damaged record what to do about it."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, RecursionError, InputError) as error:
        raise InputError(
            f"the record '{folder}' cannot be read: {one_line(error)}; remove the folder to measure its row again"
        ) from error
