"""The session: the open data and the network that training and evaluation share."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from timm.utils import random_seed
from torch import nn

from stitchkit.data.open_dataset import download
from stitchkit.data.unlabelled import has_labels
from stitchkit.display import counted
from stitchkit.distributed import World, from_primary
from stitchkit.engine.checkpoint_files import read_alike
from stitchkit.engine.settings import Autocast, EngineSettings
from stitchkit.files import write_text
from stitchkit.networks.timm_model import as_timm
from stitchkit.paths import for_file, paths_for_file
from stitchkit.settings.files import settings_text
from stitchkit.settings.recipe import Recipe
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.tasks.windows import Windows
from stitchkit.training import network
from stitchkit.training.data import Datasets, Loaders, create_loaders, open_datasets
from stitchkit.training.inputs import source_of
from stitchkit.training.pair_data import create_pair_loaders, open_splits

_logger = logging.getLogger(__name__)

PLAN = "stitch_config.json"
"""The configuration that `--anchors` led to, in the run's folder."""


@dataclass(frozen=True)
class Session:
    """A run with open data and a built network."""

    recipe: Recipe
    config: StitchConfig | None  # None for a plain model
    model: nn.Module  # on the device of this rank
    loaders: Loaders
    input_size: tuple[int, ...]  # `(C, H, W)`
    classes: tuple[str, ...]  # in the order of their numbers; empty if the dataset does not know them
    world: World
    by_agreement: bool = False  # whether answers are compared with those of the end anchors, because labels are missing

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.recipe.folder

    @cached_property
    def autocast(self) -> Autocast:
        """The context of forward passes in an evaluation."""
        return engine_settings(self.recipe).precision(self.world.device)[0]

    def save_settings(self, name: str, *, without: Collection[str] = ()) -> None:
        """Save the effective settings, `without` some, as a file for `-c` in the run's folder."""
        file, settings = self.folder / name, self.recipe.for_files()
        if self.recipe.model.anchors:  # which no file of settings has; later commands need the plan, not the anchors
            assert self.config is not None, "anchors are planned before they are built"
            source = {} if self.recipe.model.pretrained else {"pretrained": False}
            plan = paths_for_file({**self.config.to_dict(), "recipe": {**self.config.recipe, **source}}, file)
            write_text(self.folder / PLAN, json.dumps(plan, indent=2) + "\n")
            settings["stitch_config"] = PLAN
        settings = paths_for_file(settings, file) | {"output": for_file(self.recipe.run.output, file)}
        write_text(file, settings_text({key: settings[key] for key in settings if key not in without}))


class Kind(ABC):
    """What training and evaluation do differently with settings, data and network; as it stands, nothing."""

    def check(self, recipe: Recipe) -> None:  # noqa: B027
        """Refuse settings, before the data are opened."""

    def completed(self, recipe: Recipe, config: StitchConfig | None, content: Mapping[str, object]) -> Recipe:  # noqa: ARG002
        """The recipe with what the content of a checkpoint decides."""
        return recipe

    def check_classes(self, recipe: Recipe, datasets: Datasets) -> None:  # noqa: B027
        """Refuse data whose classes are not known but needed."""

    @abstractmethod
    def by_agreement(
        self, recipe: Recipe, datasets: Datasets, model: nn.Module, content: Mapping[str, object]
    ) -> bool | None:
        """Whether answers are compared with those of the end anchors; None if the run needs neither these nor labels.

        A network without the classifier that the run needs is refused.
        """

    def suit(self, model: nn.Module, recipe: Recipe, world: World) -> None:  # noqa: B027
        """Change the layers of a network for the run."""


