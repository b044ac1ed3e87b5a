"""Entry point of ``python -m tests.bench``, which compares flower-proxy with stock Flower."""

import sys

from tests.bench.bars import main

sys.exit(main())
