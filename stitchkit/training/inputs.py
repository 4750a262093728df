"""The settings of a run, and the files that they name, checked without torch, whose import takes seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from stitchkit.data.source import Source, check_folder, check_no_pairs, check_pair_folder
from stitchkit.errors import prefixed
from stitchkit.paths import check_file
from stitchkit.restarts import restarts
from stitchkit.settings.flags import resolve
from stitchkit.settings.names import read_anchor
from stitchkit.settings.recipe import Recipe
from stitchkit.settings.stitch_config import StitchConfig


def read_run(flags: Mapping[str, object]) -> tuple[Recipe, StitchConfig | None]:
    """The recipe and the stitch configuration of a run; the folder of its data and the files of its weights exist."""
    recipe, config = resolve(flags)
    data, task = recipe.data, recipe.dense.task
    root = Path(data.dataset or data.data_dir or "")
    if task == "classification":
        check_folder(source_of(recipe))
        if not data.dataset:
            check_no_pairs(root, data.train_split, data.val_split)
    elif not data.dataset.lower().startswith("hfds/"):
        check_pair_folder(root, data.val_split if recipe.run.eval else data.train_split, task)
    # Ranks that a launcher restarts resume from their own checkpoint, even if that of the flags is gone by now.
    if not restarts():
        for prefix, file in _weights(recipe, config):
            with prefixed(prefix):
                check_file(file, "checkpoint")
    return recipe, config


def source_of(recipe: Recipe) -> Source:
    """The data set of a recipe.

    Labels are needed by whatever learns from them, and by single models; stitches are also judged by their anchors.
    """
    data, is_stitched = recipe.data, recipe.model.is_stitched
    needs_labels = not (is_stitched and (recipe.run.eval or not recipe.stitch.uses_labels))
    options: dict[str, object] = {"batch_size": data.batch_size, "seed": recipe.run.seed}
    options |= {key: value for key in ("input_key", "target_key") if (value := getattr(data, key)) is not None}
    source = Source(
        data.dataset, data.data_dir, data.dataset_download, data.class_map, tuple(options.items()),
        needs_labels=needs_labels,
        keys_advice="name those of the images and labels by --input-key and --target-key",
    )  # fmt: skip
    if recipe.run.dry_run and source.download:
        source = replace(source, download=False, advice="omit --dry-run, which downloads nothing")
    return source


def _weights(recipe: Recipe, config: StitchConfig | None) -> Iterator[tuple[str, str]]:
    """The files of weights that a run reads, each with the place that names it."""
    run, model, stitch = recipe.run, recipe.model, recipe.stitch
    if run.resume:
        yield from [("", run.resume)] if run.resume != "auto" else []
    elif model.initial_checkpoint:
        yield "", model.initial_checkpoint
    elif model.anchors:
        yield from ((f"anchor '{text}': ", file) for text in model.anchors if (file := read_anchor(text).file))
    elif config is not None:
        yield from ((f"anchor '{spec.label}': ", spec.checkpoint) for spec in config.anchors if spec.checkpoint)
    elif model.pretrained and model.pretrained_path:
        yield "", model.pretrained_path
    if stitch.distillation_type != "none" and stitch.teacher_path and not run.eval:
        yield "teacher: ", stitch.teacher_path
