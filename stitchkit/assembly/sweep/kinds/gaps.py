"""Sweeps over gaps: every gap bridged by every stitcher, one job each.

Source: the "across scales" sweeps of "Bridging Large Gaps in Neural Network Representations with Model Stitching".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
from pydantic import Field, StrictStr
from pydantic.dataclasses import dataclass

from stitchkit.assembly.config.job import JobConfig
from stitchkit.assembly.config.job_settings import SWEEP_KEYS, override, read_job, refuse_misplaced
from stitchkit.assembly.parts.network import check_network, declared
from stitchkit.assembly.parts.registry import COMMON, PARTS, WrittenPart
from stitchkit.assembly.parts.spec import NetworkSpec, PartSpec
from stitchkit.assembly.sweep.kinds.stitchers import DEFAULT_STITCHERS, FINETUNE, STITCHERS, DoesNotApply
from stitchkit.assembly.sweep.plan import JobSweepFile, PlannedJob, Sweep, all_seeds
from stitchkit.assembly.sweep.settings import Different
from stitchkit.assembly.train.job import check_training
from stitchkit.display import quantity
from stitchkit.errors import InputError, prefixed, unknown
from stitchkit.networks.layout import Layout
from stitchkit.networks.meta import without_values
from stitchkit.settings.fields import Natural
from stitchkit.settings.files import naming
from stitchkit.settings.schema import Settings, parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepSlice(PartSpec):
    """A slice of a network of a sweep, which is a part of a job, with its shapes."""

    takes: Layout  # the full layout of its input
    gives: Layout  # the full layout of its output; without sizes for the last slice, which returns logits


def find_shapes(parts: Sequence[PartSpec], image_size: tuple[int, int]) -> tuple[SweepSlice, ...]:
    """The slices of a network with their shapes for images of this side, found without weights and memory."""
    # Without declared sizes nothing is resized, so each slice shows its own shapes; only images may be resized.
    first = without_sizes(parts[0], "out_format")
    bare = (first, *(without_sizes(part, "in_format", "out_format") for part in parts[1:]))
    size = (3, *image_size)
    # On the meta device nothing is computed: twelve published sweeps are planned in seconds, without weights.
    network, traced = check_network(NetworkSpec(bare), num_classes=1, input_size=size, replaced=True)
    by_part = {id(each.part): each for each in traced}
    layout, slices = Layout("NCHW"), []
    for part, module in zip(parts, network.parts, strict=True):
        ends = by_part[id(module)]
        takes = _shape(ends.takes.tensor, part, "in_format", declared(part, "in_format") or layout)
        layout = Layout("vector")
        if part is not parts[-1]:
            if (out_format := declared(part, "out_format")) is None:
                raise InputError(f"{part.place} has no out_format, which a sweep needs; declare img, token or bert")
            layout = _shape(ends.gives.tensor, part, "out_format", out_format)
        slices.append(SweepSlice(part.name, part.arguments, part.place, takes=takes, gives=layout))
    return tuple(slices)


def without_sizes(part: PartSpec, *keys: str) -> PartSpec:
    """A slice whose formats under these keys are declared by name only, without sizes."""
    names = {key: layout.name for key in keys if (layout := declared(part, key))}
    return replace(part, arguments={**part.arguments, **names})


def _shape(x: torch.Tensor, part: PartSpec, key: str, layout: Layout) -> Layout:
    """The full layout of a slice's input or output, whose declared sizes must be those of the tensor."""
    with prefixed(f"{part.place}.{part.name}.{key}: "):
        shape = layout.sized(x)
        if not shape.positions:
            raise InputError(f"it is {layout}, which has no positions; only the last slice may return that")
        height, width = shape.grid
        if height != width:
            raise InputError(f"{shape} is not square; sweeps need square images")
        if layout.channels not in (None, shape.channels) or layout.positions not in (None, shape.positions):
            does = "takes" if key == "in_format" else "returns"
            raise InputError(f"it is {layout}, but the slice {does} {shape}; correct one of them")
    return shape


@dataclass(frozen=True)
class Gap(Settings):
    """Slices that are dropped between two networks.

    Args:
        blocks_to_drop: Numbers of the first and the last dropped slice; the source's slices before them and the
            destination's after them stay.
        num_downsamples: Number of times that the dropped slices halve the map.
    """

    blocks_to_drop: tuple[Natural, Natural]
    num_downsamples: int = Field(strict=True, ge=0, le=32)

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last:
            raise InputError(f"blocks_to_drop is [{self}]; it must be [first, last] with 1 <= first <= last")

    @property
    def first(self) -> int:
        """Number of the first dropped slice."""
        return self.blocks_to_drop[0]

    @property
    def last(self) -> int:
        """Number of the last dropped slice."""
        return self.blocks_to_drop[1]

    def __str__(self) -> str:
        return f"{self.first},{self.last}"


