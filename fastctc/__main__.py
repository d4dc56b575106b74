"""``python -m fastctc``: the same as ``fastctc``."""

import sys

from fastctc.cli import main

sys.exit(main())
