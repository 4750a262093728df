"""The rows of the table: ways to spend one budget of training on networks for every budget of inference.

Each takes a study, a seed and what it has spent so far, trains, and returns the networks that it offers. Beside them,
every row offers the anchors as they were given, which nobody throws away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple
from unittest.mock import patch

import torch
from timm.utils import random_seed
from torch import nn

from stitchkit.choose.choose import choose
from stitchkit.data.batches import Batch
from stitchkit.model.create import create_snnet
from stitchkit.model.snnet import SNNet
from stitchkit.model.solve import fit_stitching_layers
from stitchkit.settings.by_name import make_recipe
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.settings.stitch_recipe import StitchRecipe
from stitchkit.training.network import sampler_of
from stitchkit.training.preserve import freeze
from stitchkit.training.samplers import SAMPLERS, Sampler
from studies.evidence.entrants import Entrants, cascade, cost_of, plain, stitches
from studies.evidence.focus import FocusedBins, narrow
from studies.evidence.images import Split
from studies.evidence.networks import SlicedNetwork, create_network, narrowed
from studies.evidence.study import Study, counting
from studies.evidence.train import Spent, train
from studies.samplers.plug_in import plugged_in, task_of
from studies.samplers.sandwich import Sandwich, SandwichTask

_FITTED, _CHOSEN = 512, 512
"""Training images for the fit of stitching layers, and for KLAS."""
_COVERAGES = 20
"""Thresholds of a cascade: so many equal shares of images are left to the small network."""
_HELD_OUT, _PARTS = 40, 4
"""One training image of so many is held out for the focus, which narrows after each part of the steps but the last."""
_KERNEL = 4
"""Blocks that a window spans where KLAS chooses among its joints."""
_BUCKETS = 12
"""Number of ranges of FLOPs; KLAS keeps the best joints in each."""
_TAUGHT = {"distillation_type": "soft", "distillation_tau": 2.0}
"""How the costly anchor teaches, in whichever row it does."""


class Way(NamedTuple):
    """A row of the table.

    Args:
        words: What it is.
        run: Trains it and returns its networks.
    """

    words: str
    run: Callable[[Study, int, Spent], Entrants]


def _anchors(study: Study, seed: int, spent: Spent) -> Entrants:
    return _alone(study, *study.fine_tuned(seed, spent))


def _alone(study: Study, small: nn.Module, large: nn.Module) -> Entrants:
    return plain({"cheap anchor, fine-tuned": small, "costly anchor, fine-tuned": large}, study.size)


def _cascade(study: Study, seed: int, spent: Spent) -> Entrants:
    """Thresholds are quantiles of the small network's confidence on the images that choose networks.

    Beside the cascades, it offers each of the two networks alone.
    """
    small, large = study.fine_tuned(seed, spent)
    with torch.no_grad():
        batches = study.splits["validation"].batches(study.size.batch_size, study.device)
        sure = torch.cat([small.eval()(images).softmax(1).amax(1) for images, _ in batches])
    shares = torch.linspace(0, 1, _COVERAGES + 1, device=sure.device)[1:]  # at 0, the small one answers all images
    return _alone(study, small, large) + cascade(small, large, sure.quantile(shares).tolist(), study.size)


def _between(study: Study, seed: int, spent: Spent, *, sliced: bool) -> Entrants:
    """Networks of the widths between the anchors, each with an equal share of the budget, taught by the costly one."""
    size, made = study.size, {}
    for width in size.between:
        teacher = study.anchor(1)
        network = narrowed(teacher, size, width) if sliced else create_network(size, width)
        train(
            network, study.splits["train"], size, budget=size.budget / len(size.between), lr=size.lr_scratch,
            seed=seed, device=study.device, spent=spent, teacher=teacher,
            settings=make_recipe(_TAUGHT).stitch,
        )  # fmt: skip
        made[f"width {width}"] = network
    return plain(made, size)


def _sliced(study: Study, seed: int, spent: Spent) -> Entrants:
    """One network of every width, trained by the sandwich rule."""
    size = study.size
    network = SlicedNetwork(study.anchor(1), size)
    costs = [cost_of(create_network(size, width), size).flops for width in size.widths]
    settings, numbers = StitchRecipe(), range(len(size.widths))
    sampler = Sandwich(numbers, costs.__getitem__, settings, seed, (numbers[0], numbers[-1]))
    train(
        network, study.splits["train"], size, budget=size.budget, lr=size.lr_scratch, seed=seed, device=study.device,
        spent=spent, sampler=sampler, settings=settings, kind=SandwichTask,
    )  # fmt: skip
    made = {f"width {width}": network.alone(number, size) for number, width in enumerate(size.widths)}
    return plain({name: one.to(study.device) for name, one in made.items()}, size)


def _snnet(
    study: Study, seed: int, spent: Spent, *, sampler: str = "cost_bins", config: StitchConfig | None = None,
    focus: bool = False, taught: bool = False, **settings: object,
) -> Entrants:  # fmt: skip
    """An SN-Net whose layers are fitted in closed form, then trained with these settings."""
    split = study.splits["train"]
    split, held_out = split.split_off(len(split) // _HELD_OUT if focus else 0, seed)
    model = create_snnet(config or study.config(rule="proportional")).to(study.device)
    with counting(spent):
        fit_stitching_layers(model, (images for images, _ in _some(study, split, _FITTED, seed)))
    recipe = make_recipe({**settings, **(_TAUGHT if taught else {}), "seed": seed, "sampler": sampler})
    freeze(model, recipe.stitch)
    with plugged_in(sampler), patch.dict(SAMPLERS, {"cost_bins": FocusedBins} if focus else {}):
        drawing = sampler_of(model, recipe)
    for_focus = (_PARTS - 1) * len(held_out) * sum(map(drawing.cost, model.space.ids))
    train(
        model, split, study.size, budget=study.size.budget - spent.flops - for_focus, lr=study.size.lr, seed=seed,
        device=study.device, spent=spent, sampler=drawing, settings=recipe.stitch, kind=task_of(sampler),
        teacher=study.anchor(1) if taught else None, parts=_PARTS if focus else 1,
        between=lambda: _narrow(study, model, drawing, held_out, seed, spent),
    )  # fmt: skip
    return stitches(model)


def _narrow(study: Study, model: SNNet, sampler: Sampler, held_out: Split, seed: int, spent: Spent) -> None:
    """Stop training the stitches that are rarely on the front of held-out images."""
    assert isinstance(sampler, FocusedBins), "of a row with a focus"
    rest, first = held_out.split_off(len(held_out) // 4, seed)
    batches = (part.batches(study.size.batch_size, study.device) for part in (first, rest))
    with counting(spent):
        narrow(model, sampler, *batches)


def _klas(study: Study, seed: int, spent: Spent) -> Entrants:
    """Joints chosen by KLAS among those of wide windows, then trained like any others."""
    config = study.config(stitch_kernel_size=_KERNEL)
    model = create_snnet(config).to(study.device)
    images = _some(study, study.splits["train"], _CHOSEN, seed)
    found = choose(model, images, buckets=_BUCKETS, seed=seed)
    spent.flops += _CHOSEN * sum(cost_of(study.anchor(number), study.size).flops for number in (0, 1))
    chosen = replace(config, joints=tuple(map(str, found.kept)))
    return _snnet(study, seed, spent, config=chosen)


def _two_way(study: Study, seed: int, spent: Spent, *, taught: bool = False) -> Entrants:
    config = study.config(rule="two_way", layer="lowrank", lora_r=study.size.rank)
    return _snnet(study, seed, spent, config=config, taught=taught)


def _some(study: Study, split: Split, count: int, seed: int) -> list[Batch]:
    """Some images as they are, by the seed."""
    return [*split.split_off(count, seed)[1].batches(study.size.batch_size, study.device)]


ROWS = {
    "anchors": Way("the two anchors, fine-tuned", _anchors),
    "distilled": Way("sizes in between, sliced from the costly anchor and distilled", partial(_between, sliced=True)),
    "scratch": Way("sizes in between, distilled from random weights", partial(_between, sliced=False)),
    "sliced": Way("one network of all widths, from the costly anchor", _sliced),
    "cascade": Way("cascade of the two anchors, fine-tuned", _cascade),
    "uniform": Way("SN-Net, uniform", partial(_snnet, sampler="uniform")),
    "cost_bins": Way("SN-Net, cost bins", _snnet),
    "two_way": Way("SN-Net, two-way, low rank", _two_way),
    "taught": Way(
        "SN-Net, cost bins, taught by the costly anchor", partial(_snnet, taught=True)
    ),
    "two_way_taught": Way(
        "SN-Net, two-way, low rank, taught by the costly anchor", partial(_two_way, taught=True)
    ),
    "klas": Way("SN-Net, joints chosen by KLAS", _klas),
    "features": Way(
        "SN-Net, frozen anchors, feature matching", partial(_snnet, loss="features")
    ),
    "focus": Way("SN-Net, cost bins, focused", partial(_snnet, focus=True)),
    "best_of": Way("SN-Net, best of 3", partial(_snnet, sampler="best_of")),
    "sandwich": Way("SN-Net, sandwich", partial(_snnet, sampler="sandwich")),
}  # fmt: skip
"""The rows by name, in the order of the table; one of your own is added here."""


def run_row(name: str, study: Study, seed: int) -> tuple[Entrants, Spent]:
    """Train a row, and return its networks with the anchors as they were given, and what it has spent."""
    random_seed(seed, 0)
    spent = Spent()
    given = {"cheap anchor, as given": study.anchor(0), "costly anchor, as given": study.anchor(1)}
    return plain(given, study.size) + ROWS[name].run(study, seed, spent), spent
