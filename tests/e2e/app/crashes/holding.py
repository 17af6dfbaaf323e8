"""Processes held at a step, so that a test can kill one there.

A file ``hold-STEP`` in the folder that ``CRASHES_HOLD`` names holds whoever comes to that step;
``at-STEP`` then says that somebody is there. Removing the first lets them go on.
"""

import os
import time
from pathlib import Path

VARIABLE = "CRASHES_HOLD"


def come_to(step: str) -> None:
    folder = Path(os.environ[VARIABLE])
    hold, there = folder / f"hold-{step}", folder / f"at-{step}"
    if not hold.exists():
        return
    there.write_text(str(os.getpid()), encoding="utf-8")
    while hold.exists():
        time.sleep(0.05)
    there.unlink(missing_ok=True)
