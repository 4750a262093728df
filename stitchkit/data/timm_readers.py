"""timm's data sets, opened so that nothing in a setting or a folder reaches a shell or a server."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load
from timm.data import ImageDataset, create_dataset
from torch.utils.data import IterableDataset

from stitchkit.data.source import MissingData
from stitchkit.errors import InputError, one_line
from stitchkit.paths import check_dataset, check_local
from stitchkit.settings.files import read_settings_file


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
    is_hub = library.lower() in ("hfds", "hfids")
    if is_hub:
        _check_card(Path(rest))
    if library.lower() == "wds":
        dataset = _open_shards(name, root, split, options)
    else:
        with _offline() if is_hub and not options.get("download") else nullcontext():
            dataset = create_dataset(name, root=root, split=split, **options)
    if isinstance(dataset, IterableDataset) and not options.get("is_training"):
        reader: Any = dataset.reader  # type: ignore[attr-defined] # timm has no types
        reader._lazy_init = partial(_divide, reader)
    return dataset


def _divide(reader: Any) -> None:
    """Let the reader of a stream take its share of the images, and then forget that there are other ranks.

    timm's readers make ranks even: they cut a share that is longer than others, or repeat images of a shorter one. An
    evaluation counts each image once (law 9), and needs no even ranks.
    """
    type(reader)._lazy_init(reader)
    reader.dist_num_replicas = 1


def _open_shards(name: str, root: str | None, split: str, options: Mapping[str, object]) -> ImageDataset:
    """A stream of webdataset, which opens only files for the rest of this process."""
    if not root or not Path(root).is_dir():
        raise MissingData(f"data folder {root!r} does not exist; name the folder that holds the shards of '{name}'")
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


def needs_process(reader: Any) -> bool:
    """Whether a stream is divided only among loader processes, so that each of several ranks must have one."""
    return type(reader).__name__ == "ReaderTfds"


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
