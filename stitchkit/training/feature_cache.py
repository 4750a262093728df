"""The final features of frozen anchors on disk, `--cache-features`, so that later epochs do not compute them again."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from stitchkit.data.unreadable import CheckedImages
from stitchkit.display import quantity
from stitchkit.distributed import from_primary, gather_objects
from stitchkit.errors import InputError
from stitchkit.files import opened, refuse_link, write_text
from stitchkit.model.snnet import SNNet
from stitchkit.networks.data_config import saved_data_config
from stitchkit.networks.mode import evaluating
from stitchkit.settings.files import read_settings_file
from stitchkit.training.data import weights_dtype
from stitchkit.training.network import uncompiled
from stitchkit.training.session import Session

_logger = logging.getLogger(__name__)

_ABOUT = "cache.json"
_OTHERWISE = "remove the folder, or give another as --cache-features"


@dataclass(frozen=True)
class _File:
    """A tensor in a file, which all processes that open it share."""

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def make(self) -> None:
        """Create it, full of zeros."""
        with opened(self.path, "xb") as file:
            file.truncate(self.nbytes)
            if hasattr(os, "posix_fallocate"):  # not on macOS
                # It reserves the room: if there is none when memory is written to the disk, the process is killed.
                os.posix_fallocate(file.fileno(), 0, self.nbytes)

    def open(self) -> torch.Tensor:
        refuse_link(self.path)
        found = self.path.stat().st_size if self.path.is_file() else 0
        if found != self.nbytes:
            raise InputError(f"'{self.path}' has {found:,} bytes, not {self.nbytes:,}; {_OTHERWISE}")
        return torch.from_file(str(self.path), True, math.prod(self.shape), dtype=self.dtype).view(self.shape)


@dataclass(frozen=True)
class CacheFiles:
    """The files of a cache.

    Args:
        features: Of each anchor, by its number: the features of all images, one after the other.
        found: Of each anchor: a byte for each image, which says whether its feature is there.
    """

    folder: Path
    features: Mapping[int, _File]
    found: Mapping[int, _File]

    def __str__(self) -> str:
        labels = [file.path.stem for file in self.features.values()]
        what = f"features of anchor{'' if len(labels) == 1 else 's'} {', '.join(labels)}"
        return f"{what} are kept in {self.folder}: {quantity(sum(file.nbytes for file in self._all))}B"

    @property
    def _all(self) -> list[_File]:
        return [*self.features.values(), *self.found.values()]

    def exist(self) -> bool:
        """Whether they exist; if not, it is an error if there is no room for them or something else in the folder."""
        if (self.folder / _ABOUT).exists():
            return True
        folder = self.folder.absolute()
        place = next(place for place in (folder, *folder.parents) if place.exists())
        if place == folder and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(
                f"'{self.folder}' is not empty, and has no features; give a new folder as --cache-features"
            )
        free = shutil.disk_usage(place).free
        if free < sum(file.nbytes for file in self._all):
            raise InputError(
                f"{self}, but the disk has {quantity(free)}B left; give a folder on another disk, or leave "
                "--cache-features out"
            )
        return False

    def make(self, about: Mapping[str, object]) -> None:
        """Create them, or check that those that exist are of the same."""
        wanted = json.loads(json.dumps(about))  # as it is read back, with lists for tuples
        if self.exist():
            found = read_settings_file(self.folder / _ABOUT)
            if other := [name for name in wanted if found.get(name) != wanted[name]]:
                raise InputError(f"features in '{self.folder}' are of other {' and '.join(other)}; {_OTHERWISE}")
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            for file in self._all:
                file.make()
            write_text(self.folder / _ABOUT, json.dumps(wanted, indent=2) + "\n")


class FeatureCache:
    """The final features of frozen anchors for the training images, which all ranks read and write."""

    def __init__(self, files: CacheFiles):
        self._features = {end: file.open() for end, file in files.features.items()}
        self._found = {end: file.open() for end, file in files.found.items()}

    def __call__(self, numbers: torch.Tensor, end: int, compute: Callable[[int], torch.Tensor]) -> torch.Tensor:
        """The features `[B, ...]` that an anchor gives for the images with these numbers, `[B]`.

        What is missing is computed for the whole batch, since in a smaller one it could differ by a rounding; and by
        all anchors, since the next epoch may draw another one for these images.

        Args:
            numbers: Numbers of images in their split.
            end: The number of the anchor.
            compute: Gives the features of the batch by any anchor.
        """
        rows = numbers.cpu()
        for other, found in self._found.items():
            if not found[rows].all():
                self._features[other][rows] = compute(other).cpu()
                found[rows] = 1  # last, so that a process may be killed at any time
        return self._features[end][rows].to(numbers.device)


def plan_cache(session: Session, bodies: Mapping[int, nn.Module]) -> CacheFiles:
    """The files for the features of the training images.

    Args:
        bodies: The anchors that give the features, up to their heads, by number.
    """
    place, model, loader = session.recipe.stitch.cache_features, session.model, session.loaders.train
    assert place is not None, "the caller checks it"
    assert isinstance(model, SNNet), "others have no anchors"
    assert loader is not None, "training opens the training split"
    folder, labels, count = Path(place), [*model.views], len(loader.dataset)
    image = torch.zeros(1, *session.input_size, device=session.world.device, dtype=weights_dtype(session.recipe))
    features, found = {}, {}
    with torch.no_grad(), session.autocast(), uncompiled(model):
        for end, body in bodies.items():
            with evaluating(body):
                one = body(image)
            features[end] = _File(folder / f"{labels[end]}.features", (count, *one.shape[1:]), one.dtype)
            found[end] = _File(folder / f"{labels[end]}.found", (count,), torch.uint8)
    return CacheFiles(folder, features, found)


def open_cache(session: Session, bodies: Mapping[int, nn.Module]) -> FeatureCache | None:
    """The cache that the settings ask for, if they do, created if necessary; arguments are as for `plan_cache`."""
    if session.recipe.stitch.cache_features is None:
        return None
    files = plan_cache(session, bodies)
    if len({*gather_objects(socket.gethostname())}) > 1:
        # A shared disk gives its pages to another machine in any order, so features could still be zeros there.
        raise InputError("--cache-features is for the ranks of one machine; leave it out")
    _logger.info("%s", files)
    from_primary(session.world, lambda: files.make(_about(session, files, bodies)))
    return FeatureCache(files)


def _about(session: Session, files: CacheFiles, bodies: Mapping[int, nn.Module]) -> dict[str, object]:
    """What the features follow from, in words that a message may quote."""
    data, optim, images = session.recipe.data, session.recipe.optim, getattr(session.loaders.train, "dataset", None)
    assert isinstance(images, CheckedImages), "streams are refused, and so are augmentations"
    names = hashlib.sha256("\n".join(images.names()).encode()).hexdigest()
    sizes = {"input_size": session.input_size, "mode": data.input_img_mode}
    return {
        "anchors": {file.path.stem: _digest(bodies[end]) for end, file in files.features.items()},
        "images": {"dataset": data.dataset, "split": data.train_split, "count": len(images), "names": names},
        "preparation": saved_data_config(session.model) | sizes,
        "precision": [*(str(file.dtype) for file in files.features.values()), optim.amp_dtype if optim.amp else None],
    }


def _digest(body: nn.Module) -> str:
    """A hash of the weights of an anchor."""
    digest = hashlib.sha256()
    for name, value in [*body.named_parameters(), *body.named_buffers()]:
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
