"""The jobs of a sweep over gaps: one for each gap and stitcher, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Sequence

import timm
import torch

from stitchkit.assembly.config.job_settings import override
from stitchkit.assembly.parts.registry import COMMON, PARTS
from stitchkit.assembly.parts.spec import PartSpec
from stitchkit.assembly.sweep.kinds.gaps import Gap, GapSweep
from stitchkit.assembly.sweep.kinds.shapes import SweepSlice, without_sizes
from stitchkit.assembly.sweep.kinds.stitchers import FINETUNE, STITCHERS, DoesNotApply
from stitchkit.assembly.sweep.plan import PlannedJob, Sweep
from stitchkit.display import quantity

UNCUT = ("source", "destination")
"""The two networks of a sweep, which it also evaluates uncut, as a reference."""


def plan_gaps(config: GapSweep) -> Sweep:
    """The uncut networks, and every gap with every stitcher, in the order of the file."""
    stitched = [_planned(config, gap, stitcher) for gap in config.gaps for stitcher in config.stitchers]
    return Sweep([*_uncut(config), *stitched], config.seeds, config.resources)


def _planned(config: GapSweep, gap: Gap, stitcher: str) -> PlannedJob:
    name = f"train-{config.name}-gap-{gap}-adapter-{stitcher}"
    metadata = _metadata(config, gap, stitcher)
    columns = {"gap": f"{gap}", "down": f"{gap.num_downsamples}", "stitcher": stitcher}
    before, after = config.source[: gap.first], config.destination[gap.last + 1 :]
    try:
        if stitcher == FINETUNE:
            kept = _assembly(_finetuned(config, gap), frozen=False)
            return PlannedJob(name, metadata, {"assembly": kept, **config.job}, columns, "everything trains")
        adapter = STITCHERS[stitcher].parts(before[-1].gives, after[0].takes, gap.num_downsamples)
    except DoesNotApply as reason:
        return PlannedJob(name, metadata, {}, columns, str(reason))
    # An assembly resizes to declared sizes; without them, later slices run at the source's size.
    loosened = ("in_format", "out_format") if STITCHERS[stitcher].resize == "never" else ()
    rest = [without_sizes(part, *loosened) for part in after]
    assembly = _assembly(before, frozen=True) + _assembly(adapter, frozen=False) + _assembly(rest, frozen=True)
    columns |= {"adapter params": quantity(sum(map(_num_params, adapter)))}
    return PlannedJob(name, metadata, {"assembly": assembly, **config.job}, columns)


def _metadata(config: GapSweep, gap: Gap | None = None, stitcher: str = "", uncut: str = "") -> dict[str, object]:
    """The facts about a job; the published scripts need the same keys in all of them, and no value that is none."""
    return {
        "arch": config.name,
        "first_deleted_block": -1 if gap is None else gap.first,
        "last_deleted_block": -1 if gap is None else gap.last,
        "num_downsamples": 0 if gap is None else gap.num_downsamples,
        "adapter": stitcher,
        "uncut": uncut,
    }


def _finetuned(config: GapSweep, gap: Gap) -> list[SweepSlice]:
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


def _uncut(config: GapSweep) -> list[PlannedJob]:
    """Jobs that test the two networks uncut: one if they are the same, none if their weights are random."""
    if not config.job.get("pretrained", True):  # random networks only guess
        return []
    jobs = []
    for name in UNCUT[:1] if config.source == config.destination else UNCUT:
        network = config.source if name == "source" else config.destination
        # In a stitched network only the source sees images, so the destination's own normalisation shows only here.
        settings = override(config.job, {"test_only": True, **_own_normalisation(config, network[0])})
        content = {"assembly": _assembly(network, frozen=True), **settings}
        metadata, columns = _metadata(config, uncut=name), {"gap": "-", "down": "-", "stitcher": f"uncut {name}"}
        jobs.append(PlannedJob(f"test-{config.name}-uncut-{name}", metadata, content, columns))
    return jobs


def _own_normalisation(config: GapSweep, stem: PartSpec) -> dict[str, object]:
    """Settings that normalise a network's images as timm documents, unless the file says how."""
    images = config.job["train_config"].get("data_preprocessing") or {}
    known = timm.get_pretrained_cfg(str(stem.arguments.get("model_name")), allow_unregistered=True)
    if stem.arguments.get("backend", "timm") != "timm" or known is None or "mean" in images or "std" in images:
        return {}
    return {"data_preprocessing": {**images, "mean": list(known.mean), "std": list(known.std)}}


def _assembly(parts: Sequence[PartSpec], *, frozen: bool) -> list[dict[str, object]]:
    def how(part: PartSpec) -> object:  # the file may say `statistics`
        return frozen and (part.arguments.get("frozen") or True)

    return [{part.name: {**part.arguments, "frozen": how(part)}} for part in parts]


def _num_params(part: PartSpec) -> int:
    own = {key: value for key, value in part.arguments.items() if key not in COMMON}
    # Built rather than computed, because the blocks are torchvision's and timm's.
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in PARTS[part.name](**own).parameters())
