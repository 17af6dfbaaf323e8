"""Processes held at a step, so that a test can kill one there; and training that takes its time.

A file ``hold-STEP`` in the folder that ``CRASHES_HOLD`` names holds whoever comes to that step;
``at-STEP`` then says that somebody is there. Removing the first lets them go on.

While there is a file ``hurry``, training is short, and shortest at the sites that it names.
"""

import os
import time
from pathlib import Path

VARIABLE = "CRASHES_HOLD"
HURRY = "hurry"
SECONDS, SHORT_SECONDS, SHORTEST_SECONDS = 60.0, 5.0, 1.0
"""Of training. What idles leaves the machine to what is tested: every message is a new process."""


def come_to(step: str) -> None:
    folder = Path(os.environ[VARIABLE])
    hold, there = folder / f"hold-{step}", folder / f"at-{step}"
    if not hold.exists():
        return
    there.write_text(str(os.getpid()), encoding="utf-8")
    while hold.exists():
        time.sleep(0.05)
    there.unlink(missing_ok=True)


def take_time(site: str) -> None:
    begun = time.monotonic()
    while time.monotonic() - begun < _seconds(site):
        time.sleep(0.25)


def _seconds(site: str) -> float:
    try:
        hurried = (Path(os.environ[VARIABLE]) / HURRY).read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return SECONDS
    return SHORTEST_SECONDS if site in hurried else SHORT_SECONDS
