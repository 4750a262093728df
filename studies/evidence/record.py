"""The record of a row with a seed: its networks, their accuracy, which of them meet which budget, and what it spent."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch

from stitchkit.display import counted
from stitchkit.errors import InputError, one_line
from stitchkit.files import write_text
from stitchkit.measure.latency import processor
from stitchkit.measure.ledger import Row
from stitchkit.settings.files import unique_keys
from studies.evidence.entrants import Entrants
from studies.evidence.images import Split
from studies.evidence.size import Size
from studies.evidence.train import Spent

BUDGETS = 20
_BATCH = 256


def budgets(cheap: float, costly: float) -> list[float]:
    """Budgets from the cheap anchor's FLOPs to those of the costly one, in equal ratios."""
    return [*map(float, np.geomspace(cheap, costly, BUDGETS))]


def limits_of(rows: Sequence[Row]) -> list[float]:
    """The budgets of rows; the first two are the anchors."""
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
        about: What was run, where, and what it spent.
        networks: All networks, with their accuracy on the images that choose them.
        tested: The chosen ones: their `flops` and right answers by typeface, on the images that judge the row.
        test_images: Test images of each typeface.
    """

    about: Mapping[str, Any]
    networks: list[Row]
    tested: list[Row]
    test_images: list[int]

    @property
    def spent(self) -> Spent:
        """What its training took."""
        return Spent(**self.about["spent"])

    def chosen(self, cost: str = "flops") -> list[int]:
        """For each budget, the `cfg_id` of the network that meets it, as the function of this name."""
        return chosen(self.networks, limits_of(self.networks), cost)

    def right(self, cost: str = "flops") -> list[list[int]]:
        """For each budget, the right answers of the network that meets it, by typeface."""
        counts = {row["cfg_id"]: row["right"] for row in self.tested}
        return [counts[cfg_id] for cfg_id in self.chosen(cost)]


@torch.no_grad()
def judge(
    entrants: Entrants, numbers: Sequence[int], split: Split, device: torch.device
) -> tuple[list[Row], npt.NDArray[np.bool_]]:
    """The networks with some numbers, and which images each of them gets right, `[networks, images]`."""
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
        }
        for number, hits, each in zip(numbers, bits, costs, strict=True)
    ]  # fmt: skip
    return rows, bits


def write_record(
    path: Path, entrants: Entrants, splits: Mapping[str, Split], device: torch.device, about: Mapping[str, object],
    *, began: float,
) -> None:  # fmt: skip
    """Judge a row's networks and write its record.

    Args:
        began: When the row began, by `time.perf_counter`.
    """
    rows, _ = judge(entrants, range(len(entrants.names)), splits["validation"], device)
    best = [chosen(rows, limits_of(rows), cost) for cost in ("flops", "worst_flops")]
    tested, bits = judge(entrants, sorted({0, 1}.union(*best)), splits["test"], device)
    typefaces = np.unique(splits["test"].typefaces.numpy(), return_inverse=True)[1]
    content = {
        **about,
        "whole_seconds": time.perf_counter() - began,
        "test_images": np.bincount(typefaces).tolist(),
        "networks": rows,
        "tested": [
            {
                "cfg_id": row["cfg_id"],
                "flops": row["flops"],
                "right": np.bincount(typefaces[hits], minlength=typefaces.max() + 1).tolist(),
            }
            for row, hits in zip(tested, bits, strict=True)
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content) + "\n")


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


def is_recorded(path: Path, size: Size, images: str) -> bool:
    """Whether a row with a seed is finished; a record of another size or other images is refused."""
    if not path.exists():
        return False
    about = read_record(path).about
    if about["size"] != json.loads(json.dumps(asdict(size))) or about["images"] != images:
        raise InputError(
            f"'{path}' was measured at another size or with other images; give another folder by -o, or remove it"
        )
    return True


def read_record(path: Path) -> Record:
    """A finished record.

    Raises:
        InputError: If it is damaged.
    """
    try:
        about: dict[str, Any] = json.loads(path.read_text(), object_pairs_hook=unique_keys)
        record = Record(about, *(about.pop(name) for name in ("networks", "tested", "test_images")))
        spent = record.spent
        _ = spent.flops + spent.seconds + spent.images + about["size"]["budget"] + int(about["seed"])
        _ = float(about.get("whole_seconds", 0)), about["images"], about["machine"]
        right = np.array([*record.right("flops"), *record.right("worst_flops")])
        if right.shape[1:] != np.shape(record.test_images):
            raise ValueError("its networks and its images have different typefaces")
        _ = right / record.test_images, [float(row["flops"]) for row in record.tested]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, InputError) as error:
        raise InputError(
            f"the record '{path}' cannot be read: {one_line(error)}; remove it to measure its row again"
        ) from error
    return record
