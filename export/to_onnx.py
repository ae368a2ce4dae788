"""Fold a network and write it as a verified ONNX file: the same as ``sdzoo export``."""

import sys

from sdzoo.cli import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
