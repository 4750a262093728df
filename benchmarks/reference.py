"""The plain ways, written from the published description, sharing as little as possible with ours."""

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
    warnings.simplefilter("ignore")  # on import, fvcore compiles losses in a way that torch has deprecated
    from fvcore.nn import FlopCountAnalysis


def one_by_one(model: SNNet, images: torch.Tensor) -> torch.Tensor:
    """Logits `[stitches, B, num_classes]`, one whole pass per stitch."""
    return torch.stack([model(images, cfg_id) for cfg_id in range(len(model.space))])


def trace(net: nn.Module, image: torch.Tensor) -> tuple[int, int]:
    """FLOPs and parameters of a network, traced by fvcore."""
    with unfused_attention(net):  # fvcore does not count inside fused attention
        analysis = FlopCountAnalysis(net, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return int(analysis.total()), sum(parameter.numel() for parameter in net.parameters())


@torch.no_grad()
def pseudo_inverses(model: SNNet, batches: Iterable[torch.Tensor]) -> dict[tuple[int, ...], torch.Tensor]:
    """The maps `[C + 1, out]` of the stitching layers: a float32 pseudo-inverse for each pair, on stored features.

    Pairs that share a layer are averaged.

    Source: SN-Net, equation 4.
    """
    _vits(model)
    # Every feature of every image at once, as published; the memory that takes is what ours avoids.
    stored: dict[tuple[str, int], list[torch.Tensor]] = defaultdict(list)
    for images in batches:
        for label, anchor in model.views.items():
            x = anchor[0](images)
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


def _vits(model: SNNet) -> dict[str, VisionTransformer]:
    """The networks of the anchors by label, if each is a ViT that classifies by a class token."""
    nets = {label: anchor.model for label, anchor in model.views.items()}
    for label, net in nets.items():
        # Subclasses forward differently, so they do not count.
        if type(net) is not VisionTransformer or net.global_pool != "token" or net.num_prefix_tokens != 1:
            raise InputError(
                f"anchor '{label}' is not a ViT that classifies by a class token, the only kind the plain reference "
                "is written for; choose a configuration such as configs/deit_ti_s_b.json"
            )
    return nets


def train_steps(
    model: SNNet, cfg_ids: Sequence[int], images: torch.Tensor, labels: torch.Tensor, *, lr: float, weight_decay: float
) -> Callable[[], list[float]]:
    """Plain training steps on one batch, one stitch each: on a GPU in float16 with a loss scaler, on a CPU in float32.

    Returns:
        A function that trains the model in place and gives the loss of each step.
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
                # Both are as published: `item` waits for the device at every step, and the zeros cost a pass.
                losses.append(loss.item())
                optimizer.zero_grad(set_to_none=False)
                torch.autograd.backward(scaler.scale(loss))
                scaler.step(optimizer)
                scaler.update()
        return losses

    return run


class PlainRoute(nn.Module):
    """One route through ViTs with a class token, as written by hand, with copies of the SN-Net's weights."""

    def __init__(self, model: SNNet, stitch: Stitch):
        super().__init__()
        nets = _vits(model)
        first, last = nets[stitch.segments[0].anchor], nets[stitch.segments[-1].anchor]
        self.patch_embed = deepcopy(first.patch_embed)
        self.cls_token = deepcopy(first.cls_token)
        self.pos_embed = deepcopy(first.pos_embed)
        steps: list[nn.Module] = []
        for segment, joint in zip(stitch.segments, [None, *stitch.joints], strict=True):
            if joint is not None:
                steps.append(model.layer(joint).transform)
            steps += list(nets[segment.anchor].blocks)[segment.start : segment.stop]
        self.steps = nn.ModuleList(map(deepcopy, steps))
        with_norm = stitch.is_anchor or model.stitched_final_norm
        self.norm = deepcopy(last.norm) if with_norm else nn.Identity()
        self.head = deepcopy(last.head)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images `[B, C, H, W]` to logits `[B, num_classes]`."""
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for step in self.steps:
            x = step(x)
        logits: torch.Tensor = self.head(self.norm(x)[:, 0])
        return logits
