"""The plain ways, written from the published description and sharing as little with ours as they can."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy

import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.nn import functional as F

from stitchkit import InputError, SNNet, Stitch
from stitchkit.networks.mode import unfused_attention

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # fvcore compiles losses when it is imported, in a way that torch gives up
    from fvcore.nn import FlopCountAnalysis


def one_by_one(model: SNNet, images: torch.Tensor) -> torch.Tensor:
    """Logits `[stitches, B, num_classes]`, one whole pass a stitch."""
    return torch.stack([model(images, cfg_id) for cfg_id in range(len(model.space))])


def trace(net: nn.Module, image: torch.Tensor) -> tuple[int, int]:
    """FLOPs and parameters of a network, by tracing it with fvcore."""
    with unfused_attention(net):
        analysis = FlopCountAnalysis(net, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return int(analysis.total()), sum(parameter.numel() for parameter in net.parameters())


@torch.no_grad()
def pseudo_inverses(model: SNNet, batches: Iterable[torch.Tensor]) -> dict[tuple[int, ...], torch.Tensor]:
    """The maps `[C + 1, out]` of the stitching layers: a float32 pseudo-inverse for each pair, on stored features.

    Pairs that share a layer are averaged.

    Raises:
        InputError: If an anchor is not a ViT with a class token.

    Source: SN-Net, equation 4.
    """
    _check_vits(model)
    stored: dict[tuple[str, int], list[torch.Tensor]] = defaultdict(list)
    for images in batches:
        for label, anchor in model.views.items():
            x = anchor.steps[0](images)
            stored[label, 0].append(x)
            for number, block in enumerate(anchor.blocks, start=1):
                x = block(x)
                stored[label, number].append(x)
    features = {place: torch.cat(parts).flatten(0, 1) for place, parts in stored.items()}
    maps: dict[tuple[int, ...], list[torch.Tensor]] = defaultdict(list)
    for joint, layer in model.space.layers.items():
        x = features[joint.front, joint.front_block + 1]
        x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        maps[layer].append(torch.linalg.pinv(x) @ features[joint.end, joint.end_block])
    return {layer: torch.stack(found).mean(0) for layer, found in maps.items()}


def _check_vits(model: SNNet) -> None:
    for label, anchor in model.views.items():
        net = anchor.model
        if type(net) is not VisionTransformer or net.global_pool != "token" or net.num_prefix_tokens != 1:
            raise InputError(
                f"anchor '{label}' is not a ViT that classifies by a class token, the only kind the plain reference "
                "is written for; choose a configuration such as configs/deit_ti_s_b.json"
            )


def train_steps(
    model: SNNet, cfg_ids: Sequence[int], images: torch.Tensor, labels: torch.Tensor, *, lr: float, weight_decay: float
) -> Callable[[], list[float]]:
    """Plain training steps, one stitch each: on a GPU in float16 with a loss scaler, on a CPU in float32.

    Args:
        model: Trained in place.
        cfg_ids: The stitch of each step.
        images: The batch `[B, C, H, W]` of every step.
        labels: `[B]`.
        lr: Learning rate.
        weight_decay: Of all parameters but biases, norms and 1-d ones, as published.

    Returns:
        Runs all steps and gives the loss of each.
    """
    groups = param_groups_weight_decay(model, weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=lr, foreach=False, fused=False)
    on_gpu = images.device.type == "cuda"
    scaler = torch.amp.GradScaler(images.device.type, enabled=on_gpu)

    def run() -> list[float]:
        model.train()
        losses = []
        with unfused_attention(model):
            for cfg_id in cfg_ids:
                with torch.autocast(images.device.type, torch.float16, enabled=on_gpu):
                    loss = F.cross_entropy(model(images, cfg_id), labels)
                losses.append(loss.item())
                optimizer.zero_grad(set_to_none=False)
                scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                scaler.step(optimizer)
                scaler.update()
        return losses

    return run


class PlainRoute(nn.Module):
    """One route through ViTs with a class token, as one would write it by hand.

    Args:
        model: The SN-Net whose weights are copied.
        stitch: The route.

    Raises:
        InputError: If an anchor is not a ViT with a class token.
    """

    def __init__(self, model: SNNet, stitch: Stitch):
        super().__init__()
        _check_vits(model)
        nets: dict[str, nn.Module] = {label: anchor.model for label, anchor in model.views.items()}
        first, last = nets[stitch.segments[0].anchor], nets[stitch.segments[-1].anchor]
        self.patch_embed = deepcopy(first.patch_embed)
        self.cls_token = deepcopy(first.cls_token)
        self.pos_embed = deepcopy(first.pos_embed)
        steps: list[nn.Module] = []
        for segment, joint in zip(stitch.segments, [None, *stitch.joints], strict=True):
            if joint is not None:
                steps.append(model.layer(joint).transform)
            steps += list(nets[segment.anchor].blocks)[segment.start : segment.stop]  # type: ignore[arg-type]
        self.steps = nn.ModuleList(map(deepcopy, steps))
        with_norm = stitch.is_anchor or model.stitched_final_norm
        self.norm = deepcopy(last.norm) if with_norm else nn.Identity()
        self.head = deepcopy(last.head)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images `[B, C, H, W]` to logits `[B, num_classes]`."""
        x = self.patch_embed(x)  # type: ignore[operator]
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed  # type: ignore[operator]
        for step in self.steps:
            x = step(x)
        return self.head(self.norm(x)[:, 0])  # type: ignore[operator,no-any-return]
