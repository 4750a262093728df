"""The joint between two fragments: the best linear map between output and input, in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from stitchkit.model.similarity import pool
from stitchkit.model.solve import Gram
from stitchkit.networks.layout import Layout, as_rows, prefix_tokens, resize
from stitchkit.networks.slices import Boundary, extract
from stitchkit.settings.schema import parse
from stitchnet.activations import Activation
from stitchnet.fragments import Fragment, Reader, fragment_between

_FOLDED_ROWS = 256  # number of a layer's outputs folded at a time; the largest layers would need gigabytes in float64


@torch.no_grad()
def fit_joint(x: Activation, y: Activation) -> JointLayer:
    """The joint from a front's output to an end's usual input: least squares over all rows, of minimum norm.

    It has no intercept. Prefix tokens are rows like all others. If only the end has some, they are mapped from the mean
    of the front's positions.

    Source: StitchNet, section 3.3.
    """
    # In float64: sums of products in float32 would lose the directions of features that hardly vary.
    if _has_few_rows(x, y):
        factors = _solve_rows(x, y)
    elif y.size is None:
        gram, rows = Gram(x.width, x.tensor.device, intercept=False), x.at(None).double()
        gram.add(rows)
        factors = [gram.solve(rows.T @ y.value.double(), "rounded")]
    else:
        factors = [_solve_maps(x, y)]
    return JointLayer(x.layout, y.layout, y.size, [factor.to(y.tensor.dtype).T for factor in factors])


def _num_rows(x: Activation, y: Activation) -> int:
    return len(x.tensor) * min(x.num_positions, y.num_positions)  # at the smaller of both sizes


def _has_few_rows(x: Activation, y: Activation) -> bool:
    """Whether to compute the map from a kernel of the rows `[rows, rows]` instead of sums `[in, in]`.

    With fewer rows than features the sums are singular, and their inverse costs more than that of the kernel.
    """
    return _num_rows(x, y) < x.width and not y.layout.num_prefix_tokens and not _enlarges(x, y)


def _enlarges(x: Activation, y: Activation) -> bool:
    return x.size is not None and x.num_positions < y.num_positions


def map_shapes(x: Activation, y: Activation) -> list[tuple[int, int]]:
    """Shapes of the matrices of the joint from `x` to `y`: two if these are smaller than one."""
    rows = _num_rows(x, y)
    # The rank of a map is at most the number of rows, so with few rows two thin factors are exact.
    if _has_few_rows(x, y) and rows * (x.width + y.width) < x.width * y.width:
        return [(x.width, rows), (rows, y.width)]
    return [(x.width, y.width)]


def _solve_rows(x: Activation, y: Activation) -> list[torch.Tensor]:
    """The map by a kernel of the rows, as one matrix `[in, out]` or two, `[in, rank]` and `[rank, out]`."""
    a, b = (as_rows(activation.at(y.size)).double() for activation in (x, y))
    kernel = Gram(len(a), a.device, intercept=False)
    kernel.add(a.T)
    weights = kernel.solve(b, "rounded")
    return [a.T, weights] if len(map_shapes(x, y)) > 1 else [a.T @ weights]


def _solve_maps(x: Activation, y: Activation) -> torch.Tensor:
    """The map between feature maps, from sums over images.

    Smaller maps of the front would be enlarged by a matrix `U`. Least squares needs `X^T U^T U X` and `X^T U^T Y` of
    the enlarged ones, so only `U^T Y` is computed at the larger size.
    """
    assert x.size is not None
    assert y.size is not None
    device, enlarged = x.tensor.device, _enlarges(x, y)
    gram = Gram(x.width, device, intercept=False)
    cross = torch.zeros(x.width, y.width, dtype=torch.float64, device=device)
    rows, columns = (_resizing(a, b).to(device) for a, b in zip(x.size, y.size, strict=True))
    prefixes = None
    if y.prefix is not None:
        prefixes = prefix_tokens(x.value, x.prefix, y.prefix.shape[-1], "avg"), y.prefix
    values = x.value if enlarged else x.at(y.size)
    # One image at a time: in float64, all maps at once would need twice the memory of the activations.
    for number, (front, end) in enumerate(zip(values, y.value, strict=True)):
        a, b = front.double(), end.double()
        again = a
        if enlarged:
            again = (rows.T @ rows) @ a @ (columns.T @ columns).T
            b = rows.T @ b @ columns
        gram.product += a.flatten(1) @ again.flatten(1).T
        cross += a.flatten(1) @ b.flatten(1).T
        if prefixes is not None:
            c, d = (prefix[number].double() for prefix in prefixes)
            gram.product += c @ c.T
            cross += c @ d.T
    return gram.solve(cross, "rounded")


def _resizing(before: int, after: int) -> torch.Tensor:
    """The matrix `[after, before]` that resizes along one side; bilinear resizing is separable and linear."""
    identity = torch.eye(before, dtype=torch.float64)[None, None]
    return resize(identity, (after, before), align_corners=True)[0, 0]


class JointLayer(nn.Module):
    """A linear map of features, and a change of layout, and of size to that of the end's maps, None for vectors.

    `maps` are the matrices `[out, in]` of the map, applied in turn; none if they are folded into the layers behind.
    """

    def __init__(self, source: Layout, target: Layout, size: tuple[int, int] | None, maps: Sequence[torch.Tensor] = ()):
        super().__init__()
        self.source, self.target, self.size = source, target, size
        self.maps = nn.ParameterList(nn.Parameter(weight.contiguous()) for weight in maps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The end's input."""
        prefix, x = self.source.split(x)[1], self.source.maps(x)
        if self.size is None:
            x = pool(x)  # the mean over positions, as in the score of a map and a vector
            for weight in self.maps:
                x = nn.functional.linear(x, weight)
            return x
        count = self.target.num_prefix_tokens
        prefix = prefix_tokens(x, prefix, count, "avg") if count else None
        # The map commutes with resizing, so it is applied at the smaller size, where it is cheapest and was fitted.
        if x.shape[2] * x.shape[3] > math.prod(self.size):
            x = resize(x, self.size, align_corners=True)
        for weight in self.maps:
            x = nn.functional.conv2d(x, weight[..., None, None])
            prefix = prefix if prefix is None else nn.functional.conv1d(prefix, weight[..., None])
        return self.target.join(resize(x, self.size, align_corners=True), prefix)

    def describe(self, x: torch.Tensor) -> str:
        """The changes to a tensor, in words."""
        values = self.source.maps(x)
        done = []
        if self.size is None:
            done += ["averaged"] if values.ndim == 4 else []
        elif values.shape[2:] != self.size:
            done.append(f"{values.shape[2]} × {values.shape[3]} to {self.size[0]} × {self.size[1]}")
        if self.source.kind != self.target.kind and not self.target.is_vector:
            done.append(f"{self.source.kind} to {self.target.kind}")
        if len(self.maps):
            widths = [*(weight.shape[1] for weight in self.maps), self.maps[-1].shape[0]]
            done.append(f"own map {' × '.join(map(str, widths))}")
        else:
            done.append("map folded")
        return ", ".join(done)


