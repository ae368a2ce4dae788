"""Publish weights on the Hub: the same as ``sdzoo push``."""

import sys

from sdzoo.cli import main

if __name__ == "__main__":
    main(["push", *sys.argv[1:]])
