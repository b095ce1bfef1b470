"""`python -m llava_ref` is the same program as `llava-ref`."""

import sys

from .cli import main

sys.exit(main())
