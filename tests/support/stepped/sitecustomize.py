"""The clock of `tests.support.clock`, which Python imports at start-up."""

import os
import time
from pathlib import Path

_time, _step = time.time, Path(os.environ["CLOCK_STEP"])
time.time = lambda: _time() + float(_step.read_text())
