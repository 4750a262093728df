"""Start one process for each rank on this machine: torchrun, with a clear end when the input was bad.

`distributed_train.sh` calls this. torchrun itself answers any failure of a rank with its own report and status 1; here
the status is that of the rank, so bad input ends with the one line that the rank printed and status 2.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run


def launch(arguments: Sequence[str]) -> int:
    """Run torchrun with these arguments.

    Returns:
        The exit status of the rank that failed first, or 0.
    """
    try:
        run(parse_args(list(arguments)))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode != 2:
            print(error, file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 1
    return 0


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:]))
