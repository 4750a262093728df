"""The plan of a sweep: the job for each gap and stitcher, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import timm
import torch

from stitchkit.assembly.parts.registry import COMMON, PARTS
from stitchkit.assembly.parts.spec import PartSpec
from stitchkit.assembly.sweep.config import CutNetwork, Gap, SweepConfig
from stitchkit.assembly.sweep.shapes import without_sizes
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
    adapter: tuple[PartSpec, ...] = ()
    reason: str = ""

    def write(self, folder: Path) -> Path:
        """Create its folder in `folder`, with `config.yml` and `metadata.yml`, which keeps facts that a run added."""
        place = own_folder(folder / self.name)
        about = place / "metadata.yml"
        update_metadata(about, self.metadata)
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
    try:
        if stitcher == FINETUNE:
            return PlannedJob(name, metadata, _job(config, _finetuned(config, gap)))
        before, adapter, after = _stitched(config, gap, stitcher)
    except DoesNotApply as reason:
        return PlannedJob(name, metadata, None, reason=str(reason))
    parts = [*_frozen(before, True), *_frozen(adapter, False), *_frozen(after, True)]
    return PlannedJob(name, metadata, _job(config, parts), tuple(adapter))


def _uncut(config: SweepConfig) -> list[PlannedJob]:
    """Jobs that test the two networks uncut: one if they are the same, none if their weights are random."""
    if not config.job.get("pretrained", True):  # random networks only guess
        return []
    networks = [config.source] if config.source == config.destination else [config.source, config.destination]
    return [
        PlannedJob(
            f"test-{config.name}-uncut-{name}",
            {"arch": config.name, "uncut": name},
            {**_job(config, _frozen(network.slices, True)), **_own_preprocessing(config, network), "test_only": True},
        )
        for name, network in zip(UNCUT, networks, strict=False)
    ]


def _own_preprocessing(config: SweepConfig, network: CutNetwork) -> dict[str, object]:
    """Settings that normalise a network's images as timm documents, unless the file says how.

    In a stitched network only the source sees images, so the destination's own normalisation shows only here.
    """
    train = config.train
    images = train.get("data_preprocessing") or {}
    assert isinstance(images, Mapping), "the file was checked"
    arguments = network.slices[0].arguments
    known = timm.get_pretrained_cfg(str(arguments.get("model_name")), allow_unregistered=True)
    if arguments.get("backend", "timm") != "timm" or known is None or "mean" in images or "std" in images:
        return {}
    own = {"mean": list(known.mean), "std": list(known.std)}
    return {"train_config": {**train, "data_preprocessing": {**images, **own}}}


def _job(config: SweepConfig, parts: Sequence[PartSpec]) -> dict[str, object]:
    return {"assembly": [{part.name: dict(part.arguments)} for part in parts], **config.job}


def _stitched(config: SweepConfig, gap: Gap, name: str) -> tuple[list[PartSpec], list[PartSpec], list[PartSpec]]:
    """The source's slices, the adapter and the destination's slices."""
    stitcher = STITCHERS[name]
    given = config.source.shapes[gap.first - 1].gives
    taken = config.destination.shapes[gap.last + 1].takes
    assert given is not None, "a gap comes after a slice"
    assert taken is not None, "a gap comes before a slice"
    adapter = stitcher.parts(given, taken, gap.num_downsamples)
    after = list(config.destination.slices[gap.last + 1 :])
    if stitcher.keeps_size:
        # An assembly resizes to declared sizes; without them, later slices run at the source's size.
        after = [without_sizes(spec, "in_format", "out_format") for spec in after]
    return list(config.source.slices[: gap.first]), adapter, after


def _finetuned(config: SweepConfig, gap: Gap) -> list[PartSpec]:
    """The rest of the networks and the down-sampling slices inside the gap, all trained.

    Raises:
        DoesNotApply: If a slice does not accept the output of the previous one.
    """
    # Slices alternate between down-sampling and the rest of a stage, so those with even numbers down-sample.
    kept = [number for number in range(gap.first, gap.last + 1) if number % 2 == 0]
    numbers = [*kept, *range(gap.last + 1, len(config.destination.slices))]
    given = config.source.shapes[gap.first - 1].gives
    for number in numbers:
        takes, gives = config.destination.shapes[number]
        assert given is not None, "only the last slice gives no map"
        assert takes is not None, "only the first slice takes an image"
        if given.converted_to(takes) != takes:
            raise DoesNotApply(f"slice {number} takes {takes}, but the previous slice returns {given}")
        given = gives
    return _frozen(
        [*config.source.slices[: gap.first], *(config.destination.slices[number] for number in numbers)], False
    )


def _frozen(parts: Sequence[PartSpec], frozen: bool) -> list[PartSpec]:
    return [replace(part, arguments={**part.arguments, "frozen": frozen}) for part in parts]


def table(jobs: Sequence[PlannedJob]) -> str:
    """A plan as text in columns: gap, stitcher, and the adapter's parameters or the reason why there is no adapter."""
    lines = [("gap", "down", "stitcher", "adapter params", "")]
    for job in jobs:
        about = job.metadata
        if "uncut" in about:
            lines.append(("-", "-", f"uncut {about['uncut']}", "-", ""))
            continue
        gap = f"{about['first_deleted_block']},{about['last_deleted_block']}"
        params = quantity(num_params(job.adapter)) if job.adapter else "-"
        reason = f"does not apply: {job.reason}" if job.config is None else "" if job.adapter else "everything trains"
        lines.append((gap, str(about["num_downsamples"]), str(about["adapter"]), params, reason))
    return aligned(lines, left={0, 2, 4})


def num_params(adapter: Sequence[PartSpec]) -> int:
    """Parameters of the parts of an adapter."""
    count = 0
    # Built rather than computed, because the blocks are torchvision's and timm's.
    with torch.device("meta"):
        for part in adapter:
            own = {key: value for key, value in part.arguments.items() if key not in COMMON}
            count += sum(parameter.numel() for parameter in PARTS[part.name](**own).parameters())
    return count
