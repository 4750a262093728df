"""Image folders: their splits, classes and files.

A class is a folder directly within a split that has an image in it, at any depth; whatever lies deeper belongs to it.
Hidden files and folders, other files, images beside the class folders, and folders without images are ignored.
"""

from __future__ import annotations

import inspect
import os
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from PIL import Image, ImageFile
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.utils.misc import natural_key

from stitchkit.classes import in_order, same_text
from stitchkit.data.class_map import read_class_map
from stitchkit.data.labelled_images import LabelledImages, class_names
from stitchkit.data.split_rule import is_split, names_of, plain_split
from stitchkit.display import counted, listed
from stitchkit.errors import InputError

# Pillow only recognises the first, and hands the others to a program that interprets them.
_NOT_DECODED = ("MPEG", "EPS")


@cache
def image_suffixes() -> frozenset[str]:
    """The suffixes of the files that Pillow decodes, in lower case."""
    suffixes = Image.registered_extensions()  # this also loads the formats
    kinds = {name: kind for name, (kind, _) in Image.OPEN.items() if name not in _NOT_DECODED}
    stubs = {
        name for name, kind in kinds.items() if inspect.isclass(kind) and issubclass(kind, ImageFile.StubImageFile)
    }
    decoded = kinds.keys() - stubs | {"MPO"}  # photographs of several views, which the opener of JPEG recognises
    return frozenset(suffix for suffix, name in suffixes.items() if name in decoded)


def find_split(root: Path, split: str) -> Path:
    """The folder of a split, by `split_rule`; timm's `train[:10%]` is `train` here."""
    name = split.split("[")[0]
    for folder in names_of(name):
        if is_split(root / folder):
            return root / folder
    others = [root / folder for folder in (*names_of("train"), *names_of("validation")) if is_split(root / folder)]
    if (plain := plain_split(root, name)) and others:
        raise InputError(f"'{plain}' has no class folders, but '{others[0]}' has; give all splits some, or none")
    raise InputError(
        f"data folder '{root}' has no {name}/ folder with class folders in it; it needs train/ and validation/ "
        "(or val/, or test/), with one folder per class in each"
    )


class FolderReader(ReaderImageFolder):  # type: ignore[misc] # timm has no types
    """The images of a split's folder, with their classes numbered in the order of `stitchkit.classes`.

    A class map numbers them in another way; `notes` count the images of others. By default the suffixes are Pillow's.
    """

    def __init__(self, folder: Path, class_map: str = "", suffixes: frozenset[str] = frozenset()):
        self.root = str(folder)
        self.ignored: Counter[str] = Counter()
        self.nested = ""
        labelled: list[tuple[str, str]] = []
        spellings: dict[str, str] = {}
        for path, parent in _images(self.root, suffixes, self.ignored):
            # Strings instead of `Path`, which is slow for the millions of images of some data sets.
            name, _, deeper = parent[len(self.root) + 1 :].partition(os.sep)
            if not name:
                self.ignored[f"{_suffix(path)} beside the class folders"] += 1
            else:
                label = same_text(name)
                if (other := spellings.setdefault(label, name)) != name:
                    raise InputError(
                        f"'{folder}' has two class folders that look alike, {other!a} and {name!a}: one name is in "
                        "Unicode's form NFC, and one in NFD, as macOS writes them; merge the folders"
                    )
                labelled.append((path, label))
                if deeper and not self.nested:
                    self.nested = os.path.join(name, deeper)
        # The path decides between names that are equal in natural order, whatever the order on the disk.
        labelled.sort(key=lambda pair: (natural_key(pair[0]), pair[0]))
        names = in_order({name for _, name in labelled})
        self.class_to_idx: dict[str, int] = {name: number for number, name in enumerate(names)}
        if class_map:
            numbers = read_class_map(class_map, self.root)
            self.class_to_idx = {same_text(str(name)): number for name, number in numbers.items()}
            if missing := in_order(self.class_to_idx.keys() - set(names)):
                raise InputError(
                    f"class map '{class_map}' names classes without images in '{folder}': {listed(missing)}; add "
                    "images of them there, or correct or remove these names"
                )
        self.samples = [(path, self.class_to_idx[name]) for path, name in labelled if name in self.class_to_idx]
        self._unmapped = [name for name in names if name not in self.class_to_idx]
        self._num_unmapped = len(labelled) - len(self.samples)
        if not self.samples:
            ends = ", ".join(sorted(suffixes)) or ".jpg, .png, .webp or another suffix of Pillow's"
            raise InputError(f"'{folder}' has no images in class folders; files must end with {ends}")

    @property
    def notes(self) -> str:
        """Images and files that are not used, and a folder within a class, in words; empty if there are none."""
        notes = _in_words(self.ignored)
        if self._unmapped:
            notes = (
                f"; {counted(self._num_unmapped, 'image')} skipped, in folders missing from the class map "
                f"({listed(self._unmapped)}){notes}"
            )
        if self.nested:
            notes += f"; images in folders within a class, such as {self.nested!r}, belong to that class"
        return notes


