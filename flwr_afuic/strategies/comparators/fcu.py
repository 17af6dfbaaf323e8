"""FCU: federated client unlearning by feature contrast, with a memory of low frequencies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flwr_afuic import wire
from flwr_afuic.erasure.record import ErasureRecord
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.strategies.certification import plain_settings
from flwr_afuic.strategies.comparators.base import Comparator
from flwr_afuic.strategies.procedure import Answers, Ask, Method, Procedure
from flwr_afuic.strategies.run import FederationRun
from flwr_afuic.unlearning.contrast import FcuSettings
from flwr_afuic.unlearning.procedures import write_settings


class FCU(Comparator):
    """Feature contrast against a downgraded model (MICCAI 2024, medical imaging).

    Deng, Luo and Chen, "Enable the Right to be Forgotten with Federated Client Unlearning in
    Medical Imaging". The site unlearns on the level of features, guided by a downgraded model; low
    frequencies of the weights keep what is general; the retained sites then train on [P]. See
    :mod:`flwr_afuic.unlearning.contrast` for what is ours there.

    How the downgraded model is made we do not know from the text: here it is the federation's
    initial model, which has met nobody's data [O].

    Parameters
    ----------
    contrast : FcuSettings
        Of the unlearning.
    **erasing : Any
        Settings of :class:`Comparator`.
    """

    methods = ("fcu",)

    def __init__(self, *, contrast: FcuSettings | None = None, **erasing: Any) -> None:
        super().__init__(**erasing)
        self.contrast = contrast or FcuSettings()

    def make_method(self) -> Method:
        """See :class:`Comparator`."""
        return _Contrast(self.contrast)

    def describe(self) -> tuple[str, dict[str, Any]]:
        """See :class:`ErasureStrategy`."""
        return "FCU", plain_settings(self.contrast)


class _Contrast(Method):
    def __init__(self, contrast: FcuSettings) -> None:
        self._contrast = contrast
        self._downgraded: Arrays = []

    def bind(self, run: FederationRun) -> None:
        super().bind(run)
        self._downgraded = run.arrays

    def erase(self, record: ErasureRecord) -> Procedure:
        current, site = self.run.arrays, record.site
        extras = {"downgraded": self._downgraded}
        text = write_settings(self._contrast)
        answers: Answers = yield [Ask(site, wire.TASK_UNLEARN, current, extras, text, vital=True)]
        return self.moved(current, self.run.layout.flatten(answers[site].arrays))

    def stored(self) -> dict[str, Arrays]:
        return {"downgraded": self._downgraded}

    def restore(self, state: dict[str, Any], read: Callable[[str], Arrays]) -> None:
        if state:
            self._downgraded = read("downgraded")

    def state(self) -> dict[str, Any]:
        return {"downgraded": True}
