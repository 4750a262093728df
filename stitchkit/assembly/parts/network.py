"""The network of a job, from its configuration: first checked on the meta device, then built."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from stitchkit.assembly.parts.flow import PassingTensor, enter, leave, run
from stitchkit.assembly.parts.part import Assembly, Conversion, ParallelPart, Part, SegmentationHead, combine
from stitchkit.assembly.parts.pretrained import CONVNET, Pretrained, WholeNetwork
from stitchkit.assembly.parts.registry import COMMON, PARTS
from stitchkit.assembly.parts.spec import NetworkSpec, PartSpec, Wanted, class_token_of
from stitchkit.display import counted
from stitchkit.errors import InputError, one_line, unknown
from stitchkit.networks.hub_weights import check_memory
from stitchkit.networks.layout import Layout
from stitchkit.networks.meta import without_values
from stitchkit.paths import asked

_logger = logging.getLogger(__name__)


def build_network(
    spec: NetworkSpec, *, num_classes: int | Sequence[Wanted], input_size: tuple[int, int, int] = (3, 224, 224),
    pretrained: bool = True, replaced: bool = False,
) -> Assembly:  # fmt: skip
    """The network that a configuration describes: its `parts` one after the other, and its `head`.

    It is built twice: first without weights and memory (on the meta device), to find errors before any download.

    Args:
        num_classes: Number of classes; or what each task needs, in the order of the outputs.
        input_size: Size of an image, `(C, H, W)`.
        pretrained: Download the weights of pretrained parts; files of weights that parts name are always read.
        replaced: The caller replaces all weights, so none are downloaded or read.
    """
    check_network(spec, num_classes=num_classes, input_size=input_size, replaced=replaced)
    return _Builder(spec, _wanted(num_classes), input_size, pretrained, replaced).network()


def check_network(
    spec: NetworkSpec, *, num_classes: int | Sequence[Wanted], input_size: tuple[int, int, int], replaced: bool = False
) -> tuple[Assembly, list[TracedPart]]:
    """The network on the meta device, and all its parts, inner ones before those that consist of them.

    It can be built, its parts fit, and unless `replaced` its files of weights exist. Arguments and errors as in
    `build_network`.
    """
    builder = _Builder(spec, _wanted(num_classes), input_size, False, replaced, checking=True)
    with without_values():
        network = builder.network()
    check_memory(lambda: network, "the network")
    return network, builder.traced


def _wanted(num_classes: int | Sequence[Wanted]) -> tuple[Wanted, ...]:
    return (Wanted(num_classes),) if isinstance(num_classes, int) else tuple(num_classes)


class TracedPart(NamedTuple):
    """A part, its description in the file, and the tensors at its two ends."""

    part: Part
    spec: PartSpec
    takes: PassingTensor
    gives: PassingTensor


class _Placed(InputError):
    """An error that begins with the place of its part."""


@contextmanager
def _at(spec: PartSpec) -> Iterator[None]:
    """Begin errors with the place of a part, unless they have that of a part inside it."""
    try:
        yield
    except _Placed:
        raise
    except Exception as error:  # torch and the models raise many types
        own = isinstance(error, InputError)
        fault = f"{error}" if own else f"it cannot be built with its arguments: {one_line(error)}"
        raise _Placed(f"{spec.place}.{spec.name}: {fault}") from error


@dataclass(frozen=True)
class _Builder:
    """Builds parts and traces the tensors between them; if `checking`, files of weights must exist but are not read."""

    spec: NetworkSpec
    wanted: tuple[Wanted, ...]
    input_size: tuple[int, int, int]
    pretrained: bool
    replaced: bool
    checking: bool = False
    traced: list[TracedPart] = field(default_factory=list)

    def network(self) -> Assembly:
        """The whole network."""
        class_token = class_token_of(self.spec.reformat_options, "zeros")
        images = PassingTensor(torch.empty(2, *self.input_size, device="meta"), Layout("NCHW"))
        network, logits = self._chain(self.spec.parts, self.spec.head, images, class_token)
        outputs = logits.value if isinstance(logits.value, list) else [logits.value]
        if isinstance(logits.value, list) and 1 < len(self.wanted) != len(outputs):
            raise InputError(
                f"the network has {counted(len(outputs), 'output')} for {len(self.wanted)} data sets; it needs one for "
                "each"
            )
        last = _end(network)
        ends = [*map(_end, last.parts)] if isinstance(last, ParallelPart) and last.agg == "none" else [last]
        for value, end, branch in zip(outputs, ends, self._branches(len(outputs)), strict=True):
            for wanted in branch.wanted:
                _check_output(value, end, wanted)
                if not self.checking and not wanted.dense and value.shape[1] > wanted.channels:
                    _logger.warning(
                        "the network has %d logits, but the data have %d classes, so the extra logits are never "
                        "correct; this is fine only for a pretrained classifier of these classes; otherwise end with a "
                        "ClassifierHead",
                        value.shape[1], wanted.channels,
                    )  # fmt: skip
        return network

    def _branches(self, count: int) -> list[_Builder]:
        """A builder for each of the outputs of a network: of the output of each task, or of those of all."""
        if count != len(self.wanted):
            return [self] * count
        return [replace(self, wanted=(wanted,)) for wanted in self.wanted]

    def _chain(
        self, specs: Sequence[PartSpec], head: PartSpec | None, flow: PassingTensor, class_token: str
    ) -> tuple[Assembly, PassingTensor]:
        entries, parts = [], []
        for spec in [*specs, *([] if head is None else [head])]:
            entry, part, flow = self._part(spec, flow, class_token)
            entries.append(entry)
            parts.append(part)
        return Assembly(parts[: len(specs)], entries, None if head is None else parts[-1]), flow

    def _part(self, spec: PartSpec, flow: PassingTensor, class_token: str) -> tuple[Conversion, Part, PassingTensor]:
        if spec.name not in PARTS:
            raise _Placed(f"{spec.place}: {unknown('part', spec.name, PARTS)}")
        kind, arguments = PARTS[spec.name], spec.arguments
        with _at(spec):
            in_format, out_format = declared(spec, "in_format"), declared(spec, "out_format")
            class_token = class_token_of(arguments.get("reformat_options"), class_token)
            if kind in (Assembly, ParallelPart):
                entry, taken = enter(flow, in_format, (), class_token)
                make = self._assembly if kind is Assembly else self._parallel
                part, flow = make(spec, taken, class_token)
            else:
                part = kind(**self._arguments(spec, in_format or kind.in_format, flow, class_token))
                entry, taken = enter(flow, _narrowed(in_format, part), part.takes, class_token)
                flow, changes_input = run(part, taken)
                if changes_input:  # parallel parts and losses on inner outputs may still read the input
                    entry = partial(_copied, entry)
            flow = leave(flow, out_format or part.out_format)
        if (frozen := arguments.get("frozen")) and not self.spec.unfrozen:
            part.freeze(statistics=frozen == "statistics")
        self.traced.append(TracedPart(part, spec, taken, flow))
        return entry, part, flow

    def _arguments(
        self, spec: PartSpec, wanted: Layout | None, flow: PassingTensor, class_token: str
    ) -> dict[str, object]:
        kind = PARTS[spec.name]
        arguments = own_arguments(spec, pretrained=self.pretrained, replaced=self.replaced)
        # A frozen model keeps its classifier, and a convnet has none, so the data do not decide their outputs.
        keeps = kind is WholeNetwork and (spec.arguments.get("frozen") or spec.arguments.get("model_name") == CONVNET)
        for name in kind.inferred:  # the data and the previous part decide these if the file does not
            if name not in arguments and not keeps:
                most = max(need.channels for need in self.wanted)
                known = most if name == "num_classes" else _channels(flow, wanted, kind.takes, class_token)
                arguments[name] = known
        if self.checking and issubclass(kind, Pretrained):
            arguments.pop("ckp_path", None)
        return arguments

    def _assembly(self, spec: PartSpec, flow: PassingTensor, class_token: str) -> tuple[Part, PassingTensor]:
        shape = spec.arguments.get("input_shape")
        if shape is not None and list(shape) != list(flow.tensor.shape[1:]):
            raise InputError(f"input_shape is {shape}, but it gets {flow}; change it, or the size of the images")
        return self._chain(spec.parts, spec.head, flow, class_token)

    def _parallel(self, spec: PartSpec, flow: PassingTensor, class_token: str) -> tuple[Part, PassingTensor]:
        agg, out_format = spec.arguments.get("agg") or "none", declared(spec, "out_format")
        inner = spec.parts
        builders = self._branches(len(inner)) if agg == "none" else [self] * len(inner)
        built = (builder._part(part, flow, class_token) for builder, part in zip(builders, inner, strict=True))
        entries, parts, outputs = zip(*built, strict=True)
        common = None if agg == "none" else _common_format(out_format, outputs, agg)
        exits, left = zip(*(enter(gives, common, (), class_token) for gives in outputs), strict=True)
        layout = Layout("vector") if common is None else common.bare
        value = [gives.value for gives in left] if common is None else combined(left, agg, layout, out_format)
        return ParallelPart(parts, entries, exits, agg, layout), PassingTensor(value, layout)


def own_arguments(spec: PartSpec, *, pretrained: bool, replaced: bool) -> dict[str, Any]:
    """The arguments of a part in a file, without weights that its network does not read; as in `build_network`."""
    arguments = {name: value for name, value in spec.arguments.items() if name not in COMMON}
    if issubclass(PARTS[spec.name], Pretrained):
        arguments.pop("verbose", None)  # whether the published tool reports names that differ; ours always does
        if replaced or not pretrained or arguments.get("model_name") == CONVNET:
            arguments["pretrained"] = False
        path = arguments.get("ckp_path")
        if replaced:
            arguments.pop("ckp_path", None)
        elif path is not None and not Path(path).is_file():
            raise InputError(f"ckp_path '{path}' is not a file{asked(path)}; check the path")
    return arguments


def _copied(entry: Conversion, x: torch.Tensor) -> torch.Tensor:
    return entry(x).clone()


def _end(part: nn.Module) -> nn.Module:
    while isinstance(part, Assembly):
        part = part.parts[-1] if part.head is None else part.head
    return part


def _check_output(value: object, end: nn.Module, wanted: Wanted) -> None:
    ndim, advice = 2, "a vector of logits; add `head: {ClassifierHead: {}}`"
    has, unit, head = "has", "logit", "ClassifierHead"
    if wanted.dense:
        ndim, advice = 4, "a map; end with a SegmentationHead or a DepthHead"
        has, unit, head = "outputs", "channel", "SegmentationHead"
    if not isinstance(value, torch.Tensor) or value.ndim != ndim:
        shape = list(value.shape[1:]) if isinstance(value, torch.Tensor) else type(value).__name__
        raise InputError(f"the last part returns {shape}, not {advice}")
    if wanted.dense and wanted.dense.least is not None and isinstance(end, SegmentationHead):
        raise InputError("depths are positive, and the logits of a SegmentationHead are not; end with a DepthHead")
    if (count := value.shape[1]) < wanted.channels:
        raise InputError(
            f"the network {has} {counted(count, unit)}, but the data have {counted(wanted.channels, 'class')}; end it "
            f"with a {head}, or use the data that its last part was trained for"
        )


def declared(spec: PartSpec, key: str) -> Layout | None:
    """The layout that the file declares for the input or the output of a part, if it does."""
    return None if (value := spec.arguments.get(key)) is None else Layout.parse(value)


def _narrowed(in_format: Layout | None, part: Part) -> Layout | None:
    """The input format of a part: as the file declares, with the part's own channels."""
    if in_format is None or part.in_format is None or in_format.channels is not None:
        return in_format or part.in_format
    return replace(in_format, channels=part.in_format.channels)


