"""Imported by each Python process that a test in a mode starts; see `tests.modes`."""

import os

from tests.modes import patches

if os.environ.get("NUDGE_TEST_MODE", "sync") != "sync":
    patches.enter(os.environ["NUDGE_TEST_MODE"])
