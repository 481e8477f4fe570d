"""Run a command against a stand-in for the Hugging Face Hub: python fake_hub.py ROOT [options] -- COMMAND..."""

import sys

from hub_server.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
