"""PGA: projected gradient ascent at the erasing site."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from flwr_afuic import wire
from flwr_afuic.erasure.record import ErasureRecord
from flwr_afuic.errors import ConfigError
from flwr_afuic.federation.buffer import Update
from flwr_afuic.federation.journal import VersionEntry
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.strategies.certification import plain_settings
from flwr_afuic.strategies.comparators.base import Comparator
from flwr_afuic.strategies.procedure import Answers, Ask, Method, Procedure
from flwr_afuic.strategies.run import FederationRun
from flwr_afuic.unlearning.ascent import PgaSettings
from flwr_afuic.unlearning.procedures import write_settings


class PGA(Comparator):
    """Ascent on the erased data in a ball around the other sites' mean (arXiv 2207.05521).

    Halimi et al., 2022. The site maximises its loss from ``w_ref = (K w - w_u) / (K - 1)``, the
    mean of the other sites' last models, within a ball around it, and stops early; the
    result is the new model, and the retained sites train on [P]. See
    :mod:`flwr_afuic.unlearning.ascent` for what is the paper's and what is ours there.

    ``w_u`` is the site's own last local model. In the paper the site has kept it; here the server
    keeps every site's last model, because whose it will need is known only then, and sends it
    along [O]: memory, and with ``state_dir`` disk, for as many models as there are sites. With
    asynchronous training ``w`` is not the mean of K models; the formula is applied as it stands
    [O]. A site that never trained starts from ``w`` [O].

    Parameters
    ----------
    ascent : PgaSettings
        Of the ascent; ``sites`` is filled in.
    **erasing : Any
        Settings of :class:`Comparator`.
    """

    methods = ("pga",)

    def __init__(self, *, ascent: PgaSettings | None = None, **erasing: Any) -> None:
        super().__init__(**erasing)
        self.ascent = ascent or PgaSettings()

    def make_method(self) -> Method:
        """See :class:`Comparator`."""
        return LastModels(self.ascent)

    def describe(self) -> tuple[str, dict[str, Any]]:
        """See :class:`ErasureStrategy`."""
        return "PGA", plain_settings(self.ascent)


class LastModels(Method):
    """Every site's last local model, and what is done with one of them."""

    def __init__(self, ascent: PgaSettings) -> None:
        self._ascent = ascent
        self._taken = 0
        self._names: dict[str, str] = {}
        self._locals: dict[str, Arrays] = {}
        self._bases: dict[int, Arrays] = {}

    def bind(self, run: FederationRun) -> None:
        """See :class:`Method`."""
        super().bind(run)
        self._bases = {run.version: run.arrays}

    def take_update(self, update: Update, weight: float) -> Update:
        """Remember the local model the update came from."""
        layout, base = self.run.layout, self._bases[update.base_version]
        own = layout.flatten(base) + layout.flatten(update.arrays)
        self._taken += 1
        self._names[update.site] = f"{update.site}/{self._taken}"
        self._locals[update.site] = layout.with_trained(own, update.arrays)
        return update

    def after_version(self, entry: VersionEntry) -> None:
        """Hold the models somebody is still training from."""
        self._bases[entry.version] = self.run.arrays
        used = {task.version for task in self.run.dispatcher.pending} | {entry.version}
        self._bases = {v: arrays for v, arrays in self._bases.items() if v in used}

    def erase(self, record: ErasureRecord) -> Procedure:
        """Ask the site to ascend; its delta leads to the new model."""
        current, site = self.run.arrays, record.site
        others = set(self._locals) - {site}
        if not others:
            raise ConfigError("no other site has trained; nothing would be left to start from")
        extras = {"own": self._locals[site]} if site in self._locals else {}
        settings = dataclasses.replace(self._ascent, sites=len(others) + 1)
        text = write_settings(settings)
        answers: Answers = yield [Ask(site, wire.TASK_UNLEARN, current, extras, text, vital=True)]
        return self.moved(current, self.run.layout.flatten(answers[site].arrays))

    def erased(self, record: ErasureRecord) -> None:
        """See :class:`Method`."""
        self._locals.pop(record.site, None)
        self._names.pop(record.site, None)

    def state(self) -> dict[str, Any]:
        """See :class:`Method`."""
        return {"taken": self._taken, "names": dict(self._names)}

    def stored(self) -> dict[str, Arrays]:
        """See :class:`Method`."""
        return {self._names[site]: arrays for site, arrays in self._locals.items()}

    def restore(self, state: dict[str, Any], read: Callable[[str], Arrays]) -> None:
        """See :class:`Method`."""
        self._bases = {self.run.version: self.run.arrays}
        self._taken = int(state.get("taken", 0))
        self._names = {str(site): str(name) for site, name in state.get("names", {}).items()}
        self._locals = {site: read(name) for site, name in self._names.items()}
