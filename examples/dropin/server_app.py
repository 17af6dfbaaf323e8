from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from hospital import make_model, public_images

from flwr_afuic.strategies import AFUIC

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = AFUIC(model_factory=make_model, proxies=public_images())  # was: FedAvg()
    strategy.start(grid, ArrayRecord(make_model().state_dict()), num_rounds=40)
    for erasure in strategy.requests:
        print(erasure.site, erasure.state, erasure.reason)
