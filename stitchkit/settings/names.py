"""Names of stitch configurations, of models and of anchors: our own, of the libraries, and on the Hub.

A person may type the name of a model on the Hub. A file may name only what is in this machine's cache: the description
of a model, and its weights where they are wanted.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import StrictStr

from stitchkit.errors import InputError
from stitchkit.settings.schema import checked_by

CONFIGS = Path(__file__).parent.parent / "configs"
"""The folder of stitch configurations, data of the package; in the repository, a link to the folder at its top."""
TORCHVISION = "torchvision/"
"""Before the names of torchvision's classifiers, where timm's names stand."""
_SCHEMES = ("hf-hub:", "hf_hub:")
_WEIGHTS = (".safetensors", ".bin", ".pth", ".npz")


def short_names() -> dict[str, Path]:
    """The files of all configurations that come with stitchkit, by name."""
    return {path.stem: path for folder in (CONFIGS, CONFIGS / "zoo") for path in sorted(folder.glob("*.json"))}


def config_file(text: str | Path) -> Path:
    """The file of a stitch configuration, given by its path or by its short name, such as `deit_ti_s_b`.

    A file that exists wins over a name; whatever has a folder or a suffix is a path.
    """
    path, name = Path(text), str(text)
    if path.is_file() or path.suffix or path.name != name:
        return path
    if name in (known := short_names()):
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
        hint = f"did you mean the stitch configuration '{close[0]}' (--stitch-config {close[0]})?"
    else:
        hint = f"did you mean {'the model ' if flag else ''}'{close[0]}'{flag.format(close[0])}?"
    return InputError(f"{what}; {hint}")


def is_on_hub(name: str) -> bool:
    """Whether a name is that of a model on the Hub."""
    return name.startswith(_SCHEMES)


def cached_folder(name: str) -> Path | None:
    """The folder of a model `hf-hub:REPOSITORY@REVISION` in the cache of the Hub, if it is there; asks no server."""
    if not is_on_hub(name):
        return None
    from huggingface_hub import constants, try_to_load_from_cache  # half a second, which most files do not need
    from huggingface_hub.errors import HFValidationError

    repository, _, revision = name.partition(":")[2].partition("@")
    cache = constants.HF_HUB_CACHE
    try:
        file = try_to_load_from_cache(repository, "config.json", cache_dir=cache, revision=revision or None)
    except HFValidationError:
        return None
    return Path(file).parent if isinstance(file, str) else None


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a file of weights, as those of the Hub do."""
    return any(file.suffix in _WEIGHTS and file.is_file() for file in folder.iterdir())


def hub_fault(name: str, *, weights: bool = False) -> str | None:
    """Why a file may not name a model, perhaps with its `weights`: a server would have to be asked."""
    if not is_on_hub(name) or ((folder := cached_folder(name)) and (not weights or has_weights(folder))):
        return None
    repository, at, revision = name.partition(":")[2].partition("@")
    return (
        f"names a model on the Hub {'whose weights are' if folder else 'that is'} not in this machine's cache, and no "
        f"file may ask a server; run hf download {repository}{at and f' --revision {revision}'}, or type the name as "
        "--model or --anchors"
    )


ModelName = Annotated[StrictStr, checked_by(hub_fault)]
"""The name of a model in a file."""


_SUFFIXES = (".pth", ".pt", ".tar", ".safetensors", ".bin")
"""Of checkpoints; no tag of timm ends like them."""
_OF_RUNS = ("last", "previous", "model_best", "checkpoint-")
"""What the files of a training run are called, so that only its folder tells them apart."""


class AnchorText(NamedTuple):
    """timm's name of an anchor, empty if its checkpoint says it, and the checkpoint, empty for timm's weights."""

    name: str
    file: str

    @property
    def label(self) -> str:
        """Its name in stitches: of the model up to its tag; of a file, or of the folder of the run that wrote it."""
        path, name = Path(self.file), self.name.removeprefix("hf-hub:").split(".")[0]
        if self.file:
            name = path.absolute().parent.name if path.name.startswith(_OF_RUNS) else path.name.split(".")[0]
        return re.sub(r"[^A-Za-z0-9_#-]", "_", name)  # the characters of labels


def read_anchor(text: str) -> AnchorText:
    """The parts of a text."""
    name, equals, file = text.partition("=")
    if equals:
        return AnchorText(name, file)
    return AnchorText("", text) if text.endswith(_SUFFIXES) or Path(text).is_file() else AnchorText(text, "")