def layer(fragment: Fragment, joint: JointLayer | None) -> nn.Sequential:
    """A copy of a fragment's layers behind a joint, whose map is folded into the first layers if possible."""
    module = extract(fragment.module)  # folding changes weights that other compositions use
    if joint is None:
        return nn.Sequential(module)
    readers = fragment.readers(module)
    for reader in readers:
        fold(joint, reader)
    maps = [] if readers else [weight.detach().clone() for weight in joint.maps]
    return nn.Sequential(JointLayer(joint.source, joint.target, joint.size, maps), module)


def joint_of(layer: nn.Module) -> JointLayer | None:
    """The joint before a fragment's layers, if there is one."""
    first = next(layer.children())
    return first if isinstance(first, JointLayer) else None


@torch.no_grad()
def fold(joint: JointLayer, layer: Reader) -> None:
    """Fold a joint's map into a layer behind it, which then reads the front's features.

    Exact for padded convolutions too: without an intercept, zeros stay zeros under the map.

    Source: StitchNet, section 3.3.
    """
    matrices, folded = [matrix.double() for matrix in reversed(joint.maps)], []
    for part in torch.split(layer.weight, _FOLDED_ROWS):
        weight = part.double().movedim(1, -1)
        for matrix in matrices:
            weight = weight @ matrix
        folded.append(weight.movedim(-1, 1).to(part.dtype))
    layer.weight = nn.Parameter(torch.cat(folded).contiguous())
    resize_input(layer, joint.maps[0].shape[1])


