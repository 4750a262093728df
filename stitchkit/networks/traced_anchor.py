"""An anchor of any network: its steps are traced, and its blocks found from its modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from itertools import pairwise
from typing import Any

import torch
from timm.data import resolve_data_config
from torch import fx, nn

from stitchkit.errors import InputError, prefixed
from stitchkit.networks.anchor import Anchor, AnchorStep, HeadParts, HeadSlice
from stitchkit.networks.blocks import find_blocks
from stitchkit.networks.classifier import classifier_of
from stitchkit.networks.cut.flow import Flow
from stitchkit.networks.slices import Code, hold_constants
from stitchkit.networks.steps import Steps
from stitchkit.networks.trained_with import noted

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
