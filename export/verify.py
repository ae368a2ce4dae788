"""Compare an ONNX file with its PyTorch network on real images: the same as ``sdzoo verify``."""

import sys

from sdzoo.cli import main

if __name__ == "__main__":
    main(["verify", *sys.argv[1:]])
