"""A run: open data, build the network, then train it or evaluate its stitches; with `--dry-run`, only plan it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import nn

from stitchkit.classes import trained_classes
from stitchkit.data.loader_processes import more_than_cores
from stitchkit.display import counted, quantity
from stitchkit.distributed import World
from stitchkit.engine.recovery import TRAIN_LOCK, check_unused, entered, find_resume, joined, launched
from stitchkit.errors import InputError
from stitchkit.measure.recalibrate import with_calibration
from stitchkit.model.anchor_sources import anchor_source
from stitchkit.model.plan import plan_anchors
from stitchkit.model.snnet import SNNet
from stitchkit.networks.timm_model import as_timm
from stitchkit.settings.recipe import Recipe
from stitchkit.settings.stitch_config import StitchConfig
from stitchkit.tasks.windows import Windows
from stitchkit.training.checkpoint import Checkpoints, load_run
from stitchkit.training.data import Datasets, check_augmentation, check_labels, weights_dtype
from stitchkit.training.evaluation import evaluation_of
from stitchkit.training.inputs import source_of
from stitchkit.training.network import check_device, check_names, sampler_of, suit_training, uncompiled
from stitchkit.training.optim import check_optimizer, create_optimisation
from stitchkit.training.preserve import freeze, say_frozen
from stitchkit.training.run_network import run_network
from stitchkit.training.samplers import check_sampler
from stitchkit.training.session import Kind, Session, labels_judge, open_session
from stitchkit.training.task import create_teacher, has_same_classes
from stitchkit.training.train import train

_logger = logging.getLogger(__name__)


def run(recipe: Recipe, config: StitchConfig | None) -> None:
    """Train, or evaluate with `--eval`, an SN-Net, or without a configuration a plain model; every rank calls this.

    With `--dry-run`, only say what the run would do. Nothing is overwritten if anything cannot be used.
    """
    plan, model = None, recipe.model
    if model.anchors:  # the data decide the number of classes, which the plan does not depend on
        plan = plan_anchors(
            [anchor_source(text) for text in model.anchors], num_classes=model.num_classes or 1000,
            img_size=model.sides, in_chans=model.channels if model.input_size else model.in_chans,
        )  # fmt: skip
    config = config if plan is None else plan.config.with_updates(recipe)
    run, kind = recipe.run, kind_of(recipe)
    check_names(recipe, config)
    kind.check(recipe)
    check_labels(recipe)
    entry = joined(run.device) if run.dry_run else entered(recipe.folder / kind.lock, run.device, flag="--output")
    with more_than_cores(), warnings.catch_warnings(), entry as world:
        # Of DistributedDataParallel, about 1x1 convolutions behind a permutation, as ConvNeXt's: a copy more, no error.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        check_device(recipe, world)
        files = Checkpoints(recipe.folder, keep=run.checkpoint_hist)
        checkpoint, restarted = find_resume(run.resume, files, world, only=kind.needs_checkpoint_to)
        recipe = replace(recipe, run=replace(run, resume=checkpoint))
        if restarted:  # these flags were meant for the first start of the run
            first = replace(recipe.schedule, start_epoch=None)
            recipe = replace(recipe, run=replace(recipe.run, no_resume_opt=False), schedule=first)
        kind.check_folder(files, recipe)
        if run.dry_run:  # published weights would be downloaded
            recipe = replace(recipe, model=replace(recipe.model, pretrained=False))
        for line in [] if plan is None else plan.lines:
            _logger.info("%s", line)
        session = open_session(recipe, config, world, kind)
        if plan is not None and world.is_primary and not run.dry_run:
            _show_network(session)
        if run.dry_run:
            _show_plan(session, kind.plan(session))
        else:
            kind.execute(session, files)


def kind_of(recipe: Recipe) -> TrainRun | EvalRun:
    """What a recipe asks for."""
    return EvalRun() if recipe.run.eval else TrainRun()


class TrainRun(Kind):
    """A run that trains.

    Attributes:
        lock: The file that keeps a second run of the kind away; the two kinds write different files.
        needs_checkpoint_to: The verb of a kind that needs a checkpoint, for messages; empty if it can begin without.
    """

    lock, needs_checkpoint_to = TRAIN_LOCK, ""

    def check(self, recipe: Recipe) -> None:
        """Refuse settings that only a training has, before the data are opened."""
        check_augmentation(recipe)
        check_optimizer(recipe.optim)
        check_sampler(recipe.stitch)

    def check_classes(self, recipe: Recipe, datasets: Datasets) -> None:
        """Refuse labels of unknown classes."""
        if recipe.stitch.uses_labels and not (datasets.classes or recipe.model.num_classes):
            raise InputError(f"data set '{source_of(recipe)}' does not name its classes; give --num-classes")

    def by_agreement(self, recipe: Recipe, _: Datasets, model: nn.Module, __: Mapping[str, object]) -> bool | None:
        """Not with labels, which need a classifier; without them, nothing is compared."""
        if not recipe.stitch.uses_labels:
            return None
        if not as_timm(model).num_classes:
            raise _no_classifier()
        return False

    def suit(self, model: nn.Module, recipe: Recipe, world: World) -> None:
        """Split and synchronise batch norms, as the recipe says."""
        suit_training(model, recipe, world)

    def check_folder(self, files: Checkpoints, recipe: Recipe) -> None:
        """Refuse to overwrite another run."""
        check_unused(files, None if recipe.run.no_resume_opt else recipe.run.resume, flag="--experiment")

    def plan(self, session: Session) -> Iterator[str]:
        """What the run would do, in lines, after checkpoint and teacher have been checked to fit."""
        recipe, stitch = session.recipe, session.recipe.stitch
        if recipe.run.resume:
            load_run(session)
        if stitch.distillation_type != "none":
            if stitch.teacher_path is None:  # published weights may have to be downloaded
                has_same_classes(stitch, as_timm(session.model).num_classes)
            else:
                create_teacher(
                    stitch, as_timm(session.model), session.world.device, weights_dtype(recipe), session.input_size[1:],
                    session.classes,
                )  # fmt: skip
        return _of_training(session)

    def execute(self, session: Session, files: Checkpoints) -> None:
        """Train."""
        with launched(session.folder, session.world):
            train(session, files)


class EvalRun(Kind):
    """A run that evaluates; it has what a `TrainRun` has."""

    lock, needs_checkpoint_to = ".eval.lock", "evaluate"

    def completed(self, recipe: Recipe, config: StitchConfig | None, content: Mapping[str, object]) -> Recipe:
        """The recipe with whether routes get batch-norm statistics of their own."""
        return with_calibration(recipe, config, content)

    def by_agreement(
        self, recipe: Recipe, datasets: Datasets, model: nn.Module, content: Mapping[str, object]
    ) -> bool | None:
        """Whether labels cannot judge answers; features are not answers."""
        if classes := as_timm(model).num_classes:
            return not labels_judge(recipe, datasets, classes, trained_classes(content))
        if not run_network(model).gives_features:
            raise _no_classifier()
        return False

    def check_folder(self, _: Checkpoints, __: Recipe) -> None:
        """Accept any folder: earlier results in it are later compared with the weights and the data."""

    def plan(self, session: Session) -> Iterator[str]:
        """No further lines; checkpoint and earlier results have been checked to fit."""
        evaluation_of(session)
        return iter(())

    def execute(self, session: Session, _: Checkpoints) -> None:
        """Evaluate every stitch, or the plain model."""
        evaluation_of(session).run()


def _no_classifier() -> InputError:
    return InputError("the network has no classifier; give --num-classes, or train without labels by --loss features")


def _show_network(session: Session) -> None:
    """Log what the network costs."""
    with uncompiled(session.model):
        for line in _of_network(session):
            _logger.info("%s", line)


def _show_plan(session: Session, lines: Iterator[str]) -> None:
    """Log the plan of a run, whose last lines depend on its kind."""
    _show_network(session)
    splits = {"training": session.loaders.train, "validation": session.loaders.validation}
    counts = ", ".join(f"{len(loader.dataset)} {name} images" for name, loader in splits.items() if loader is not None)
    classes = f", {len(session.classes)} classes" if session.classes else ""
    for line in [f"data: {counts}{classes}", *_of_dense(session), *lines]:
        _logger.info("%s", line)
    _logger.info("this was a dry run: nothing was computed, written or downloaded; folder: %s", session.folder)


def _of_network(session: Session) -> Iterator[str]:
    model = session.model
    sizes = "x".join(map(str, session.input_size))
    params = quantity(sum(weight.numel() for weight in model.parameters()))
    network = run_network(model)
    costs = network.costs(session.input_size)
    flops = [cost.flops for cost in costs]
    for label, cfg_id in network.anchors.items():
        yield f"anchor {label}: {quantity(flops[cfg_id])} FLOPs, {quantity(costs[cfg_id].params)} parameters"
    what = f"{session.recipe.model.model}: {quantity(flops[0])} FLOPs"
    if network.anchors:
        what = f"{len(flops)} stitches, {quantity(min(flops))} to {quantity(max(flops))} FLOPs"
    yield f"network: {what}, {params} parameters in total, images of {sizes}"


def _of_dense(session: Session) -> Iterator[str]:
    dense = session.recipe.dense
    if numbers := run_network(session.model).level_blocks:
        assert dense.spec is not None, "its head has levels"
        sides = (session.input_size[1], session.input_size[2])
        blocks = ", ".join(map(str, numbers))
        windows = Windows.of_task(dense, sides)
        yield (
            f"{dense.task} by the {dense.spec.head} head, with levels after blocks {blocks} of the last anchor; crops "
            f"of {sides[0]} x {sides[1]} to train on, and windows of the same size, {windows.stride} pixels apart, to "
            "evaluate in"
        )


def _of_training(session: Session) -> Iterator[str]:
    recipe, ranks = session.recipe, session.world.size
    assert session.loaders.train is not None, "training opens the training split"
    if isinstance(session.model, SNNet):
        freeze(session.model, recipe.stitch)
        sampler_of(session.model, recipe)  # it says what it draws, or refuses its settings
        if line := say_frozen(session.model, recipe.stitch):
            yield line
        yield (
            f"routes are drawn by --sampler {recipe.stitch.sampler}, and learn by --loss {recipe.stitch.loss} with "
            f"--preserve {recipe.stitch.way_to_preserve}"
        )
    batches, accumulated = len(session.loaders.train), recipe.optim.grad_accum_steps
    how = create_optimisation(session.model, recipe, batches=batches, ranks=ranks)
    images = recipe.data.batch_size * ranks
    steps = how.epochs * how.updates_per_epoch
    count = f"{counted(how.epochs, 'epoch')} of {counted(how.updates_per_epoch, 'step')}"
    last = f", {images * rest} in the last of an epoch" if (rest := batches % accumulated) else ""
    yield f"training: {count}, {steps} steps in total, {images * accumulated} images in a step{last}"
    number = recipe.schedule.warmup_epochs
    warm_up = f", {number:g} epoch{'' if number == 1 else 's'} of warm-up" if recipe.schedule.sched != "none" else ""
    yield f"learning rate: {how.rate:.3g} by {recipe.optim.opt}, schedule {recipe.schedule.sched}{warm_up}"
