"""Sites with image-text pairs on the engine, and what is asked of them in tests of EASE."""

from __future__ import annotations

import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.clientapp import ClientApp

from flwr_afuic import wire
from flwr_afuic.clients import ErasureClient
from flwr_afuic.history.memory import MemoryStore
from flwr_afuic.models.arrays import get_arrays, set_arrays
from flwr_afuic.strategies import EASE
from flwr_afuic.strategies.codec import to_record
from flwr_afuic.unlearning.excision import ExcisionSettings, excise, forget_directions
from flwr_afuic.unlearning.level import ForgetScore
from flwr_afuic.unlearning.pairs import contrastive_loss, score_pairs
from flwr_afuic.unlearning.procedures import read_settings
from tests.erasure_helpers import Site, federate
from tests.unlearning.towers import Towers, pairs

torch.set_num_threads(1)

LENIENT = ForgetScore(0.0, 1.0, 4)


class PairsClient(ErasureClient):
    """A site with its own image-text pairs."""

    holds_lock = True

    def __init__(self, site: Site) -> None:
        super().__init__(inbox=site.inbox, site=site.name, privacy=site.privacy)
        self.script, self.pairs = site, pairs(site.number + 1, len(site.ids))

    def sample_ids(self):
        return self.script.ids

    def sample_classes(self):
        return {i: "odd" if row % 2 else "even" for row, i in enumerate(self.script.ids)}

    def array_kinds(self):
        return ["trained"] * 4

    def of(self, ids):
        return self.pairs.take([self.script.ids.index(i) for i in ids])

    def loaded(self, parameters):
        model = Towers()
        set_arrays(model, parameters)
        return model

    def train(self, parameters, config):
        self.script.trained_on.append(self.retained_ids())
        self.script.locks.append(self.forget_lock)
        model, own = self.loaded(parameters), self.of(self.retained_ids())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(3):
            v, t = model.embed_images(own.images), model.embed_texts(own.tokens, own.mask)
            optimizer.zero_grad()
            contrastive_loss(v, t, model.scale(), own.groups).backward()
            optimizer.step()
            if self.forget_lock is not None:
                self.forget_lock.step_(list(model.parameters()), 0.5)
        return get_arrays(model), len(own), {wire.STEPS: 3}

    def test(self, parameters, config):
        return 0.5, 4, {"accuracy": 0.5}

    def unlearn(self, task):
        self.script.unlearned.append(task)
        model, kept = self.loaded(task.snapshot), self.retained_ids()
        settings = read_settings(task.settings)
        outcome = excise(
            model, self.of(task.forget_ids), self.of(kept) if kept else None,
            settings=settings, seed=task.seed,
        )  # fmt: skip
        evidence = wire.Evidence(
            outcome.before, outcome.after, LENIENT, None, 1,
            outcome.stop_reason, outcome.delta_norm,
        )  # fmt: skip
        return get_arrays(model), evidence

    def relearning_basis(self, task, unlearned, rank):
        forget = self.of(task.forget_ids)
        return forget_directions(self.loaded(unlearned), forget, rank=rank, seed=task.seed)

    def score(self, parameters, sample_ids):
        return score_pairs(self.loaded(parameters), self.of(sample_ids))


def make_sites(count: int = 3):
    found = [Site(n, ids=[f"pair-{n}-{row}" for row in range(8)]) for n in range(count)]
    for site in found:
        site.locks = []
    return found


def app_of(sites, client=PairsClient):
    return ClientApp(
        lambda context: client(sites[int(context.node_config["partition-id"])]).to_client()
    )


def model_record() -> ArrayRecord:
    model = Towers()
    return to_record(list(model.state_dict()), get_arrays(model))


def seeded():
    """Return a store whose dither is the same every time: what is found depends on it a little."""
    store = MemoryStore()
    store.set("seed", 1)
    return store


def ease(sites, **options):
    return federate(
        sites,
        strategy_type=EASE,
        app=app_of(sites, options.pop("client", PairsClient)),
        initial=model_record(),
        history=options.pop("history", None) or seeded(),
        excision=ExcisionSettings(steps=20),
        **{"erasure_norm_factor": 1e6, "rounds": 16, **options},
    )


def ask(strategy):
    strategy.request_erasure("site-0")


def flat(arrays):
    return np.concatenate([np.asarray(a).ravel() for a in arrays]).astype(np.float64)


def coordinates(outcome, version):
    basis, at = outcome.strategy._hooks.pins.pinned.held(outcome.record.request_id)
    return basis.coordinates(flat(outcome.models[version])), at


def after_merge(outcome):
    return [v for v in sorted(outcome.models) if v >= outcome.record.merge_version]
