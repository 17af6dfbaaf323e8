"""Sites whose every contribution to the model can be counted in the model alone.

Each sample of each site has an entry of the model that training on it raises, and each erasure has
one that its delta raises by exactly 1. Nothing else touches these entries. Whoever holds a
model can say which samples have moved it since another one, and how often an erasure was applied.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord
from flwr.clientapp import ClientApp

from flwr_afuic import wire
from flwr_afuic.clients import ErasureClient, message_app
from flwr_afuic.erasure import inbox_schema as schema
from flwr_afuic.erasure.inbox import CANCELLED, SiteInbox
from flwr_afuic.errors import ErasureError
from flwr_afuic.state.database import connect
from flwr_afuic.strategies.codec import to_record
from flwr_afuic.unlearning.level import ForgetScore
from flwr_afuic.unlearning.privacy import NO_PRIVACY
from tests.erasure_helpers import FORGOTTEN, LEVEL, REMEMBERED

SITES = 3
SAMPLES = 3
ERASURES = 24
HARM = SITES * SAMPLES + ERASURES
SIZE = HARM + 1


def zeros() -> ArrayRecord:
    return to_record(["w"], [np.zeros(SIZE)])


def entry_of(sample: str) -> int:
    """Entry of the model that training on a sample raises."""
    _, site, row = sample.split("-")
    return int(site) * SAMPLES + int(row)


class Erasures:
    """Which entry of the model counts the merges of which request."""

    def __init__(self) -> None:
        self._entries: dict[str, int] = {}

    def entry(self, request_id: str) -> int:
        first = SITES * SAMPLES
        return self._entries.setdefault(request_id, first + len(self._entries) % ERASURES)

    def count(self, request_id: str, model: np.ndarray) -> float:
        known = self._entries.get(request_id)
        return 0.0 if known is None else float(model[known])


def keep_open(inbox: SiteInbox) -> None:
    """Have an inbox keep one connection for all messages: opening it takes most of the time."""
    file = inbox._file
    with file.reading():
        pass
    connection = connect(
        file.path, schema.MIGRATIONS, error=ErasureError, application=schema.APPLICATION
    )
    file.reading = lambda: nullcontext(connection)
    file.kept_open = nullcontext


@dataclass
class Hospital:
    """A site: its disk (the inbox), its staff, and how its client will behave next."""

    number: int
    folder: Path
    erasures: Erasures
    behaviours: list[str] = field(default_factory=list)
    forgeries: list[dict[str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    filed: dict[str, frozenset[str]] = field(default_factory=dict)
    while_training: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.name = f"site-{self.number}"
        self.ids = [f"patient-{self.number}-{row}" for row in range(SAMPLES)]
        self.inbox = SiteInbox(self.folder / f"{self.name}.sqlite")
        keep_open(self.inbox)

    def file(self, request_id: str, samples: list[str]) -> None:
        self.inbox.file(
            scope="samples" if samples else "client",
            sample_ids=samples,
            held=self.ids,
            request_id=request_id,
        )
        self.filed[request_id] = frozenset(samples or self.ids)

    def status(self, request_id: str) -> str:
        try:
            return self.inbox.status(request_id)
        except ErasureError:
            return ""

    def erased(self) -> set[str]:
        """What must not train, by the staff's own list and not the inbox's."""
        living = (s for r, s in self.filed.items() if self.inbox.status(r) != CANCELLED)
        return set().union(*living)

    def behave(self, *known: str) -> str:
        """Take the next of these behaviours off the list, if one is due."""
        if self.behaviours and self.behaviours[0] in known:
            return self.behaviours.pop(0)
        return "well"


class CountableClient(ErasureClient):
    def __init__(self, site: Hospital) -> None:
        super().__init__(inbox=site.inbox, site=site.name, privacy=NO_PRIVACY)
        self.home = site

    def sample_ids(self):
        return self.home.ids

    def array_kinds(self):
        return ["trained"]

    def train(self, parameters, config):
        trained = self.retained_ids()
        if again := set(trained) & self.home.erased():
            self.home.wrong.append(f"{sorted(again)} trained although erased")
        model = np.array(parameters[0])
        model[[entry_of(sample) for sample in trained]] += 1.0
        self.home.while_training()
        return [model], len(trained), {"loss": 1.0, wire.STEPS: 4}

    def test(self, parameters, config):
        return 0.5, 4, {"accuracy": 0.5}

    def unlearn(self, task):
        how = self.home.behave("diverged", "fails", "raises", "poison", "endless")
        if how == "fails":
            raise ErasureError(f"cannot unlearn {task.forget_ids}")
        if how == "raises":
            raise RuntimeError(f"{task.forget_ids} broke it")
        model = np.array(task.snapshot[0])
        model[self.home.erasures.entry(task.request_id)] += np.inf if how == "endless" else 1.0
        model[HARM] += how == "poison"
        evidence = wire.Evidence(
            before=REMEMBERED,
            after=FORGOTTEN,
            reference=None,
            holdout=LEVEL,
            steps=4,
            stop_reason=how if how == "diverged" else "budget",
            delta_norm=1.0,
        )
        return [model], evidence

    def score(self, parameters, sample_ids) -> ForgetScore:
        return REMEMBERED if self.home.behave("remembers") == "remembers" else FORGOTTEN

    def _forged(self, reply: dict[str, wire.Scalar]) -> dict[str, wire.Scalar]:
        return {**reply, **(self.home.forgeries.pop(0) if self.home.forgeries else {})}

    def get_properties(self, config):
        return self._forged(super().get_properties(config))

    def fit(self, parameters, config):
        arrays, examples, reply = super().fit(parameters, config)
        return arrays, examples, self._forged(reply)


def app_of(hospitals: list[Hospital], dialect: str) -> ClientApp:
    def make(context):
        return CountableClient(hospitals[int(context.node_config["partition-id"])])

    if dialect == "message":
        return message_app(make)
    return ClientApp(lambda context: make(context).to_client())


def forged_notice(request_id: str) -> str:
    notice = wire.ErasureNotice(request_id, "client", 1, "ab" * 32, "other", time.time())
    return wire.encode_notices([notice])


def new_id(number: int) -> str:
    """A request id that is the same in every run of a schedule."""
    return str(uuid.UUID(int=number + 1))
