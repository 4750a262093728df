"""An anchor of any network: its steps are traced, and its blocks found from its modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from itertools import groupby, pairwise
from typing import Any

import torch
from timm.data import resolve_data_config
from torch import fx, nn

from stitchkit.errors import InputError, prefixed
from stitchkit.networks.anchor import Anchor, AnchorStep, HeadParts, HeadSlice
from stitchkit.networks.classifier import classifier_of
from stitchkit.networks.cut.flow import Flow, passes_several
from stitchkit.networks.cut.tracer import is_group, is_stage, paths_to
from stitchkit.networks.slices import Code, hold_constants
from stitchkit.networks.steps import Steps
from stitchkit.networks.trained_with import noted

_CONTAINERS = (nn.Sequential, nn.ModuleList)
_PLAIN = {"input_size": (3, 224, 224), "interpolation": "bilinear"}
"""What is assumed of a network that is not timm's: torchvision's preparation of images."""


class TracedAnchor(Anchor):
    """Any network that can be traced, as an anchor for images of one size.

    Args:
        model: A network that takes images `[B, C, H, W]`.
        label: Its name in stitches.
        input_size: Size of an image, `(C, H, W)`; by default that of timm's description of the network.
        num_classes: Number of logits, 0 if it gives features; by default as the network says, or else the width of its
            output.

    Raises:
        InputError: If it cannot be traced, has no two blocks between which only one tensor passes, or ends in a
            classifier though it should give features.
    """

    class_tokens = ("cls_token",)
    depths: tuple[int, ...] = ()
    input_size: tuple[int, int, int] = (3, 224, 224)
    _steps: tuple[AnchorStep, ...] = ()
    _head_parts = HeadParts()

    def __init__(
        self,
        model: nn.Module,
        *,
        label: str,
        input_size: tuple[int, int, int] | None = None,
        num_classes: int | None = None,
    ):
        super().__init__(model, label=label)
        self.input_size = tuple(input_size or self.pretrained_cfg["input_size"])
        self._num_classes = num_classes
        # The trace is not kept: an anchor is copied with its SN-Net, such as for its moving average.
        weights = next(model.parameters(), torch.empty(0))
        whole = Steps(model, torch.empty(1, *self.input_size, device=weights.device, dtype=weights.dtype))
        with prefixed(f"anchor '{label}': "):
            result = whole.flow.result
            if not isinstance(result, fx.Node):
                raise InputError("it returns several tensors; wrap it in a module that returns its logits")
            if num_classes == 0 and result.target == classifier_of(model):
                raise InputError(
                    f"it ends in its classifier '{result.target}', and so gives no features; replace that by "
                    "torch.nn.Identity(), or set num_classes of the network to 0 if it is no classifier"
                )
            cuts, self.depths = find_blocks(whole)
        self.boundaries = tuple(whole.boundaries[number] for number in cuts)
        ends = [0, *(number + 1 for number in cuts), len(whole)]
        stem, *others = (_step(model, whole.graphs(first, last)) for first, last in pairwise(ends))
        self._steps = (replace(stem, run=_Stem(stem, self.input_size, label)), *others)
        self._outputs = int(result.meta["value"].shape[-1])
        self._head_parts = _head_parts(whole, cuts[-1])

    @property
    def stitched_stages(self) -> tuple[int, ...]:
        """The stages of several blocks, without the last of several stages, as in the published families but ResNet."""
        inner = range(max(len(self.depths) - 1, 1))
        return tuple(stage for stage in inner if self.depths[stage] > 1)

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        if self._num_classes is not None:
            return self._num_classes
        count: int = getattr(self.model, "num_classes", self._outputs)
        return count

    @property
    def pretrained_cfg(self) -> Mapping[str, Any]:
        """timm's description of the weights, with the preparation of images.

        Of a network that is not timm's, what their file says of it, and otherwise timm's defaults.
        """
        config: Mapping[str, Any] | None = getattr(self.model, "pretrained_cfg", None)
        trained = noted(self.model)
        return config or resolve_data_config(
            {}, pretrained_cfg={**_PLAIN, **({} if trained is None else trained.image)}
        )

    @property
    def bare_head(self) -> HeadSlice:
        """The last step without the final normalisation, which is not known of a traced network."""
        raise InputError(
            f"anchor '{self.label}' is traced, so its final normalisation is not known; set stitched_final_norm to true"
        )


def _step(model: nn.Module, graphs: Sequence[fx.Graph]) -> AnchorStep:
    """The step of some graphs: modules that run one after the other, or code."""
    paths = [_chain(graph) for graph in graphs]
    if paths[0] is not None and paths[0] == paths[1]:
        return AnchorStep((paths[0],))
    code = Code(graphs)
    hold_constants(model, graphs)
    return AnchorStep(code.paths, code)


def _head_parts(whole: Steps, first: int) -> HeadParts:
    """The parts of the head that begins at a boundary: timm's networks show in their trace where the first one ends."""
    head = getattr(whole.model, "forward_head", None)
    is_timms = hasattr(whole.model, "num_features") and head is not None and "pre_logits" in signature(head).parameters
    ends_so = is_timms and whole.flow.trace.given.get("forward_head") is whole.flow.result
    if ends_so and (graphs := whole.graphs_to(lambda flow: flow.trace.given.get("forward_features"), first)):
        return HeadParts(Code(graphs))
    name = classifier_of(whole.model)

    def before_classifier(flow: Flow) -> fx.Node | None:
        last = flow.result
        is_classifier = isinstance(last, fx.Node) and last.op == "call_module" and last.target == name
        return flow.before(last)[0] if is_classifier else None

    graphs = whole.graphs_to(before_classifier, first)
    return HeadParts(has_forward_head=False, pre_logits=Code(graphs) if graphs else None)


def _chain(graph: fx.Graph) -> str | None:
    """The path of the module that a graph consists of; None if it is more than one module."""
    first, *inner, _ = graph.nodes
    if len(inner) == 1 and inner[0].op == "call_module" and inner[0].args == (first,) and not inner[0].kwargs:
        return str(inner[0].target)
    return None


@dataclass(frozen=True)
class _Stem:
    """Runs the first step, on images of the size that all steps were traced for."""

    step: AnchorStep
    size: tuple[int, ...]
    label: str

    def __call__(self, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        # Other sizes would not fail everywhere: some steps would resize to the constants of the trace.
        if not torch._C._get_tracing_state() and tuple(x.shape[1:]) != self.size:
            raise InputError(
                f"anchor '{self.label}' takes images of {self.size}, not {tuple(x.shape[1:])}; create it with their "
                "size as img_size"
            )
        if self.step.run is not None:
            return self.step.run(model, x)
        output: torch.Tensor = model.get_submodule(self.step.paths[0])(x)
        return output


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
    numbers = [begins[name] for name in _modules_around(stages, 0) if name in begins][:1] if stages else []
    depths = [len(stage) for stage in stages]
    if not numbers and depths:  # the first block takes the images: it is the stem
        depths[0] -= 1
    for number, stage in enumerate(stages):
        last = max(ends[name] for name in _modules_around(stages, number) if name in ends)
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


def _modules_around(stages: Sequence[Sequence[str]], number: int) -> list[str]:
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
