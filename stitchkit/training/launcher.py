"""Start one process per rank on this machine: torchrun, but with a clear message if the input is bad.

`distributed_train.sh` calls this. torchrun itself answers any failure of a rank with its own report and status 1; here
the status is that of the rank, so bad input ends with one line that says what was wrong, and status 2.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from stitchkit.restarts import LIMIT_IS_NEAR

_STOPPED = tuple(128 + number for number in (signal.SIGINT, signal.SIGTERM, LIMIT_IS_NEAR))


def launch(arguments: Sequence[str]) -> int:
    """Run torchrun with these arguments.

    Returns:
        0, the exit status of the rank that failed first, or 130, 143 or 138 after SIGINT, SIGTERM or SIGUSR1, which the
        ranks get too.
    """
    # torchrun logs each failure before it raises it; here it is reported once, below.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    signal.signal(LIMIT_IS_NEAR, _hand_to_ranks)  # torchrun itself does so with other signals
    try:
        run(parse_args(list(arguments)))  # type: ignore[no-untyped-call]
    except KeyboardInterrupt:
        return 130
    except SignalException as stop:
        return 128 + int(stop.sigval)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode in _STOPPED:  # the rank has reported it
            return failure.exitcode
        text: object = error
        if failure.exitcode == 2:  # bad input: the message of the rank, without the name of the exception
            content = failure.error_file_data["message"]
            message = content["message"] if isinstance(content, dict) else content
            text = "stitchkit: error: " + str(message).removeprefix("InputError: ")
        print(text, file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 1
    return 0


def _hand_to_ranks(number: int, _: object) -> NoReturn:
    raise SignalException("stopped by a signal", signal.Signals(number))


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:]))
