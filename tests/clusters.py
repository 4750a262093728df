"""Clusters for sweeps: Slurm's commands played by scripts, and polls at which a test acts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from stitchkit.assembly.sweep import cluster


def between_polls(monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], object]) -> None:
    """Do something at each poll of a cluster, instead of waiting."""
    rest = iter(steps)
    monkeypatch.setattr(cluster, "time", SimpleNamespace(sleep=lambda _: next(rest)(), strftime=lambda _: "12:00:00"))


class ScriptedSlurm:
    """Scripts in place of sbatch, squeue and srun: what is submitted gets the numbers 12, 13 and so on.

    Args:
        folder: A new folder for the scripts and their files.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.sent, self._queue, commands = folder / "sent", folder / "queue", folder / "bin"
        commands.mkdir(parents=True)
        self.queue()
        count = folder / "count"
        count.write_text("11")
        scripts = {
            "sbatch": f"n=$(($(cat {count}) + 1)); echo $n > {count}; cp $1 {self.sent}; echo Submitted batch job $n",
            "squeue": f"cat {self._queue}",
            "srun": "true",
        }
        for name, script in scripts.items():
            (commands / name).write_text(f"#!/bin/sh\n{script}\n")
            (commands / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")

    def queue(self, **states: str) -> None:
        """Put jobs into the queue: codes of states by numbers, such as `n12_0="R"`."""
        self._queue.write_text("".join(f"{name[1:]} {code}\n" for name, code in states.items()))

    def script(self) -> str:
        """The script that sbatch was given last, which it then forgets; empty if there was none."""
        found = self.sent.read_text() if self.sent.exists() else ""
        self.sent.unlink(missing_ok=True)
        return found
