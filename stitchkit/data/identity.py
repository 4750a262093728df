"""Whether a data set still has the images of an earlier evaluation, found out without reading all of them.

Names do not decide, since files change in place, nor do times: a copy of a data set has others.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torch.utils.data import IterableDataset

from stitchkit.data.dense.pairs import ImagePairs, spread
from stitchkit.data.labelled_images import Images, image_labels, image_names
from stitchkit.data.unreadable import CheckedImages
from stitchkit.errors import InputError
from stitchkit.files import check_regular

_MOST_READ = 200
_MOST_BYTES = 2**20
_AT_ONCE = 16  # questions to a disk at a time: one over a network answers as many as fast as one


def images_digest(images: CheckedImages | ImagePairs | IterableDataset[Any]) -> str:
    """A digest of a split: names, labels and sizes of all files, and the first MiB of 200 of them, evenly spread.

    Masks, depth maps and the shards of `wds/` are files too; other streams have none. Of images without files, 200 are
    decoded.
    """
    split: Any = images.dataset if isinstance(images, CheckedImages) else images
    is_stream, files = isinstance(split, IterableDataset), _files(split)
    if isinstance(split, ImagePairs):
        files, names, labels = split.files, [*split.names], None
    elif is_stream:
        names, labels = [Path(file).name for file in files], None
    else:
        names, labels = [*image_names(split)], image_labels(split)
    digest = hashlib.sha256(json.dumps([0 if is_stream else len(split), names, labels]).encode())
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        digest.update(json.dumps([*pool.map(_size, files)]).encode())
        for content in pool.map(_first_bytes, [files[number] for number in spread(len(files), _MOST_READ)]):
            digest.update(hashlib.sha256(content).digest())
    if not (files or is_stream):
        for content in map(partial(_decoded, split), spread(len(split), _MOST_READ)):
            digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def _files(split: Any) -> Sequence[str]:
    """The files of a split; none if its images are not files of their own."""
    reader: Any = getattr(split, "reader", None)
    if isinstance(reader, ReaderImageFolder):
        return [path for path, _ in reader.samples]
    shards = getattr(getattr(reader, "split_info", None), "filenames", ())  # of `wds/`
    return [os.path.join(reader.root, shard) for shard in shards]


def _size(file: str) -> int:
    try:
        return os.stat(file).st_size
    except OSError:  # the evaluation says it
        return -1


def _first_bytes(file: str) -> bytes:
    try:
        check_regular(Path(file))
        with open(file, "rb") as opened:
            return opened.read(_MOST_BYTES)
    except (OSError, InputError):
        return b""


def _decoded(split: Images | ImagePairs, number: int) -> bytes:
    """An image and its target, of a library's data set; nothing of an unreadable one, which the evaluation counts."""
    try:
        if (reader := getattr(split, "reader", None)) is not None:
            image, target = reader[number]
            return bytes(image.read()) + repr(target).encode()
        return b"".join(np.asarray(part).tobytes() for part in split[number])
    except Exception:  # decoders raise many types
        return b""
