"""A recording wrapper: any Flower strategy, with its updates written to a history."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from logging import WARNING

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from flwr.supercore import log

from flwr_afuic import wire
from flwr_afuic.errors import AfuicError, ConfigError, WireError
from flwr_afuic.federation.layout import ArrayKind, Layout
from flwr_afuic.history.recorder import Recorder
from flwr_afuic.strategies.asynchronous import AsyncStrategy
from flwr_afuic.strategies.codec import dialect_named, from_record
from flwr_afuic.strategies.evaluations import EvaluateFn


class Recording(Strategy):
    """Let a strategy run as it is, and write every update it merges to a history.

    Our own strategies record in their engine, staleness and all. Any other strategy, Flower's
    ``FedAvg`` for one, is recorded round by round: what it averages by number of examples is
    what MEDU's rule takes apart, so a strategy that merges otherwise (adaptive optimisers,
    trimmed means) is recorded, but cannot be unlearned from faithfully.

    Parameters
    ----------
    strategy : Strategy
        The strategy.
    recorder : Recorder
        Where its updates go.
    array_kinds : mapping of str to {"trained", "statistic", "counter"}, optional
        Where names and dtypes of the initial arrays do not tell.

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAvg
    >>> from flwr_afuic.history.memory import MemoryStore
    >>> strategy = Recording(FedAvg(), Recorder(MemoryStore()))
    """

    def __init__(
        self,
        strategy: Strategy,
        recorder: Recorder,
        *,
        array_kinds: Mapping[str, ArrayKind] | None = None,
    ) -> None:
        if isinstance(strategy, Recording):
            raise ConfigError("the strategy is recorded already; wrap it once")
        self.strategy = strategy
        self.recorder = recorder
        self._kinds = array_kinds
        self._sent: ArrayRecord | None = None
        self._names: dict[int, str] = {}

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Run as Flower's ``Strategy.start``; ours run their own loop, which records itself."""
        options = (num_rounds, timeout, train_config, evaluate_config, evaluate_fn)
        if not isinstance(self.strategy, AsyncStrategy):
            layout = Layout.of(initial_arrays.keys(), from_record(initial_arrays), self._kinds)
            self.recorder.start(layout.trained_names)
            result = super().start(grid, initial_arrays, *options)
            self.recorder.close()
            return result
        self.strategy.recorder = self.recorder
        return self.strategy.start(grid, initial_arrays, *options)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """See the strategy; the model that goes out is what updates are differences to."""
        self._sent = arrays
        self._names = {int(node.node_id): str(node.name) for node in grid.get_nodes()}
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Record each usable reply, then let the strategy aggregate them."""
        kept = list(replies)
        for message in kept:
            if not message.has_error():
                self._record(message)
        arrays, metrics = self.strategy.aggregate_train(server_round, kept)
        if arrays is not None:
            self.recorder.merged(server_round, server_round)
        return arrays, metrics

    def _record(self, message: Message) -> None:
        if self._sent is None:
            raise ConfigError("aggregate_train() needs configure_train() before it")
        before = from_record(self._sent)
        layout = Layout.of(self._sent.keys(), before, self._kinds)
        node = message.metadata.src_node_id
        try:
            reply = dialect_named(_dialect_of(message)).read_train(message.content)
            layout.check(reply.arrays, f"update of node {node}")
            if reply.examples < 1:
                raise WireError(f"update of node {node}: {reply.examples} examples")
            said = reply.info.get(wire.SITE)
            site = self._names.get(node) or (str(said) if said else f"node-{node}")
            trained = layout.trained(layout.update_between(reply.arrays, before))
            self.recorder.add(site, trained, float(reply.examples))
        except AfuicError as error:
            log(WARNING, "not recorded: %s", error)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """See the strategy."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """See the strategy."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """See the strategy."""
        self.strategy.summary()


def _dialect_of(message: Message) -> str:
    return "numpy" if any(key.startswith("fitres.") for key in message.content) else "message"
