"""The stitch configurations that come with stitchkit, by short name."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from stitchkit.errors import InputError

CONFIGS = Path(__file__).parent.parent / "configs"
"""Their folder, installed as data of the package; in the repository, a link to the folder at its top."""


def short_names() -> dict[str, Path]:
    """The files of all configurations that come with stitchkit, by name."""
    return {path.stem: path for folder in (CONFIGS, CONFIGS / "zoo") for path in sorted(folder.glob("*.json"))}


def config_file(given: str | Path) -> Path:
    """The file of a stitch configuration, given by its path or by its short name, such as `deit_ti_s_b`.

    A file that exists wins over a name; whatever has a folder or a suffix is a path.
    """
    path, name = Path(given), str(given)
    if path.is_file() or path.suffix or path.name != name:
        return path
    if (found := short_names().get(name)) is None:
        raise unknown_name(f"unknown stitch configuration '{name}'", name)
    return found


def unknown_name(what: str, name: str) -> InputError:
    """The error `what` for a name, with the nearest of our configurations and of timm's and torchvision's models."""
    import torchvision  # slow to import, as timm is, and only needed here
    from timm.models import list_models

    names = short_names()
    others = [f"torchvision/{other}" for other in torchvision.models.list_models(torchvision.models)]
    stem = name.partition(".")[0]
    longer = [f"'{other}'" for other in names if other != stem and other.startswith(stem)]
    close = get_close_matches(stem, [*names, *list_models(), *others], n=1)
    if longer:
        hint = f"the stitch configurations that begin so are {', '.join(longer)}"
    elif not close:
        hint = f"no name of ours, such as {next(iter(names))}, or of timm's models is close; check the spelling"
    elif close[0] in names:
        hint = f"did you mean the stitch configuration '{close[0]}' (--stitch_config {close[0]})?"
    else:
        kind = "the model" if close[0] in others else "timm's model"
        hint = f"did you mean {kind} '{close[0]}' (--anchors {close[0]},...)?"
    return InputError(f"{what}; {hint}")
