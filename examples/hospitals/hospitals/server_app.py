"""What runs at the coordinator: asynchronous training that forgets on request."""

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from flwr_afuic.strategies import AFUIC
from flwr_afuic.strategies.admission import AdmissionSettings
from flwr_afuic.strategies.run import FederationRun
from hospitals.task import make_model, read_proxies

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train; hospitals file erasures in their inboxes while it runs."""
    torch.set_num_threads(1)
    config = context.run_config

    def erased(run: FederationRun) -> bool:
        """Whether every request is closed, and its hospital has had two rounds to be told."""
        requests = strategy.requests
        if not config["until-erased"] or not requests or any(r.open for r in requests):
            return False
        certified = [event.round for event in run.journal.of_kind("certificate")]
        completed = [r for r in requests if str(r.state).startswith("completed")]
        if any(not r.certified for r in completed):
            return False
        return not certified or run.round >= certified[-1] + 2

    strategy = AFUIC(
        model_factory=make_model,
        proxies=read_proxies(str(config["proxies"])),
        proxies_provenance="generated phantoms, Apache-2.0",
        state_dir=str(config["state-dir"]),  # resumes where the last run stopped
        buffer_size=int(config["buffer-size"]),
        server_lr=float(config["server-lr"]),
        min_available_nodes=int(config["sites"]),
        verify_rounds=int(config["verify-rounds"]),
        site_timeout=float(config["site-timeout"]),
        admission=AdmissionSettings(require_authentication=True),
        evaluate_every=0,
        poll_interval=0.5,  # each look is a request to the SuperLink
        seed=int(config["seed"]),
        stop_when=erased,
    )
    initial = ArrayRecord(make_model().state_dict())
    strategy.start(grid, initial, num_rounds=int(config["rounds"]), timeout=600.0)
    for request in strategy.requests:
        print(f"erasure {request.request_id} of {request.site}: {request.state}")
