"""Names of what comes with stitchkit and its libraries: stitch configurations, and models."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from stitchkit.errors import InputError

CONFIGS = Path(__file__).parent.parent / "configs"
"""The folder of stitch configurations, data of the package; in the repository, a link to the folder at its top."""
TORCHVISION = "torchvision/"
"""Before the names of torchvision's classifiers, where timm's names stand."""


def short_names() -> dict[str, Path]:
    """The files of all configurations that come with stitchkit, by name."""
    return {path.stem: path for folder in (CONFIGS, CONFIGS / "zoo") for path in sorted(folder.glob("*.json"))}


def config_file(text: str | Path) -> Path:
    """The file of a stitch configuration, given by its path or by its short name, such as `deit_ti_s_b`.

    A file that exists wins over a name; whatever has a folder or a suffix is a path.
    """
    path, name, known = Path(text), str(text), short_names()
    if path.is_file() or path.suffix or path.name != name:
        return path
    if name in known:
        return known[name]
    what = f"unknown stitch configuration '{name}'"
    if longer := [f"'{other}'" for other in known if other.startswith(name)]:
        raise InputError(f"{what}; the stitch configurations that begin so are {', '.join(longer)}")
    raise unknown_name(what, name, flag=" (--anchors {},...)")


def torchvision_names() -> list[str]:
    """Names of torchvision's classifiers; its models for other tasks are left out."""
    import torchvision  # slow to import, and only needed for its names

    names: list[str] = torchvision.models.list_models(torchvision.models)
    return names


def unknown_name(what: str, name: str, *, flag: str = "") -> InputError:
    """The error `what` for a name, with the nearest of our configurations and of timm's and torchvision's models.

    Where no model is asked for, `flag` says how to give one, `{}`.
    """
    from timm.models import list_models  # as slow

    names = short_names()
    models = [*list_models(), *(TORCHVISION + other for other in torchvision_names())]
    close = get_close_matches(name.partition(".")[0], [*names, *models], n=1)
    if not close:
        hint = f"no name of ours, such as {next(iter(names))}, or of timm's models is close; check the spelling"
    elif close[0] in names:
        hint = f"did you mean the stitch configuration '{close[0]}' (--stitch_config {close[0]})?"
    else:
        hint = f"did you mean {'the model ' if flag else ''}'{close[0]}'{flag.format(close[0])}?"
    return InputError(f"{what}; {hint}")
