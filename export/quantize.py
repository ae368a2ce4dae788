"""Write a smaller ONNX file and measure what it costs: the same as ``sdzoo quantize``."""

import sys

from sdzoo.cli import main

if __name__ == "__main__":
    main(["quantize", *sys.argv[1:]])
