"""What the launcher of the ranks, such as torchrun, says in the environment; read without torch."""

from __future__ import annotations

import os


def restarts() -> int:
    """How often the launcher has restarted the ranks, as with torchrun's `--max-restarts`."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
