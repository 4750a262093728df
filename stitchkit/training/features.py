"""`--loss features`: a route learns the final feature of its end anchor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn import functional as F

from stitchkit.data.batches import Batch
from stitchkit.distributed import sum_over_ranks
from stitchkit.model.snnet import SNNet
from stitchkit.networks.anchor import Anchor, HeadSlice
from stitchkit.networks.mode import evaluating, without_statistics
from stitchkit.networks.slices import extract
from stitchkit.routes import StitchSpace
from stitchkit.settings.stitch_recipe import StitchRecipe
from stitchkit.training.objective import RouteOutputs, StepBatch, Term

_JUDGED = 5


class FeatureLoss:
    """The distance of routes' final features from their targets: those of their end anchors.

    A final feature is what timm's `forward_features` gives, `[B, N, C]`, `[B, C, H, W]` or `[B, H, W, C]`: the output
    of the last block, after the final normalisation if the anchor has one before its pooling. Without that, tokens of
    large norm, which it evens out, would outweigh all others. Targets come from the anchors as they are before the
    training, in evaluation mode and without gradients: from the anchors themselves if these are frozen, otherwise from
    copies.

    Attributes:
        bodies: The anchors up to their pooling, or copies of these, which give the targets.
        copies: The same, as a module, if they are copies; None if the anchors are frozen.

    Source: final feature matching (Mai et al., CVPR 2026). That the squared error is divided by the target's mean
        square is ours: one learning rate then suits all networks, and its value is the share not reproduced.
    """

    def __init__(self, model: SNNet, settings: StitchRecipe):
        bodies: list[nn.Module] = [_Body(anchor) for anchor in model.views.values()]
        self.copies: nn.ModuleList | None = None
        if not settings.freezes_anchors:
            bodies = [*map(extract, bodies)]
            self.copies = nn.ModuleList(bodies).eval().requires_grad_(False)
        numbers = {label: number for number, label in enumerate(model.views)}
        self._heads: dict[int, HeadSlice] = {}  # they may lack the final normalisation
        for cfg_id, stitch in model.space.stitches.items():
            anchor, is_bare = model.views[stitch.end], model.steps(cfg_id)[-1].kind == "bare head"
            self._heads[cfg_id] = anchor.bare_head if is_bare else anchor.head
        self._ends = {cfg_id: numbers[stitch.end] for cfg_id, stitch in model.space.stitches.items()}
        self._places = [anchor.boundaries[-1] for anchor in model.views.values()]
        self.bodies = bodies
        self._distance = settings.feature_distance
        self._shared = settings.sampling == "shared"
        self._images: torch.Tensor | None = None
        self._targets: dict[int, torch.Tensor] = {}

    def __call__(self, route: int | None, outputs: RouteOutputs, batch: StepBatch) -> torch.Tensor:
        """The loss of a route, a scalar."""
        assert route is not None, "only an SN-Net has routes"
        assert outputs.feature is not None, "the term says that it needs it"
        error, scale = self.parts(batch.images, outputs.feature, route)
        self.forget()
        if self._shared:  # of the whole batch, so that two ranks are one with twice the batch
            scale = sum_over_ranks(torch.stack([scale, torch.ones_like(scale)]))
            scale = scale[0] / scale[1]
        return error / scale

    @property
    def term(self) -> Term:
        """This loss as a term of an objective."""
        return Term(self, needs_feature=True)

    def parts(self, images: torch.Tensor, feature: torch.Tensor, cfg_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The numerator and the denominator of the loss, each a mean over the images."""
        end, head = self._ends[cfg_id], self._heads[cfg_id]
        with without_statistics(head):  # the route's own pass has counted the batch
            feature = head.run_features(feature)
        feature, target = feature.float(), self._target(images, end).float()
        if self._distance == "cosine":
            error = 1 - F.cosine_similarity(feature, target, dim=self._places[end].layout.channel_dim).mean()
            return error, torch.ones_like(error)
        return F.mse_loss(feature, target), target.square().mean()

    def _target(self, images: torch.Tensor, end: int) -> torch.Tensor:
        """The final feature of an anchor, which all routes of a step share."""
        if images is not self._images:
            self.forget()
            self._images = images
        if end not in self._targets:
            with torch.no_grad(), evaluating(self.bodies[end]):
                # Contiguous, since a mean over another order would differ by a rounding.
                self._targets[end] = self.bodies[end](images).contiguous()
        return self._targets[end]

    def forget(self) -> None:
        """Forget the targets of the last images."""
        self._images, self._targets = None, {}


class _Body(nn.Module):
    """An anchor up to its pooling."""

    def __init__(self, anchor: Anchor):
        super().__init__()
        self.blocks, self.head = anchor[:-1], anchor.head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head.run_features(self.blocks(images))


def judged_routes(space: StitchSpace) -> list[int]:
    """The `cfg_id`s of a few stitches, spread evenly over those with a joint, that are judged between epochs."""
    cut = space.cut
    count = min(_JUDGED, len(cut))
    return [cut[(2 * number + 1) * len(cut) // (2 * count)] for number in range(count)]


@torch.no_grad()
def held_out_loss(
    model: nn.Module, loss: FeatureLoss, routes: Sequence[int], batches: Iterable[Batch], *, device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> float:  # fmt: skip
    """The mean loss of some routes over the batches of all ranks; the mode of the model, an SN-Net, is restored."""
    sums = torch.zeros(len(routes), 2, dtype=torch.float64, device=device)
    with evaluating(model):
        for images, _ in batches:
            with autocast():
                for number, cfg_id in enumerate(routes):
                    parts = loss.parts(images, model(images, cfg_id, with_feature=True)[1], cfg_id)
                    sums[number] += len(images) * torch.stack(parts).double()
            loss.forget()
    errors, scales = sum_over_ranks(sums).unbind(1)
    return float((errors / scales).mean())
