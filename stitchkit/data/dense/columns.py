"""Hugging Face data sets with a column of images and one of masks or depth maps."""

from __future__ import annotations

from typing import Any

from stitchkit.data.dense.maps import Content
from stitchkit.data.open_dataset import open_dataset
from stitchkit.data.source import Source
from stitchkit.display import listed
from stitchkit.errors import InputError, unknown
from stitchkit.paths import check_local
from stitchkit.settings.tasks import DENSE


class PairRows:
    """The rows of a split, as `PairFiles` are the files of one."""

    classes: tuple[str, ...] = ()
    num_classes = 0
    skips_zero = False
    notes = ""
    named_in = ""

    def __init__(self, table: Any, split: str, task: str, *, input_key: str, target_key: str):
        import datasets

        self._input_key, self._target_key = input_key, target_key or _target_column(table, task)
        for key in (self._input_key, self._target_key):
            if key not in table.column_names:
                raise unknown("column", key, table.column_names)
            if not isinstance(table.features[key], datasets.Image):
                raise InputError(f"column '{key}' does not hold images; choose one of {_images_of(table)}")
            table = table.cast_column(key, datasets.Image(decode=False))  # our own readers decode
        self._images = table.select_columns([self._input_key])
        self._targets = table.select_columns([self._target_key])
        self._noun = DENSE[task].noun
        self.split = split
        self.names = tuple(map(str, range(len(table))))

    def image(self, index: int) -> tuple[str, Content]:
        """The name and the content of an image."""
        return self._cell("image", self._images[index][self._input_key], index)

    def target(self, index: int) -> tuple[str, Content]:
        """The name and the content of a mask or a depth map."""
        return self._cell(self._noun, self._targets[index][self._target_key], index)

    def _cell(self, noun: str, cell: dict[str, Any] | None, index: int) -> tuple[str, Content]:
        if not cell or not (cell["bytes"] or cell["path"]):
            raise InputError(f"row {index} of the {self.split} split has no {noun}; remove the row")
        if cell["bytes"]:
            return f"row {index} of {self.split}", bytes(cell["bytes"])
        check_local(cell["path"], f"the {noun} in row {index}")
        return cell["path"], cell["path"]


def _images_of(table: Any) -> str:
    import datasets

    return listed([name for name, kind in table.features.items() if isinstance(kind, datasets.Image)])


def _target_column(table: Any, task: str) -> str:
    column = next((name for name in DENSE[task].columns if name in table.column_names), None)
    if column is None:
        raise InputError(
            f"the data set has none of the columns {', '.join(DENSE[task].columns)}; name the one of the "
            f"{DENSE[task].noun}s with --target-key (columns with images: {_images_of(table)})"
        )
    return column


def open_rows(
    name: str, split: str, task: str, *, input_key: str = "image", target_key: str = "", download: bool = False
) -> PairRows:
    """The rows of a split of a data set of Hugging Face, `hfds/` and its name or folder."""
    options = {"input_key": input_key, "target_key": ""}  # the reader need not look for class names in a mask
    images: Any = open_dataset(Source(name, download=download), split, is_training=True, **options)
    return PairRows(images.reader.dataset, images.split, task, input_key=input_key, target_key=target_key)
