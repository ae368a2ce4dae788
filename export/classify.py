"""Classify image files with an ONNX file: the same as ``sdzoo classify``."""

import sys

from sdzoo.cli import main

if __name__ == "__main__":
    main(["classify", *sys.argv[1:]])
