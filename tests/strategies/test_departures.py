"""Training goes on around a site that leaves or unlearns."""

from flwr_afuic.federation.journal import Span
from tests.erasure_helpers import Site, federate


def test_a_site_that_leaves_does_not_end_training_that_needed_it_to_start():
    sites = [Site(number) for number in range(3)]
    box = []
    outcome = federate(
        sites,
        at={3: lambda strategy: box[0].offline.add(101)},
        on_grid=box.append,
        rounds=10,
        min_available_nodes=3,
    )
    assert outcome.strategy.run.round == 10


def test_in_sync_mode_nobody_waits_for_the_site_that_unlearns():
    sites = [Site(number) for number in range(3)]
    outcome = federate(
        sites,
        at={2: lambda strategy: sites[0].file(number=1)},
        factors={0: 20.0},
        mode="sync",
        rounds=40,
    )
    spans = outcome.strategy.journal.spans
    unlearning: Span = next(span for span in spans if span.kind == "unlearn")
    beside = [
        span
        for span in spans
        if span.kind == "train" and unlearning.start < span.start < span.end < unlearning.end
    ]
    assert {span.site for span in beside} == {"site-1", "site-2"}
    assert len(beside) >= 6