def resize_input(layer: Reader, width: int) -> None:
    """Set the number of input features of a layer; a weight of another width is replaced by an empty one."""
    # `forward` does not use the attribute, but exporters and cost counters do.
    setattr(layer, "in_channels" if isinstance(layer, nn.Conv2d) else "in_features", width)
    if layer.weight.shape[1] != width:
        shape = (layer.weight.shape[0], width, *layer.weight.shape[2:])
        layer.weight = nn.Parameter(layer.weight.new_empty(shape))


def describe(fragment: Fragment, layer: nn.Module) -> dict[str, object]:
    """The data of a fragment and its layers, without their weights."""
    joint, about = joint_of(layer), None
    if joint is not None:
        _, module = layer.children()
        about = {
            "source": _describe_layout(joint.source),
            "target": _describe_layout(joint.target),
            "size": joint.size,
            "maps": [tuple(weight.shape) for weight in joint.maps],
            "reader_widths": [reader.weight.shape[1] for reader in fragment.readers(module)],
        }
    ends = {"start": _describe_boundary(fragment.start), "stop": _describe_boundary(fragment.stop)}
    own = {"network": fragment.network, "index": fragment.index, "count": fragment.count}
    return {**own, **ends, "joint": about}


def rebuild(about: Mapping[str, Any], model: nn.Module) -> tuple[Fragment, nn.Sequential]:
    """The fragment of some data, from its network, and its layers, of the right shapes but with any weights."""
    ends = _boundary(about["start"]), _boundary(about["stop"])
    fragment = fragment_between(model, *ends, about["network"], about["index"], about["count"])
    fragment = replace(fragment, module=extract(fragment.module))  # two fragments of one network must not share weights
    joint = about["joint"]
    if joint is None:
        return fragment, nn.Sequential(fragment.module)
    for reader, width in zip(fragment.readers(fragment.module), joint["reader_widths"], strict=True):
        resize_input(reader, width)
    size = joint["size"] and (joint["size"][0], joint["size"][1])
    maps = [torch.empty(shape) for shape in joint["maps"]]
    layer = JointLayer(_layout(joint["source"]), _layout(joint["target"]), size, maps)
    return fragment, nn.Sequential(layer, fragment.module)


def _describe_boundary(boundary: Boundary | None) -> dict[str, object] | None:
    if boundary is None:
        return None
    form = _describe_layout(boundary.layout)
    return {"before": boundary.before[0], "after": boundary.after[0], "readers": boundary.takers, "form": form}


def _boundary(about: Mapping[str, Any] | None) -> Boundary | None:
    if about is None:
        return None
    return Boundary((about["before"],), (about["after"],), tuple(about["readers"]), _layout(about["form"]))


def _describe_layout(layout: Layout) -> dict[str, object]:
    return {"layout": None if layout.is_vector else layout.kind, "num_prefix_tokens": layout.num_prefix_tokens}


def _layout(about: Mapping[str, Any]) -> Layout:
    prefix = about["num_prefix_tokens"]
    return parse(Layout, {"kind": about["layout"] or "vector", "num_prefix_tokens": prefix}, "layout")
