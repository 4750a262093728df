"""timm's data sets, opened so that nothing in a setting or a folder reaches a shell or a server."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load
from timm.data import ImageDataset, create_dataset

from stitchkit.data.source import MissingData
from stitchkit.errors import InputError, one_line
from stitchkit.paths import check_dataset, check_local
from stitchkit.settings.files import read_settings_file

_MOST_SHARDS = 1_000_000
_MOST_PATTERN = 2000
_BRACES = re.compile(r"{([^{}]*)}")


def open_timm(name: str, *, root: str | None, split: str, **options: object) -> ImageDataset:
    """A data set by timm's string, with all folders and files on this machine.

    Args:
        name: Such as `wds/x` or `hfds/timm/resisc45`; empty for an image folder.
        root: The folder of its files.
        split: A split; for `wds/`, the names of its shards.
        options: Further arguments of `timm.data.create_dataset`.

    Raises:
        Exception: Anything that timm's readers raise.
    """
    check_dataset(name, "dataset")
    check_local(root or "", "data folder")
    check_local(split, "split")
    library, _, rest = name.partition("/")
    if library.lower() == "wds":
        return _open_shards(name, root, split, options)
    is_hub = library.lower() in ("hfds", "hfids")
    if is_hub:
        _check_card(Path(rest))
    with _offline() if is_hub and not options.get("download") else nullcontext():
        return create_dataset(name, root=root, split=split, **options)


def _open_shards(name: str, root: str | None, split: str, options: Mapping[str, object]) -> ImageDataset:
    """A stream of webdataset, which opens only files for the rest of this process."""
    if not root or not Path(root).is_dir():
        raise MissingData(f"data folder {root!r} does not exist; name the folder that holds the shards of '{name}'")
    if len(split) > _MOST_PATTERN or num_names(split) > _MOST_SHARDS:
        raise InputError(f"split {split!r:.200} names more than {_MOST_SHARDS:,} shards; check its braces")
    # Its own switch, `enforce_security`, would refuse local files too. A process that started with it on keeps it.
    schemes = import_module("webdataset.gopen").gopen_schemes
    for scheme in schemes.keys() - {"__default__"}:
        del schemes[scheme]
    # timm prepends the folder to the name of a shard, and a path that begins with a slash has no scheme.
    dataset = create_dataset(name, root=os.path.abspath(root), split=split, **options)
    shards = [Path(dataset.reader.root, shard) for shard in dataset.reader.split_info.filenames]
    if missing := [shard for shard in shards if not shard.is_file()]:  # timm would skip them with a warning
        raise MissingData(
            f"{len(missing)} of {len(shards)} shards do not exist, such as {str(missing[0])!r}; check the folder, and "
            "the names in its _info.json or in braces"
        )
    return dataset


def num_names(pattern: str) -> int:
    """The number of names that webdataset would make of a pattern with braces, counted without making them."""
    pattern = re.sub(r"\\.|\0", "x", pattern)  # an escaped brace is a letter
    while group := _BRACES.search(pattern):  # the innermost first: its place takes its number
        if ends := re.fullmatch(r"(-?\d+)\.\.(-?\d+)(\.\.-?\d+)?", group[1]):
            names = abs(int(ends[2]) - int(ends[1])) + 1
        elif re.fullmatch(r"[A-Za-z]\.\.[A-Za-z](\.\.-?\d+)?", group[1]):
            names = 52
        else:
            names = sum(map(_product, group[1].split(",")))
        pattern = f"{pattern[: group.start()]}\0{names}\0{pattern[group.end() :]}"
    return _product(pattern)


def _product(text: str) -> int:
    return math.prod(int(number) for number in re.findall(r"\0(\d+)\0", text))


def num_shards(reader: Any, ranks: int) -> int | None:
    """The shards of a stream that each rank can read; None if its reader divides images, not shards."""
    kind = type(reader).__name__  # the classes can be imported only with their packages
    if kind == "ReaderWds":
        return len(reader.split_info.filenames) // ranks
    if kind == "ReaderHfids" and not reader.download:
        shards: int = reader.builder.as_streaming_dataset(split=reader.split).num_shards
        # Every rank reads all shards, and skips the images of the others, if they cannot be divided evenly.
        return shards if shards % ranks else shards // ranks
    return None


def _check_card(folder: Path) -> None:
    """Refuse a local folder whose card names files elsewhere, which Hugging Face's readers would download."""
    for path in (folder / "README.md", folder / ".huggingface.yaml"):
        if not path.is_file():
            continue
        try:
            card = metadata_load(path) if path.suffix == ".md" else read_settings_file(path)
        except Exception as error:  # bad text, bad YAML, or an incomplete card
            raise InputError(f"'{path}', which describes the data set, cannot be read: {one_line(error)}") from error
        for value in _texts(card.get("configs") if isinstance(card, dict) else None):
            if "::" in value:
                raise InputError(f"'{path}' names {value!r}, which is not a file in the folder; copy it there")
            check_local(value, f"a file that '{path}' names")


def _texts(value: object) -> Iterator[str]:
    """All text in nested lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


@contextmanager
def _offline() -> Iterator[None]:
    """Let Hugging Face's packages read only the disk, without asking a server."""
    import datasets
    import huggingface_hub.constants

    # Both read the environment only when imported; now only their own copies count.
    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
