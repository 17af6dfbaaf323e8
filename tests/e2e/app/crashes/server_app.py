"""The server: held at an event before it is on disk, or right after."""

import logging
import os
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from crashes.holding import VARIABLE, come_to
from crashes.task import make_model
from flwr_afuic.federation.journal import Event
from flwr_afuic.strategies import AFUIC
from flwr_afuic.strategies.admission import AdmissionSettings
from flwr_afuic.strategies.gate import GateSettings
from flwr_afuic.unlearning.reference import DistillationSettings

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    torch.set_num_threads(1)
    handler = logging.FileHandler(Path(os.environ[VARIABLE]) / "server-app.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger("flwr").addHandler(handler)
    happened: list[Event] = []

    def on_event(event: Event) -> None:
        come_to(f"{event.kind}-{event.site}")
        happened.append(event)

    def between_steps(run: object) -> bool:
        while happened:
            event = happened.pop(0)
            come_to(f"after-{event.kind}-{event.site}")
        return False

    proxies = torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    strategy = AFUIC(
        model_factory=make_model,
        proxies=proxies if context.run_config["reference"] else None,
        distillation=DistillationSettings(steps=1),
        fidelity=False,
        prediction_invariance=False,
        gate=GateSettings(by="off"),
        admission=AdmissionSettings(require_authentication=True),
        verify_rounds=1,
        buffer_size=1,
        evaluate_every=0,
        poll_interval=0.5,
        min_available_nodes=int(context.run_config["sites"]),
        keep_checkpoints=50,  # so that there is something to purge, however long verifying takes
        state_dir=str(context.run_config["state-dir"]),
        on_event=on_event,
        stop_when=between_steps,
    )
    strategy.start(grid, ArrayRecord(make_model().state_dict()), num_rounds=100_000, timeout=120.0)
