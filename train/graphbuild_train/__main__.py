"""`graphbuild-train`, and `python -m graphbuild_train`, which `accelerate launch` starts."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Entry point. Ctrl-C or SIGTERM while modules are still being loaded ends at once: nothing has begun."""
    for stop in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(stop) is not signal.SIG_IGN:
            signal.signal(stop, lambda number, _: os._exit(128 + number))
    from graphbuild_train.cli_evaluate import main as commands

    commands()


if __name__ == "__main__":
    main()
