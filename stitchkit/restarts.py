"""Who starts a run again: the launcher of its ranks, such as torchrun, or Slurm; without torch."""

from __future__ import annotations

import os
import signal
import subprocess

LIMIT_IS_NEAR = signal.SIGUSR1
"""The signal that `sbatch --signal=USR1@60` sends a minute before the time limit of a job."""


def restarts() -> int:
    """How often the launcher has restarted the ranks, as with torchrun's `--max-restarts`."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def requeue() -> str:
    """Ask Slurm to start this job again, and say in words whether it will."""
    if not (job := os.environ.get("SLURM_JOB_ID")):
        return "it is not a job of Slurm, which could start it again"
    try:
        subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        reason = "there is no scontrol on the PATH"
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.split()) or f"scontrol ended with status {error.returncode}"
    else:
        return f"Slurm starts job {job} again, and a command with --resume auto continues"
    return f"Slurm does not start job {job} again: {reason}"
