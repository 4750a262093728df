"""The blocks of a network, found from its modules: what rules count, whether a network has a view or is traced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import groupby

from torch import nn

from stitchkit.errors import InputError
from stitchkit.networks.cut.refusal import passes_several
from stitchkit.networks.cut.tracer import is_group, is_stage, paths_to
from stitchkit.networks.steps import Steps

_CONTAINERS = (nn.Sequential, nn.ModuleList)


def find_blocks(steps: Steps) -> tuple[list[int], tuple[int, ...]]:
    """The boundaries that separate blocks, and the number of blocks of each stage.

    A block is a module of several that stand in a row, such as in a list, which one tensor leaves. Blocks in one row
    whose tensors have the same positions are a stage. A stage begins and ends where the module around it does, so
    that what runs before a block, such as down-sampling, belongs to it, and a stage's last norm to its last block. In
    a network without blocks, or with some inside its steps only, each step is one.

    Returns:
        The numbers of the boundaries: before the first block, and after each; and the blocks per stage.

    Raises:
        InputError: If there are no two blocks between which only one tensor passes.
    """
    boundaries = steps.boundaries
    ends = {name: number for number, boundary in enumerate(boundaries) for name in boundary.after}
    begins = {name: number for number, boundary in reversed([*enumerate(boundaries)]) for name in boundary.before}
    modules = dict(steps.model.named_modules())
    rows = _rows(modules)
    paths = sorted(_block_paths(modules, rows, ends), key=ends.__getitem__)

    def row(path: str) -> tuple[str, object]:
        layout = boundaries[ends[path]].found
        return path.rpartition(".")[0], layout and layout.positions

    stages = _trunk([list(stage) for _, stage in groupby(paths, row)], modules, rows)
    numbers = [begins[name] for name in _around(stages, 0) if name in begins][:1] if stages else []
    depths = [len(stage) for stage in stages]
    if not numbers and depths:  # the first block takes the images: it is the stem
        depths[0] -= 1
    for number, stage in enumerate(stages):
        last = max(ends[name] for name in _around(stages, number) if name in ends)
        numbers += [*(ends[path] for path in stage[:-1]), last]
    if sum(depths) < 2 or numbers != sorted(set(numbers)):
        _check_separate(steps, modules)
        rows_of_steps = groupby(boundary.found and boundary.found.positions for boundary in boundaries[1:])
        return [*range(len(boundaries))], tuple(len(list(stage)) for _, stage in rows_of_steps)
    return numbers, tuple(filter(None, depths))


def _rows(modules: Mapping[str, nn.Module]) -> set[str]:
    """Paths of the modules whose children stand in a row."""
    # Also a stage that has only one block of its class.
    kinds = {type(module) for module in modules.values() if is_stage(module)}
    return {path for path, module in modules.items() if isinstance(module, (*_CONTAINERS, *kinds))}


def _block_paths(modules: Mapping[str, nn.Module], rows: Container[str], ends: Container[str]) -> Iterator[str]:
    """Paths of the blocks: of candidates inside one another the smallest, but a block's class is one everywhere."""
    candidates = [
        path
        for path, module in modules.items()
        if path in ends and path.rpartition(".")[0] in rows and any(True for _ in module.children())
    ]
    outer = {around for path in candidates for around in paths_to(path)[:-1]}
    whole = {type(modules[path]) for path in candidates if path not in outer}.difference(_CONTAINERS)
    latest = ""
    for path in candidates:  # outer modules come first
        if latest and path.startswith(f"{latest}."):
            continue
        if path not in outer or type(modules[path]) in whole or is_group(modules[path]):
            latest = path
            yield path


def _trunk(stages: list[list[str]], modules: Mapping[str, nn.Module], rows: Container[str]) -> list[list[str]]:
    """The stages that stand where most blocks do, or have blocks of the same classes: no stem, no head."""

    def place(stage: Sequence[str]) -> str:
        row = paths_to(stage[0])[:-1]
        return ".".join("*" if path.rpartition(".")[0] in rows else path.rpartition(".")[2] for path in row)

    counts = Counter[str]()
    for stage in stages:
        counts[place(stage)] += len(stage)
    trunk = [stage for stage in stages if place(stage) == max(counts, key=counts.__getitem__)]
    kinds = {type(modules[path]) for stage in trunk for path in stage}
    return [stage for stage in stages if stage in trunk or kinds.intersection(type(modules[path]) for path in stage)]


def _around(stages: Sequence[Sequence[str]], number: int) -> list[str]:
    """The first and the last block of a stage, and the modules around them that hold no other stage's blocks."""
    others = {path for other, stage in enumerate(stages) if other != number for path in stage}
    shared = {around for path in others for around in paths_to(path)}
    stage = stages[number]
    return [name for path in (stage[0], stage[-1]) for name in paths_to(path) if name not in shared]


def _check_separate(steps: Steps, modules: Mapping[str, nn.Module]) -> None:
    """Refuse a network whose blocks are all inside one step, with the tensors that pass between them."""

    def kind(path: str) -> tuple[str, type[nn.Module]]:
        return path.rpartition(".")[0], type(modules[path])

    flow = steps.flow
    inner = [path for path in flow.regions if path in modules and any(True for _ in modules[path].children())]
    inner = [path for path in inner if type(modules[path]) not in _CONTAINERS]
    rivals = Counter(map(kind, inner))
    blocks = [path for path in inner if rivals[kind(path)] > 1]
    if blocks:
        first, last = flow.place[flow.regions[blocks[0]][-1]], flow.place[flow.regions[blocks[-1]][0]]
        if not any(first <= steps.position(boundary) < last for boundary in steps.boundaries):
            most = max(rivals, key=rivals.__getitem__)
            raise passes_several(flow, next(path for path in blocks if kind(path) == most))
    if len(steps.boundaries) < 3:
        raise InputError(
            f"it has {len(steps)} steps with one tensor between them, too few for a stem, two blocks and a head; "
            "choose a deeper network"
        )
