"""Names of models on the Hub: a person may type one, but a file may name only what is in this machine's cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import StrictStr

from stitchkit.settings.schema import checked_by

_SCHEMES = ("hf-hub:", "hf_hub:")


def cached_folder(name: str) -> Path | None:
    """The folder in the cache of the Hub with the description of a model `hf-hub:REPOSITORY@REVISION`, if it is there.

    No server is asked.
    """
    if not name.startswith(_SCHEMES):
        return None
    from huggingface_hub import constants, try_to_load_from_cache  # half a second, which most files do not need
    from huggingface_hub.errors import HFValidationError

    repository, _, revision = name.partition(":")[2].partition("@")
    try:
        file = try_to_load_from_cache(
            repository, "config.json", cache_dir=constants.HF_HUB_CACHE, revision=revision or None
        )
    except HFValidationError:
        return None
    return Path(file).parent if isinstance(file, str) else None


def hub_fault(name: str) -> str | None:
    """Why a file may not name a model: it would have to be asked of a server."""
    if not name.startswith(_SCHEMES) or cached_folder(name) is not None:
        return None
    place = name.partition(":")[2]
    return (
        "names a model on the Hub that is not in this machine's cache, and no file may ask a server; run hf download "
        f"{place.partition('@')[0]}, or type the name as --model or --anchors"
    )


ModelName = Annotated[StrictStr, checked_by(hub_fault)]
"""The name of a model in a file."""
