"""Names of models on the Hub: a person may type one, but a file may name only what is in this machine's cache.

A file gets what is there: the description of a model, and its weights where they are wanted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import StrictStr

from stitchkit.settings.schema import checked_by

_SCHEMES = ("hf-hub:", "hf_hub:")
_WEIGHTS = (".safetensors", ".bin", ".pth", ".npz")


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
