"""A steward's command or a client that is killed: what it said is on disk, and nothing by half."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

from flwr_afuic.erasure.inbox import CANCELLING, SiteInbox

WRITER = """
import sys
from flwr_afuic.erasure.inbox import SiteInbox
inbox = SiteInbox(sys.argv[1])
held = [f"p{n}" for n in range(200)]
inbox.note_held(held)
print("ready", flush=True)
for n in range(200):
    notice = inbox.file(scope="samples", sample_ids=[held[n], held[n - 1]], held=held)
    print("filed", notice.request_id, flush=True)
    inbox.cancel(notice.request_id)
    print("cancelling", notice.request_id, flush=True)
"""


def test_what_was_said_outlives_a_kill(tmp_path):
    path = tmp_path / "inbox.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        try:
            said = []
            thread = threading.Thread(target=lambda: said.extend(writer.stdout))
            thread.start()
            deadline = time.monotonic() + 60
            while len(said) < 12 and time.monotonic() < deadline and writer.poll() is None:
                time.sleep(0.005)
            os.kill(writer.pid, signal.SIGKILL)
            thread.join()
        finally:
            writer.kill()
    rows = [line.split() for line in said if line.endswith("\n")]
    filed = [row[1] for row in rows if row[0] == "filed"]
    cancelled = {row[1] for row in rows if row[0] == "cancelling"}
    assert len(filed) >= 5
    inbox = SiteInbox(path)
    status = {r.notice.request_id: r.status for r in inbox.requests()}
    assert set(filed) <= set(status)
    assert len(status) <= len(filed) + 1  # at most one that it did not come to say
    assert all(status[request] == CANCELLING for request in cancelled)
    assert len(inbox.held()) == 200
    assert all(len(inbox.forget_set(request)) == 2 for request in status)
    inbox.file(scope="samples", sample_ids=["p7"], held=["p7"])  # and it goes on
