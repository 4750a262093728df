"""timm's data sets, opened so that nothing in a setting or in a folder reaches a shell or a server."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from timm.data import create_dataset
from torch.utils.data import Dataset

from stitchkit.errors import InputError
from stitchkit.paths import check_dataset, check_local

_SHARDS = "wds"


def open_timm(name: str, *, root: str | None, split: str, **options: Any) -> Dataset[Any]:
    """A data set by timm's string for it; folders and files of it are those of this machine.

    Args:
        name: Such as `wds/x` or `hfds/timm/resisc45`; empty for an image folder.
        root: The folder that its files are in.
        split: A split, or for `wds/` also the names of its shards.
        options: Further arguments of `timm.data.create_dataset`.

    Raises:
        InputError: If a part of it is a URL or a command, or a shard does not exist.
        Exception: What timm's readers raise, which is of many kinds.
    """
    check_dataset(name, "dataset")
    check_local(root or "", "data folder")
    check_local(split, "split")
    if name.partition("/")[0].lower() != _SHARDS:
        return create_dataset(name, root=root, split=split, **options)  # type: ignore[no-any-return]
    if not root or not Path(root).is_dir():
        raise InputError(f"data folder {root!r} does not exist; name the folder that holds the shards of '{name}'")
    _open_files_alone()
    # timm puts the folder before the name of a shard: what begins with a slash has no scheme, whatever follows.
    dataset: Any = create_dataset(name, root=os.path.abspath(root), split=split, **options)
    _check_shards(dataset.reader)
    return dataset  # type: ignore[no-any-return]


def _open_files_alone() -> None:
    """Take from webdataset all it has to open URLs and commands with.

    Its own switch, `enforce_security`, refuses files of this machine too. A process that began with it on keeps it.
    """
    schemes = import_module("webdataset.gopen").gopen_schemes
    for scheme in schemes.keys() - {"__default__"}:
        del schemes[scheme]


def _check_shards(reader: Any) -> None:
    """See that all shards are files, which timm would pass over with a warning while it trains."""
    shards = [Path(reader.root, name) for name in reader.split_info.filenames]
    if missing := [shard for shard in shards if not shard.is_file()]:
        raise InputError(f"{len(missing)} of {len(shards)} shards do not exist, such as {str(missing[0])!r}")
