"""Fetch weights or ONNX files from the Hub: the same as ``sdzoo pull``."""

import sys

from sdzoo.cli import main

if __name__ == "__main__":
    main(["pull", *sys.argv[1:]])
