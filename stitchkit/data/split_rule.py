"""Which split of a data set is trained on, and which is judged: one rule for training, evaluation, jobs and StitchNet.

A split has the name that was asked for, `train` and `validation` unless a setting says otherwise. Where a data set has
none of that name, other names for the same are tried in their order: `training` for `train`, and for `validation` first
`val`, `valid`, `eval` and `evaluation`, then `test`. So where validation and test images are both at hand, validation
images are judged, and test images only when they are asked for by name (`--val-split test`, a job's `val_split: test`)
or there are no others. A folder counts as a split if there is at least one folder in it: ImageNet's `test/`, which has
images and no classes, is never judged. The log says at the start which split is judged, and what else is there.

torchvision's sets have a training and a judged part each, as published: `torchvision_sets` lists them.
"""

from __future__ import annotations

from stitchkit.errors import unknown

_TRAINED = ("train", "training")
_VALIDATION = ("validation", "val", "valid", "eval", "evaluation")


def names_of(split: str) -> tuple[str, ...]:
    """Names under which a split is looked for, in their order.

    Args:
        split: The name that was asked for; other names than the usual stand for themselves alone.
    """
    if split in _TRAINED:
        return tuple(dict.fromkeys((split, *_TRAINED)))
    if split in _VALIDATION:
        return tuple(dict.fromkeys((split, *_VALIDATION, "test")))
    return (split,)


def published_part(split: str) -> str:
    """`train` or `test`: the part of a set that is published in two that a split stands for.

    Args:
        split: The name that was asked for.

    Raises:
        InputError: If it is none of the usual names.
    """
    if split in _TRAINED:
        return "train"
    if split in (*_VALIDATION, "test"):
        return "test"
    raise unknown("split", split, (*_TRAINED, *_VALIDATION, "test"))
