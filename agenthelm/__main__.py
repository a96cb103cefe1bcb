"""``python -m agenthelm``: the command line of the very environment whose Python this is."""

from agenthelm.cli.__main__ import main

if __name__ == "__main__":
    main()