def visible_files(folder: str, ignored: Counter[str]) -> Iterator[tuple[str, str]]:
    """Files that are not hidden, with their folders; links are followed, but only once to each folder of a class.

    macOS's hidden copies, `._x.jpg`, are counted. Pipes and devices, which would block readers, are refused.
    """
    waiting: list[tuple[str, set[tuple[int, int]]]] = [(folder, set())]
    for parent, seen in waiting:  # it grows meanwhile
        status = os.stat(parent)
        own = (status.st_dev, status.st_ino)
        if own in seen:
            continue
        seen.add(own)
        inner = []
        with os.scandir(parent) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    if entry.name.startswith("._"):
                        ignored["._ of macOS"] += 1
                    continue
                if entry.is_dir():
                    inner.append(entry.path)
                elif not entry.is_file() and os.path.exists(entry.path):  # a broken link is an unreadable image
                    raise InputError(f"image '{entry.path}' cannot be read (a pipe or device, not a file); remove it")
                else:
                    yield entry.path, parent
        # Sorted, so that the name of a folder with several links does not depend on the disk.
        waiting += [(path, {own} if parent == folder else seen) for path in sorted(inner)]


def _images(folder: str, suffixes: frozenset[str], ignored: Counter[str]) -> Iterator[tuple[str, str]]:
    """The visible files of these suffixes, or of Pillow's if there are none, with their folders; others are counted."""
    for path, parent in visible_files(folder, ignored):
        if (suffix := _suffix(path)) in (suffixes or image_suffixes()):
            yield path, parent
        else:
            ignored[suffix or "without suffix"] += 1


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _in_words(ignored: Counter[str]) -> str:
    return f"; {counted(ignored.total(), 'file')} ignored ({', '.join(sorted(ignored))})" if ignored else ""


def image_files(folder: str | Path, suffixes: frozenset[str] = frozenset()) -> tuple[list[str], str]:
    """The image files in a folder at any depth, and a note on ignored files; `suffixes` as in `FolderReader`."""
    if not os.path.isdir(folder):
        fault = "is not a folder" if os.path.exists(folder) else "does not exist"
        raise InputError(f"'{folder}' {fault}; give a folder of images")
    ignored: Counter[str] = Counter()
    images = sorted(path for path, _ in _images(str(folder), suffixes, ignored))
    if not images:
        ends = ", ".join(sorted(suffixes)) or ".jpg, .png or another image suffix"
        raise InputError(f"folder '{folder}' has no images; files must end with {ends}")
    return images, _in_words(ignored)


def open_images(folder: Path, *, class_map: str = "", suffixes: frozenset[str] = frozenset()) -> LabelledImages:
    """The images of a split's folder; `class_map` and `suffixes` are those of `FolderReader`."""
    reader = FolderReader(folder, class_map, suffixes)
    return LabelledImages(reader, class_names(reader), folder.name)
