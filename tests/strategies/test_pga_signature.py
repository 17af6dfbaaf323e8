"""PGA in the setting of its authors' notebook: five parties, one with 80 % triggered images.

The notebook (MNIST; clean/backdoor accuracy in %): FedAvg 98.3/85.9, after the ascent 65.8/0.0, ten
rounds later 98.5/12.0. A small real set of chest X-rays stands in for MNIST; what must show is the
signature: the model collapses at the ascent, the backdoor goes, the retained rounds mend the
model, and something of the backdoor comes back with them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flwr_afuic.app.client_app import make_client_app
from flwr_afuic.app.federation import build_federation, limit_threads
from flwr_afuic.app.local import LocalGrid
from flwr_afuic.app.scoring import Scorer
from flwr_afuic.app.server_app import initial_arrays
from flwr_afuic.app.settings import AppSettings
from flwr_afuic.strategies.comparators import PGA
from flwr_afuic.unlearning.ascent import PgaSettings

ERASED_AT, AFTER = 8, 8


@pytest.mark.slow
@pytest.mark.data
def test_the_signature_of_ascent(tmp_path: Path):
    limit_threads()
    settings = AppSettings(
        dataset="pneumoniamnist",
        sites=5,
        partition="iid",
        poison_fraction=0.8,
        local_steps=8,
        seed=0,
    )
    assert len(build_federation(settings).sites) == 5
    models = {}

    def on_version(entry, arrays):
        models[entry.version] = [np.array(a) for a in arrays]
        if entry.version == ERASED_AT:
            strategy.request_erasure(settings.target)

    strategy = PGA(
        mode="sync",
        min_available_nodes=5,
        evaluate_every=0,
        seed=1,
        on_version=on_version,
        ascent=PgaSettings(epochs=5, batch_size=32),
    )
    grid = LocalGrid(make_client_app(settings, tmp_path), 5)
    try:
        strategy.start(grid, initial_arrays(settings), num_rounds=ERASED_AT + AFTER)
    finally:
        grid.close()
    merge = strategy.requests[0].merge_version
    scorer = Scorer(settings)
    original, ascended, mended = (
        scorer.score(models[version]) for version in (merge - 1, merge, max(models))
    )
    rows = {"original": original, "ascended": ascended, "mended": mended}
    text = {name: (round(s.test, 3), round(s.backdoor_success, 3)) for name, s in rows.items()}
    print(text, strategy.requests[0].evidence)
    assert original.backdoor_success > 0.5, text
    assert ascended.test < original.test - 0.1, text
    assert ascended.backdoor_success < 0.1, text
    assert mended.test > original.test - 0.05, text
    assert mended.backdoor_success > ascended.backdoor_success, text
