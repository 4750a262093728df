"""timm's data sets, opened so that nothing in a setting or a folder reaches a shell or a server."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

from huggingface_hub import metadata_load
from pydantic import Field, StrictStr
from pydantic.dataclasses import dataclass
from timm.data import ImageDataset, create_dataset
from timm.data.readers.targets import has_field
from torch.utils.data import IterableDataset

from stitchkit.classes import in_order
from stitchkit.data.source import MissingData
from stitchkit.display import listed
from stitchkit.errors import InputError, one_line
from stitchkit.files import check_regular
from stitchkit.paths import check_dataset, check_local
from stitchkit.settings.fields import MOST_CLASSES, Natural
from stitchkit.settings.files import read_settings_file
from stitchkit.settings.schema import Settings, checked_by, parse

_logger = logging.getLogger(__name__)
_MOST_SHARDS = 1_000_000
_MOST_PATTERN = 2000
_TEXTS = ("string", "large_string")
_BRACES = re.compile(r"{([^{}]*)}")


def _shard_fault(name: str) -> str | None:
    path = Path(name)
    return "is not in the folder of the data" if path.is_absolute() or ".." in path.parts else None


@dataclass(frozen=True)
class _Shards(Settings):
    """The shards of a split, as braces or `_info.json` give them."""

    num_samples: Annotated[int, Field(strict=True, ge=0, le=10**15)]
    filenames: Annotated[tuple[Annotated[StrictStr, checked_by(_shard_fault)], ...], Field(max_length=_MOST_SHARDS)]
    shard_lengths: tuple[Natural, ...]


def open_timm(name: str, *, root: str | None, split: str, keys_advice: str = "", **options: object) -> ImageDataset:
    """A data set by timm's string, with all folders and files on this machine; timm's readers raise anything.

    `keys_advice` is what to do if a Hugging Face data set has columns of other names.
    """
    check_dataset(name, "dataset")
    check_local(root or "", "data folder")
    check_local(split, "split")
    library, _, rest = name.partition("/")
    if library.lower() == "wds":
        dataset = _open_shards(name, root, split, options)
    elif library.lower() in ("hfds", "hfids"):
        _check_card(Path(rest))
        with nullcontext() if options.get("download") else _offline():
            dataset = _open_hub(name, root, split, options, keys_advice)
    else:
        dataset = create_dataset(name, root=root, split=split, **options)
    if isinstance(dataset, IterableDataset) and not options.get("is_training"):
        reader: Any = dataset.reader  # type: ignore[attr-defined] # timm has no types
        reader._lazy_init = partial(_divide, reader)
    return dataset


def _divide(reader: Any) -> None:
    """Let a stream's reader take its share of the images, and then treat it as the only rank.

    timm's readers cut or repeat images to make ranks even, but an evaluation counts each image once.
    """
    type(reader)._lazy_init(reader)
    reader.dist_num_replicas = 1


def _open_hub(name: str, root: str | None, split: str, options: Mapping[str, object], keys_advice: str) -> ImageDataset:
    """A Hugging Face data set whose columns are there, with texts as labels numbered."""
    import datasets

    library, _, rest = name.partition("/")
    keys = [str(options.get("input_key", "image")), *str(options.get("target_key", "label")).split(",")]
    is_stream = library.lower() == "hfids"
    if not is_stream:  # first, because the reader invents the images' column if there is none
        features = datasets.load_dataset(rest, split=split, cache_dir=root).features
        _check_columns(name, features, keys, keys_advice)
    images = create_dataset(name, root=root, split=split, **options)
    if is_stream:
        features = images.reader.builder.info.features
        if features is None:  # of a set that was never read whole
            return images
        _check_columns(name, features, keys, keys_advice)
    class_map, kind = options.get("class_map"), str(getattr(features.get(keys[1]), "dtype", ""))
    if is_stream and kind in _TEXTS and not class_map:
        raise InputError(
            f"the labels of '{name}' in the column {keys[1]!r} are texts; number them by --class-map FILE, or read "
            "the set by hfds/, which sees them all"
        )
    labels: set[Any] = set()
    if names := getattr(features.get(keys[1]), "names", None):
        labels = {*names, *range(len(names))}
    elif not is_stream and (kind in _TEXTS or (class_map and kind.startswith(("int", "uint")))):
        # Of all splits: one may lack a class, and the numbers of those after it would be others.
        splits = datasets.load_dataset(rest, cache_dir=root)
        labels = {label for part in splits.values() for label in part.unique(keys[1])} - {None}
    if isinstance(class_map, Mapping):
        if labels and (missing := in_order(map(str, class_map.keys() - labels))):
            raise InputError(
                f"the class map names classes that '{name}' lacks: {listed(missing)}; correct or remove them"
            )
    elif kind in _TEXTS:
        if len(labels) > MOST_CLASSES:
            raise InputError(f"column {keys[1]!r} of '{name}' has {len(labels):,} texts, too many for classes")
        _logger.info("the %d text labels in the column %r are numbered in their order", len(labels), keys[1])
        images.reader.class_to_idx = {text: number for number, text in enumerate(in_order(labels))}
        images.reader.remap_class = True
    return images


def _check_columns(name: str, features: Mapping[str, object], keys: Sequence[str], advice: str) -> None:
    if missing := [key for key in keys if key and not has_field(features, key)]:
        columns = " and ".join(filter(None, [", ".join([*features][:-1]), [*features][-1]]))
        raise InputError(f"data set '{name}' has no column {missing[0]!r}; its columns are {columns}; {advice}")


def _open_shards(name: str, root: str | None, split: str, options: Mapping[str, object]) -> ImageDataset:
    """A stream of webdataset, which opens only files for the rest of this process."""
    if not root or not Path(root).is_dir():
        raise MissingData(f"data folder {root!r} does not exist; name the folder that holds the shards of '{name}'")
    if len(split) > _MOST_PATTERN or num_names(split) > _MOST_SHARDS:
        raise InputError(f"split {split!r:.200} names more than {_MOST_SHARDS:,} shards; check its braces")
    for info in ("_info.json", "info.json"):
        check_regular(Path(root, info))
    # Its own switch, `enforce_security`, would refuse local files too. A process that started with it on keeps it.
    schemes = import_module("webdataset.gopen").gopen_schemes
    for scheme in schemes.keys() - {"__default__"}:
        del schemes[scheme]
    # timm prepends the folder to the name of a shard, and a path that begins with a slash has no scheme.
    dataset = create_dataset(name, root=os.path.abspath(root), split=split, **options)
    fields = {key: getattr(dataset.reader.split_info, key) for key in _Shards.__pydantic_fields__}
    shards = [Path(dataset.reader.root, shard) for shard in parse(_Shards, fields, f"split '{split}'").filenames]
    if missing := [shard for shard in shards if not shard.is_file()]:  # timm would skip them with a warning
        raise MissingData(
            f"{len(missing)} of {len(shards)} shards do not exist, such as {str(missing[0])!r}; check the folder, and "
            "the names in its _info.json or in braces"
        )
    return dataset


def needs_process(reader: Any) -> bool:
    """Whether a stream is divided only among loader processes, so that each of several ranks must have one."""
    return type(reader).__name__ == "ReaderTfds"


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
    modules: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value
