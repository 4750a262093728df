"""The commands that pages show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator


def commands(text: str) -> Iterator[list[str]]:
    """The words of each shell command in a page, or a part of it, without comments."""
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words
