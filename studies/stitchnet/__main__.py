"""The experiments as a command: `python -m studies.stitchnet`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from stitchkit import cli
from stitchkit.errors import InputError
from stitchkit.parser import REPEAT, Command, add_shared, parser_of
from stitchnet.commands import add_output_flags
from stitchnet.compose import begun
from stitchnet.settings import ComposeSettings, add_flags, flag_of
from studies.stitchnet.experiments import EXPERIMENTS, study
from studies.stitchnet.tuning import TuningSettings


def _add_flags(command: argparse.ArgumentParser) -> None:
    about = "the experiment; writes DIR/EXPERIMENT.csv and a picture"
    command.add_argument("experiment", choices=tuple(EXPERIMENTS), help=about)
    add_shared(command, "--format")
    add_flags(command, TuningSettings, top=10)
    add_output_flags(command)


def _study(flags: argparse.Namespace) -> None:
    given = vars(flags)
    name, picture = given.pop("experiment"), f".{given.pop('format')}"
    if name != "finetune" and (own := sorted(given.keys() & {"head", "trains", "eval_every"})):
        raise InputError(f"{flag_of(own[0])} is only for the experiment finetune; remove it for {name}")
    kind = TuningSettings if name == "finetune" else ComposeSettings
    with begun(name, flags, kind, f"{name}.csv", name + picture) as (task, settings, journal):
        study(name, task, settings, journal, picture=picture)


_COMMAND = Command(
    _study,
    "experiments of the StitchNet paper: stitching images, accuracy over MACs, ensembles, fine-tuning",
    _add_flags,
    resumes=REPEAT,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an experiment; arguments and exit status are as in `stitchkit.cli.main`."""
    return cli.main(arguments, parser_of("python -m studies.stitchnet", _COMMAND))


if __name__ == "__main__":
    raise SystemExit(main())
