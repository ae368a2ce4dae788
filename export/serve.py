"""Serve ONNX files over HTTP: the same as ``sdzoo serve``."""

import sys

from sdzoo.cli import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
