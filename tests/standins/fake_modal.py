"""Run a command against a stand-in for Modal: python fake_modal.py [options] -- COMMAND..."""

import sys

from modal_server.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