@dataclass(frozen=True)
class GapFile(JobSweepFile):
    """A sweep over gaps: the settings of its jobs, and the gaps and stitchers to run.

    Args:
        stages: Slices of a network that is stitched to itself.
        src_stages: Slices of the network with the first blocks.
        dest_stages: Slices of the network with the last blocks.
        gaps: The slices to drop; by default those of the published sweeps.
        stitchers: The names of the stitchers to try; by default those of the published sweeps.
    """

    stages: tuple[WrittenPart, ...] | None = Field(default=None, min_length=1)
    src_stages: tuple[WrittenPart, ...] | None = Field(default=None, min_length=1)
    dest_stages: tuple[WrittenPart, ...] | None = Field(default=None, min_length=1)
    gaps: Annotated[tuple[Gap, ...], Field(min_length=1), Different] | None = None
    stitchers: Annotated[tuple[StrictStr, ...], Field(min_length=1), Different] | None = None


DEFAULT_GAPS = tuple(
    Gap((first, last), num_downsamples)
    for first, last, num_downsamples in (
        (1, 1, 0), (1, 2, 1), (1, 4, 2), (1, 6, 3), (3, 3, 0), (3, 4, 1), (3, 6, 2), (5, 5, 0), (5, 6, 1)
    )
)  # fmt: skip
"""The nine of the published sweeps, for networks of eight slices."""


@dataclasses.dataclass(frozen=True)
class _SlicedNetworks:
    """The two networks of a sweep in slices, and what all its jobs share.

    Args:
        source: Slices of the network with the first blocks: a stem, the rest of its stage, then alternately a
            down-sampling slice and the rest of its stage.
    """

    sweep: str  # the stem of its file, which begins the names of its jobs' folders
    source: tuple[SweepSlice, ...]
    destination: tuple[SweepSlice, ...]  # slices of the network with the last blocks, in the same order
    job: Mapping[str, Any]  # all other keys of the file, for every job


UNCUT = ("source", "destination")
"""The two networks of a sweep, which it also evaluates uncut, as a reference."""


def plan_gaps(path: str | Path, **changes: object) -> Sweep:
    """The uncut networks, and every gap with every stitcher, in the order of the file."""
    content = read_job(path, changes)
    with naming(path):
        # Missing and null mean the same, as for all keys whose default is None.
        keys = [key for key in ("stages", "src_stages", "dest_stages") if content.get(key) is not None]
        if keys not in (["stages"], ["src_stages", "dest_stages"]):
            raise InputError("a sweep has either stages, or src_stages and dest_stages; set one of the two")
        refuse_misplaced(content)
        file = parse(GapFile, content)
        if wrong := next((key for key in ("model", "assembly") if key in content), None):
            raise InputError(f"{wrong}: a sweep has slices in place of a network; remove it")
        slices = [
            [PartSpec.parse(part, f"{key}[{number}]") for number, part in enumerate(getattr(file, key))] for key in keys
        ]
        job = {key: value for key, value in content.items() if key not in SWEEP_KEYS}
        # The settings of all jobs are checked now, with a network in place of theirs, which are not known yet.
        whole = JobConfig.parse({"assembly": [{part.name: part.arguments} for part in slices[0]], **job})
        check_training(whole)
        image_size = whole.train_config.resolved_tasks[0].data_preprocessing.size
        cut = [find_shapes(parts, image_size) for parts in slices]
        networks = _SlicedNetworks(Path(path).stem, cut[0], cut[-1], job)
        gaps, stitchers = file.gaps or DEFAULT_GAPS, file.stitchers or DEFAULT_STITCHERS
        _check(networks, gaps, stitchers)
    stitched = [_planned(networks, gap, stitcher) for gap in gaps for stitcher in stitchers]
    return Sweep([*_uncut(networks), *stitched], all_seeds(file, job), file.slurm)


def _check(networks: _SlicedNetworks, gaps: Sequence[Gap], stitchers: Sequence[str]) -> None:
    for number, stitcher in enumerate(stitchers):
        if stitcher not in (FINETUNE, *STITCHERS):
            raise InputError(f"stitchers[{number}]: {unknown('stitcher', stitcher, (FINETUNE, *STITCHERS))}")
    # After the source's slices up to `first` come the destination's behind `last`; neither side may be empty.
    last = len(networks.source) - 1, len(networks.destination) - 1
    for number, gap in enumerate(gaps):
        if gap.first > last[0] or gap.last >= last[1]:
            raise InputError(
                f"gaps[{number}]: [{gap}] leaves no slice of a network; the source has slices 0 to {last[0]}, the "
                f"destination 0 to {last[1]}"
            )


