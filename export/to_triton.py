"""Put an ONNX file into a model repository of NVIDIA's Triton: the same as ``sdzoo triton``."""

import sys

from sdzoo.cli import main

if __name__ == "__main__":
    main(["triton", *sys.argv[1:]])
