"""Write repositories for fake_hub.py: python make_hub_tree.py ROOT [--images N] [--light] [--only NAME]..."""

import sys

from hub_tree.command import main

if __name__ == "__main__":
    main(sys.argv[1:])
