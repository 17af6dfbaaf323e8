"""A scripted site: its training adds to the first weight, its erasure to the site's own."""

from pathlib import Path

from flwr.app import Context
from flwr.clientapp import ClientApp

from crashes.holding import come_to, take_time
from crashes.task import ERASURE_STEP, TRAINING_STEP, sample_ids, weight_of
from flwr_afuic import wire
from flwr_afuic.clients import ErasureClient, open_inbox
from flwr_afuic.unlearning.level import ForgetScore


class Site(ErasureClient):
    def __init__(self, context: Context) -> None:
        super().__init__(inbox=open_inbox(context))
        self.name = str(context.node_config["name"])
        self.trained = Path(str(context.node_config["trained"]))

    def sample_ids(self):
        return sample_ids(self.name)

    def array_kinds(self):
        return ["trained"]

    def train(self, parameters, config):
        with self.trained.open("a", encoding="utf-8") as file:  # for the test to look at
            file.write(",".join(self.retained_ids()) + "\n")
        take_time(self.name)
        parameters[0].reshape(-1)[0] += TRAINING_STEP
        return parameters, 10, {}

    def test(self, parameters, config):
        return 0.0, 0, {}

    def unlearn(self, task):
        come_to(f"unlearning-{self.name}")
        unlearned = [array.copy() for array in task.snapshot]
        unlearned[0].reshape(-1)[weight_of(self.name)] += ERASURE_STEP
        count = len(task.forget_ids)
        return unlearned, wire.Evidence(
            before=ForgetScore(0.1, 1.0, count),
            after=ForgetScore(2.0, 0.1, count),
            reference=ForgetScore(1.0, 0.5, count),
            holdout=None,
            steps=1,
            stop_reason="budget",
            delta_norm=1.0,
        )

    def score(self, parameters, sample_ids):
        return ForgetScore(2.0, 0.1, len(sample_ids))


app = ClientApp(lambda context: Site(context).to_client())