def open_session(recipe: Recipe, config: StitchConfig | None, world: World, kind: Kind) -> Session:
    """Open the data and build the network."""
    content = read_alike(recipe.run.resume)[0] if recipe.run.resume else {}
    recipe = kind.completed(recipe, config, content)
    if recipe.dense.is_dense:
        return _open_dense(recipe, config, world, kind, content)
    if source_of(recipe).download:
        from_primary(world, lambda: download(source_of(recipe)))
    datasets = open_datasets(recipe)
    kind.check_classes(recipe, datasets)
    random_seed(recipe.run.seed, 0)  # the same weights on all ranks
    # A classifier for the classes of the data would stay untrained: without labels, networks keep what they have.
    learned = datasets.classes if recipe.stitch.uses_labels else ()
    built = network.with_trained_classes(recipe, content) if config is not None and not learned else recipe
    model = network.create_network(built, config, learned)
    network.prepare_as_trained(model, recipe, content)
    size, timm_model = network.input_size(model, recipe), as_timm(model)
    by_agreement = kind.by_agreement(recipe, datasets, model, content)
    needs_classes = by_agreement is False
    loaders = create_loaders(
        datasets, recipe, world, input_size=size, model_config=timm_model.pretrained_cfg,
        num_classes=timm_model.num_classes if needs_classes else 0,
    )  # fmt: skip
    kind.suit(model, recipe, world)
    network.place_network(model, recipe, world)
    classes = datasets.classes if needs_classes else ()
    return Session(recipe, config, model, loaders, size, classes, world, bool(by_agreement))


def labels_judge(recipe: Recipe, datasets: Datasets, outputs: int, trained: list[list[str]]) -> bool:
    """Whether an evaluation can judge answers by labels: there are some, and of the classes that the network knows.

    A network that learned from labels is refused later if they are of other classes.
    """
    classes = list(datasets.classes)
    if not has_labels(datasets.validation):
        reason = "the images have no labels"
    elif recipe.stitch.uses_labels or recipe.data.class_map or not classes:
        return True
    elif len(classes) != outputs:
        reason = f"the labels are of {counted(len(classes), 'class')}, and the anchors know {outputs:,}"
    elif trained not in ([], [classes]):
        reason = "the labels are of other classes than the anchors'"
    else:
        return True
    _logger.info("%s, so each stitch's answers are compared with those of its end anchor", reason)
    return False


def _open_dense(
    recipe: Recipe, config: StitchConfig | None, world: World, kind: Kind, content: Mapping[str, object]
) -> Session:
    if recipe.data.dataset_download and not recipe.run.dry_run:  # data sets are no plain data to return
        from_primary(world, lambda: bool(open_splits(recipe, config)))
    train, judged = open_splits(recipe, config)
    for pairs in (train, judged):
        if pairs is not None:
            from_primary(world, pairs.check_headers)
            from_primary(world, pairs.check_values)
    recipe = replace(recipe, model=replace(recipe.model, num_classes=judged.num_classes or None))
    random_seed(recipe.run.seed, 0)  # the same weights on all ranks
    model = network.create_network(recipe, config, judged.classes or None)
    network.prepare_as_trained(model, recipe, content)
    size = network.input_size(model, recipe)
    Windows.of_task(recipe.dense, (size[1], size[2]))  # refuses a stride that leaves gaps, before any epoch
    loaders = create_pair_loaders(
        train, judged, recipe, world, input_size=size, model_config=as_timm(model).pretrained_cfg
    )
    kind.suit(model, recipe, world)
    network.place_network(model, recipe, world)
    return Session(recipe, config, model, loaders, size, judged.classes, world)


def engine_settings(recipe: Recipe) -> EngineSettings:
    """The settings of a recipe that the engine needs."""
    # Synchronised batch norms agree, and those of frozen anchors must not change, not even by the rounding of a mean.
    is_settled = recipe.distributed.sync_bn or recipe.stitch.freezes_anchors
    dist_bn = "" if is_settled else recipe.distributed.dist_bn
    return EngineSettings.pick(recipe.flat(), checkpoint_interval=recipe.run.recovery_interval, dist_bn=dist_bn)