def _planned(networks: _SlicedNetworks, gap: Gap, stitcher: str) -> PlannedJob:
    name = f"train-{networks.sweep}-gap-{gap}-adapter-{stitcher}"
    metadata = _metadata(networks, gap, stitcher)
    columns = {"gap": f"{gap}", "down": f"{gap.num_downsamples}", "stitcher": stitcher}
    before, after = networks.source[: gap.first], networks.destination[gap.last + 1 :]
    try:
        if stitcher == FINETUNE:
            kept = _assembly(_finetuned(networks, gap), frozen=False)
            return PlannedJob(name, metadata, {"assembly": kept, **networks.job}, columns, "everything trains")
        adapter = STITCHERS[stitcher].parts(before[-1].gives, after[0].takes, gap.num_downsamples)
    except DoesNotApply as reason:
        return PlannedJob(name, metadata, {}, columns, str(reason))
    # An assembly resizes to declared sizes; without them, later slices run at the source's size.
    loosened = ("in_format", "out_format") if STITCHERS[stitcher].resize == "never" else ()
    rest = [without_sizes(part, *loosened) for part in after]
    assembly = _assembly(before, frozen=True) + _assembly(adapter, frozen=False) + _assembly(rest, frozen=True)
    columns |= {"adapter params": quantity(sum(map(_num_params, adapter)))}
    return PlannedJob(name, metadata, {"assembly": assembly, **networks.job}, columns)


def _metadata(
    networks: _SlicedNetworks, gap: Gap | None = None, stitcher: str = "", uncut: str = ""
) -> dict[str, object]:
    """The facts about a job; the published scripts need the same keys in all of them, and no value that is none."""
    first, last, num_downsamples = (-1, -1, 0) if gap is None else (gap.first, gap.last, gap.num_downsamples)
    return {
        "arch": networks.sweep, "first_deleted_block": first, "last_deleted_block": last,
        "num_downsamples": num_downsamples, "adapter": stitcher, "uncut": uncut,
    }  # fmt: skip


def _finetuned(networks: _SlicedNetworks, gap: Gap) -> list[SweepSlice]:
    """The rest of the networks and the down-sampling slices inside the gap."""
    kept = list(networks.source[: gap.first])
    for number, part in enumerate(networks.destination):
        # Slices alternate between down-sampling and the rest of a stage, so those with even numbers down-sample.
        if number > gap.last or (number >= gap.first and number % 2 == 0):
            before = kept[-1].gives
            if before.converted_to(part.takes) != part.takes:
                raise DoesNotApply(f"slice {number} takes {part.takes}, but the previous slice returns {before}")
            kept.append(part)
    return kept


def _uncut(networks: _SlicedNetworks) -> list[PlannedJob]:
    """Jobs that test the two networks uncut: one if they are the same, none if their weights are random."""
    if not networks.job.get("pretrained", True):  # random networks only guess
        return []
    jobs = []
    for name in UNCUT[:1] if networks.source == networks.destination else UNCUT:
        network = networks.source if name == "source" else networks.destination
        # In a stitched network only the source sees images, so the destination's own normalisation shows only here.
        settings = override(networks.job, {"test_only": True, **_own_normalisation(networks, network[0])})
        content = {"assembly": _assembly(network, frozen=True), **settings}
        metadata, columns = _metadata(networks, uncut=name), {"gap": "-", "down": "-", "stitcher": f"uncut {name}"}
        jobs.append(PlannedJob(f"test-{networks.sweep}-uncut-{name}", metadata, content, columns))
    return jobs


def _own_normalisation(networks: _SlicedNetworks, stem: PartSpec) -> dict[str, object]:
    """Settings that normalise a network's images as timm documents, unless the file says how."""
    images = networks.job["train_config"].get("data_preprocessing") or {}
    known = timm.get_pretrained_cfg(str(stem.arguments.get("model_name")), allow_unregistered=True)
    if stem.arguments.get("backend", "timm") != "timm" or known is None or "mean" in images or "std" in images:
        return {}
    return {"data_preprocessing": {**images, "mean": list(known.mean), "std": list(known.std)}}


def _assembly(parts: Sequence[PartSpec], *, frozen: bool) -> list[dict[str, object]]:
    # The file may say `statistics`.
    return [
        {part.name: {**part.arguments, "frozen": frozen and (part.arguments.get("frozen") or True)}} for part in parts
    ]


def _num_params(part: PartSpec) -> int:
    own = {key: value for key, value in part.arguments.items() if key not in COMMON}
    with without_values():  # built rather than computed, because the blocks are torchvision's and timm's
        return sum(parameter.numel() for parameter in PARTS[part.name](**own).parameters())
