"""Class maps: files that number classes, for all readers of images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from timm.data.readers.class_map import load_class_map

from stitchkit.classes import same_text
from stitchkit.errors import InputError, one_line
from stitchkit.settings.fields import MOST_CLASSES


def read_class_map(file: str, folder: str = "") -> dict[str, int]:
    """The numbers of classes in a text file with a class name in each line, or in timm's pickled dictionary.

    A byte-order mark and blank lines are ignored. As in timm, a file that does not exist may lie in `folder`.
    """
    path = Path(file) if Path(file).exists() else Path(folder, file)
    if not path.is_file():
        raise InputError(f"class map '{file}' {'is not a file' if path.exists() else 'does not exist'}; check the path")
    try:
        numbers = _read_lines(path) if path.suffix.lower() == ".txt" else load_class_map(str(path))
    except InputError:
        raise
    except Exception as error:  # assertions of timm, undecodable text, and anything that a damaged pickle raises
        raise InputError(
            f"class map '{file}' cannot be read ({one_line(error)}); give a .txt file with a class name in each line"
        ) from error
    if not numbers:
        raise InputError(f"class map '{file}' names no class; write a class name in each line")
    # Keys that are numbers are for Hugging Face's and webdataset's labels.
    if wrong := [name for name, number in numbers.items() if type(name) not in (str, int) or type(number) is not int]:
        raise InputError(f"class map '{file}' gives {wrong[0]!r} no number; give one for each name")
    if len({same_text(str(name)) for name in numbers}) < len(numbers):
        raise InputError(f"class map '{file}' has a name twice, perhaps in two Unicode forms; remove one of the two")
    if min(numbers.values()) < 0:
        raise InputError(f"class map '{file}' has a negative number; classes are numbered from 0")
    if (most := max(numbers.values())) >= MOST_CLASSES:
        raise InputError(f"class map '{file}' has the number {most:,}; the largest allowed is {MOST_CLASSES - 1:,}")
    return numbers


def _read_lines(path: Path) -> dict[str, int]:
    names = [line for text in path.read_text(encoding="utf-8-sig").split("\n") if (line := text.strip())]
    if len({*names}) < len(names):
        raise InputError(f"class map '{path}' has a line twice; remove one of the two")
    return {name: number for number, name in enumerate(names)}


def names_at(numbers: Mapping[str, int]) -> tuple[str, ...]:
    """Each class's name at its number: `red+yellow` where two share it, and where none has it
    `unnamed/3`, as no folder can be called.
    """
    names: list[list[str]] = [[] for _ in range(max(numbers.values(), default=-1) + 1)]
    for name, number in numbers.items():
        names[number].append(str(name))
    return tuple("+".join(each) or f"unnamed/{number}" for number, each in enumerate(names))
