"""Images without labels: those of a folder, or those that a `.txt` list names.

If a folder has no splits, one in 20 images, at most 5,000, is held out for validation. The sorted names alone decide
which, so all ranks and resumed runs agree.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from timm.data.readers.reader_image_folder import ReaderImageFolder

from stitchkit.data.folders import image_files, image_suffixes
from stitchkit.data.labelled_images import Images, LabelledImages
from stitchkit.data.source import Source, is_list
from stitchkit.data.split_rule import names_of, plain_split, published_part
from stitchkit.display import counted, listed
from stitchkit.errors import InputError

_EVERY, _MOST = 20, 5_000
_TRAINED, _JUDGED = (
    re.compile(f"({'|'.join(names)})(set)?(?![a-z])", re.IGNORECASE)
    for names in (names_of("train"), [*names_of("validation"), "testing"])
)
"""What names of splits begin with, as `val2017` or `testset`."""


class UnlabelledReader(ReaderImageFolder):  # type: ignore[misc] # timm has no types
    """Image files, whose labels are None; the log has `notes` on them."""

    def __init__(self, root: str, paths: Sequence[str], notes: str):
        self.root, self.notes = root, notes
        self.samples = [(path, None) for path in paths]
        self.class_to_idx: dict[str, int] = {}


def has_labels(images: Images) -> bool:
    """Whether an open split has labels."""
    return not isinstance(getattr(images, "reader", None), UnlabelledReader)


def open_unlabelled(source: Source, split: str, suffixes: frozenset[str] = frozenset()) -> LabelledImages:
    """A split of images without labels: a folder of the data set, or the part that is trained on or held out."""
    images = Path(source.root or "")
    if source.class_map:
        raise InputError(f"class map '{source.class_map}' numbers class folders, but '{images}' has none; omit it")
    if not is_list(images) and (folder := _find_split(images, split)) is not None:
        paths, notes = image_files(folder, suffixes)
        unused = _unused(images) if published_part(split) == "train" else ""
        return _opened(folder, paths, notes + unused, folder.name)
    root = images.parent if is_list(images) else images
    paths, notes = _read_list(images, suffixes) if is_list(images) else image_files(images, suffixes)
    if not is_list(images):
        _check_no_other_splits(images, paths)
    if len(paths) < 2:
        raise InputError(f"'{images}' has 1 image; one in {_EVERY} is held out for validation, so give at least 2")
    trained, held_out = hold_out(paths)
    if published_part(split) == "train":
        return _opened(root, trained, f", and {len(held_out):,} held out{notes}", "train")
    return _opened(root, held_out, f", held out of {len(paths):,}{notes}", "validation")


def _opened(folder: Path, paths: Sequence[str], notes: str, name: str) -> LabelledImages:
    return LabelledImages(UnlabelledReader(str(folder), paths, notes), (), name)


def _find_split(root: Path, split: str) -> Path | None:
    """The folder of a split without class folders; None if images must be held out of the training images."""
    if (judged := plain_split(root, "validation")) is None:
        return None
    if (folder := plain_split(root, split)) is None:
        is_trained = published_part(split) == "train"
        advice = f"add {split}/, or rename {judged.name}/" if is_trained else "choose another split"
        raise InputError(f"data folder '{root}' has {judged.name}/ and no {split}/; {advice}")
    return folder


def _check_no_other_splits(root: Path, images: Sequence[str]) -> None:
    """Refuse a folder with inner folders, at any depth, that look like misnamed splits: all would be trained on."""
    inner = {Path(folder) for folder in {os.path.dirname(image) for image in images}}
    parents = {root, *(parent for folder in inner for parent in folder.parents if root in parent.parents)}
    for folders in ([*filter(Path.is_dir, parent.iterdir())] for parent in sorted(parents)):
        trained = sorted(folder for folder in folders if _TRAINED.match(folder.name))
        judged = sorted(folder for folder in folders if _JUDGED.match(folder.name))
        if trained and judged:
            raise InputError(
                f"'{trained[0]}' and '{judged[0].name}' look like splits, which must be named train/ and validation/; "
                "rename them and give the folder that holds them, or rename one that is no split"
            )


def _unused(root: Path) -> str:
    """Images and folders beside splits without class folders, in words."""
    splits = {folder.name for name in ("train", "validation", "test") if (folder := plain_split(root, name))}
    names = [
        f"{path.name}/" if path.is_dir() else path.name
        for path in sorted(root.iterdir())
        if not path.name.startswith(".")
        and path.name not in splits
        and (path.is_dir() or path.suffix.lower() in image_suffixes())
    ]
    return f"; not used: {listed(names)}" if names else ""


def hold_out(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The sorted names to train on, and those held out: evenly spaced, the first of every 20, or of more for 5,000."""
    every = max(_EVERY, -(-len(names) // _MOST))
    return [name for number, name in enumerate(names) if number % every], [*names[::every]]


def _read_list(file: Path, suffixes: frozenset[str]) -> tuple[list[str], str]:
    """The files that the lines of a list name, sorted, once each, relative to the list; and a note on the rest."""
    try:
        lines = [line for line in file.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except OSError as error:
        raise InputError(f"list '{file}' cannot be read: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"list '{file}' is not text in UTF-8; write the path of one image on each line") from error
    names = {str(Path(line)): line for line in lines if not suffixes or line.lower().endswith(tuple(suffixes))}
    if not names:
        raise InputError(f"list '{file}' names no image; write the path of one on each line, relative to the list")
    paths = {name: os.path.join(file.parent, name) for name in sorted(names)}
    if missing := [line for name, line in names.items() if not os.path.isfile(paths[name])]:
        raise InputError(
            f"list '{file}' names {counted(len(missing), 'file')} that cannot be found, such as {missing[0]!r}; write "
            "the path of one image on each line and nothing else, relative to the list"
        )
    ignored, why = len(lines) - len(names), "repeated or of another suffix" if suffixes else "repeated"
    return [*paths.values()], f"; {counted(ignored, 'line')} ignored ({why})" if ignored else ""