def _channels(flow: PassingTensor, wanted: Layout | None, takes: Sequence[str], class_token: str) -> int:
    _, arriving = enter(flow, wanted, takes, class_token)
    layout = arriving.full_format
    return arriving.tensor.shape[-1] if layout is None else layout.width  # a sequence, with a class token or without


def _common_format(out_format: Layout | None, outputs: Sequence[PassingTensor], agg: str) -> Layout:
    """The format of all outputs of parallel parts before they are combined."""
    target = out_format or outputs[0].full_format
    if target is None:
        raise InputError(f"the format of its output {outputs[0]} is not known; declare the out_format")
    resized = out_format is not None and agg != "concat_sequence"
    return replace(target, channels=None, positions=target.positions if resized else None)


def combined(
    outputs: Sequence[PassingTensor], agg: str, layout: Layout, out_format: Layout | None = None
) -> torch.Tensor:
    """The output of parallel parts, once their outputs fit together and have the declared channels and size."""
    formats = [layout.sized(output.tensor) for output in outputs]
    each = f"its parts return {', '.join(map(str, formats))}"
    if len({form.positions for form in formats}) > 1 and agg != "concat_sequence":
        raise InputError(f"{each}, of different sizes; declare a size in out_format")
    if len({form.channels for form in formats}) > 1 and agg in ("avg", "concat_sequence"):
        raise InputError(f"{each}; {agg} needs the same number of channels from all")
    if agg == "concat_sequence" and layout.name != "token":
        raise InputError(f"concat_sequence joins sequences, not {layout.name}; declare out_format: [token, [C, L]]")
    value = combine([output.tensor for output in outputs], agg, layout)
    actual, wanted = layout.sized(value), out_format or layout
    if wanted.channels not in (None, actual.channels) or wanted.positions not in (None, actual.positions):
        raise InputError(f"{each}, together {actual}, but out_format is {out_format}; correct one of them")
    return value
