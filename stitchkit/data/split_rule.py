"""The one rule of which split of a data set is trained on and which is judged, for training, jobs and StitchNet.

A split is looked for under the name that was asked for, by default `train` or `validation`, and then under other names
for the same: `training` for `train`; `val`, `valid`, `eval`, `evaluation` and at last `test` for `validation`. So test
images are judged only where there are no validation images, or when they are asked for by name (`--val-split test`, a
job's `val_split: test`). A folder counts as a split if at least one folder is in it: ImageNet's `test/`, which has
images and no classes, is never judged. The log says at the start which split is judged.

torchvision's sets have a training and a judged part each, as published: `torchvision_sets` lists them.
"""

from __future__ import annotations

from stitchkit.errors import unknown

_TRAINED = ("train", "training")
_VALIDATION = ("validation", "val", "valid", "eval", "evaluation")


def names_of(split: str) -> tuple[str, ...]:
    """Names under which a split is looked for, in their order; an unusual name stands for itself alone."""
    if split in _TRAINED:
        return tuple(dict.fromkeys((split, *_TRAINED)))
    if split in _VALIDATION:
        return tuple(dict.fromkeys((split, *_VALIDATION, "test")))
    return (split,)


def published_part(split: str) -> str:
    """`train` or `test`, for a split of a set that is published in two parts.

    Raises:
        InputError: If the split has none of the usual names.
    """
    if split in _TRAINED:
        return "train"
    if split in (*_VALIDATION, "test"):
        return "test"
    raise unknown("split", split, (*_TRAINED, *_VALIDATION, "test"))
