"""`python -m amct_onnx` is the command `amct_onnx`."""

import sys

from amct_onnx.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
