"""The plan of a sweep: the job for each gap and stitcher, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch

from stitchkit.assembly.config.job import override
from stitchkit.assembly.parts.registry import COMMON, PARTS
from stitchkit.assembly.parts.spec import PartSpec
from stitchkit.assembly.sweep.config import Gap, SweepConfig
from stitchkit.assembly.sweep.shapes import SweepSlice, without_sizes
from stitchkit.assembly.sweep.stitchers import FINETUNE, STITCHERS, DoesNotApply
from stitchkit.assembly.train.result import update_metadata
from stitchkit.display import aligned, quantity
from stitchkit.files import own_folder, write_text
from stitchkit.settings.files import settings_text

UNCUT = ("source", "destination")
"""The two networks of a sweep, which it also evaluates uncut, as a reference."""


@dataclass(frozen=True)
class PlannedJob:
    """One job of a sweep, or one that does not apply.

    Args:
        name: Name of its folder.
        metadata: The metadata in its folder: architecture, gap and adapter.
        config: The configuration of the job; None if the stitcher does not apply.
        adapter: The parts between the two networks; empty without an adapter.
        reason: The reason why the stitcher does not apply.
    """

    name: str
    metadata: dict[str, object]
    config: dict[str, object] | None
    adapter: Sequence[PartSpec] = ()
    reason: str = ""

    def write(self, folder: Path) -> Path:
        """Create its folder in `folder`, with `config.yml` and `metadata.yml`, which keeps facts that a run added."""
        place = own_folder(folder / self.name)
        update_metadata(place / "metadata.yml", self.metadata)
        write_text(place / "config.yml", settings_text(self.config))
        return place


def plan(config: SweepConfig) -> list[PlannedJob]:
    """The uncut networks, and every gap with every stitcher, in the order of the file."""
    stitched = [_planned(config, gap, stitcher) for gap in config.gaps for stitcher in config.stitchers]
    return [*_uncut(config), *stitched]


def _planned(config: SweepConfig, gap: Gap, stitcher: str) -> PlannedJob:
    name = f"train-{config.name}-gap-{gap}-adapter-{stitcher}"
    metadata: dict[str, object] = {
        "arch": config.name,
        "first_deleted_block": gap.first,
        "last_deleted_block": gap.last,
        "num_downsamples": gap.num_downsamples,
        "adapter": stitcher,
    }
    before, after = config.source[: gap.first], config.destination[gap.last + 1 :]
    try:
        if stitcher == FINETUNE:
            kept = _assembly(_finetuned(config, gap), frozen=False)
            return PlannedJob(name, metadata, {"assembly": kept, **config.job})
        adapter = STITCHERS[stitcher].parts(before[-1].gives, after[0].takes, gap.num_downsamples)
    except DoesNotApply as reason:
        return PlannedJob(name, metadata, None, reason=str(reason))
    # An assembly resizes to declared sizes; without them, later slices run at the source's size.
    loosened = ("in_format", "out_format") if STITCHERS[stitcher].resize == "never" else ()
    rest = [without_sizes(part, *loosened) for part in after]
    assembly = _assembly(before, frozen=True) + _assembly(adapter, frozen=False) + _assembly(rest, frozen=True)
    return PlannedJob(name, metadata, {"assembly": assembly, **config.job}, adapter)


def _finetuned(config: SweepConfig, gap: Gap) -> list[SweepSlice]:
    """The rest of the networks and the down-sampling slices inside the gap.

    Raises:
        DoesNotApply: If a slice does not accept the output of the previous one.
    """
    kept = list(config.source[: gap.first])
    for number, part in enumerate(config.destination):
        # Slices alternate between down-sampling and the rest of a stage, so those with even numbers down-sample.
        if number > gap.last or (number >= gap.first and number % 2 == 0):
            given = kept[-1].gives
            if given.converted_to(part.takes) != part.takes:
                raise DoesNotApply(f"slice {number} takes {part.takes}, but the previous slice returns {given}")
            kept.append(part)
    return kept


def _uncut(config: SweepConfig) -> list[PlannedJob]:
    """Jobs that test the two networks uncut: one if they are the same, none if their weights are random."""
    if not config.job.get("pretrained", True):  # random networks only guess
        return []
    jobs = []
    for name in UNCUT[:1] if config.source == config.destination else UNCUT:
        network = config.source if name == "source" else config.destination
        # In a stitched network only the source sees images, so the destination's own normalisation shows only here.
        settings = override(config.job, {"test_only": True, **_own_normalisation(config, network[0])})
        content = {"assembly": _assembly(network, frozen=True), **settings}
        jobs.append(PlannedJob(f"test-{config.name}-uncut-{name}", {"arch": config.name, "uncut": name}, content))
    return jobs


def _own_normalisation(config: SweepConfig, stem: PartSpec) -> dict[str, object]:
    """Settings that normalise a network's images as timm documents, unless the file says how."""
    images = config.job["train_config"].get("data_preprocessing") or {}
    known = timm.get_pretrained_cfg(str(stem.arguments.get("model_name")), allow_unregistered=True)
    if stem.arguments.get("backend", "timm") != "timm" or known is None or "mean" in images or "std" in images:
        return {}
    return {"data_preprocessing": {**images, "mean": list(known.mean), "std": list(known.std)}}


def _assembly(parts: Sequence[PartSpec], *, frozen: bool) -> list[dict[str, object]]:
    return [{part.name: {**part.arguments, "frozen": frozen}} for part in parts]


def table(jobs: Sequence[PlannedJob]) -> str:
    """A plan as text in columns: gap, stitcher, and the adapter's parameters or the reason why there is no adapter."""
    lines = [("gap", "down", "stitcher", "adapter params", "")]
    for job in jobs:
        about = job.metadata
        if "uncut" in about:
            lines.append(("-", "-", f"uncut {about['uncut']}", "-", ""))
            continue
        gap = f"{about['first_deleted_block']},{about['last_deleted_block']}"
        params = quantity(sum(map(_num_params, job.adapter))) if job.adapter else "-"
        reason = f"does not apply: {job.reason}" if job.config is None else "" if job.adapter else "everything trains"
        lines.append((gap, str(about["num_downsamples"]), str(about["adapter"]), params, reason))
    return aligned(lines, left={0, 2, 4})


def _num_params(part: PartSpec) -> int:
    own = {key: value for key, value in part.arguments.items() if key not in COMMON}
    # Built rather than computed, because the blocks are torchvision's and timm's.
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in PARTS[part.name](**own).parameters())
