"""Where the process begins: a Ctrl-C ends it quietly even while everything else is still being imported."""

import os


def main() -> None:
    """The console script."""
    try:
        from agenthelm.cli.main import main as run

        run()
    except KeyboardInterrupt:
        os._exit(130)  # nothing has begun that would have to be ended


if __name__ == "__main__":
    main()
