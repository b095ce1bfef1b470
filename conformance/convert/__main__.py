"""Run `cli` as `python -m llava_ref.conformance.convert`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
