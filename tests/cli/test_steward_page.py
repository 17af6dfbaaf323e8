"""Every command of the data steward's page works as it is shown, with that output."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from flwr_afuic.erasure.certificate import to_bytes
from flwr_afuic.state.store import StateStore
from tests.cli.service import deliver, make_inbox, make_state, record, uuid
from tests.erasure.certificates import document, values

PAGE = (Path(__file__).parents[2] / "docs" / "erasure.md").read_text(encoding="utf-8")
TIMES = r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?( UTC|Z)?"


def shown() -> list[tuple[str, str]]:
    """Return each command of the page with the output below it."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


def same(text: str) -> str:
    """Leave out what differs from run to run: times, keys."""
    text = re.sub(TIMES, "TIME", text)
    return re.sub(r"signed by [0-9a-f]{16}", "signed by KEY", text).strip()


@pytest.fixture
def place(tmp_path):
    """A hospital's machine as the page finds it."""
    inbox = make_inbox(tmp_path / "hospital" / "inbox.sqlite", "patient-7/ct-1", "patient-7/ct-2")
    make_state(tmp_path / "state", record(1, "completed", site="hospital-berg"))
    return inbox


def serve(tmp_path, inbox) -> None:
    """What the server does between filing and fetching the certificate."""
    inbox.mark([uuid(1)], "known")
    with StateStore(tmp_path / "state") as store:
        head = store.head()
        content = document(
            request={**values()["request"], "request_id": uuid(1), "count": 2},
            federation=store.federation, signed_by=store.keys.key_id,
            ledger=(head.seq, head.hash),
        )  # fmt: skip
        data = to_bytes(content)
        store.add_certificate(uuid(1), data, store.keys.sign(data), "<p>")
    deliver(tmp_path / "state", inbox, uuid(1))
    (tmp_path / "server.pub").write_bytes((tmp_path / "state/keys/server.pub").read_bytes())


def test_the_page_as_it_is_written(cli, tmp_path, place):
    ran = []
    for command, output in shown():
        words = shlex.split(command.replace("/hospital/", f"{tmp_path}/hospital/"))
        if words[0] == "cat":
            (tmp_path / words[1]).write_text(output, encoding="utf-8")
            continue
        assert words[0] == "flwr-afuic"
        if ">" in words:
            words = words[: words.index(">")]
        if words[1] == "request":
            words += ["--id", uuid(1)]
        if words[1] == "certificate":
            place.keep([uuid(1)])  # it was taken back too late, as it may be
            serve(tmp_path, place)
        found = cli(*words[1:])
        ran.append(" ".join(words[1:2]))
        assert found.status == 0, found.err
        if output:
            assert same(found.err + found.out) == same(output), command
    assert ran == ["request", "status", "requests", "cancel", "certificate", "verify", "ledger"]


def test_options_and_statuses_are_those_there_are(cli):
    from flwr_afuic.cli.steward import MEANINGS

    helped = " ".join(cli("request", "--help").out.split())
    for option in re.findall(r"^- `(--[a-z]+)", PAGE, re.MULTILINE):
        assert option in helped, option
    told = set(re.findall(r"^\| `([a-z]+)` \|", PAGE, re.MULTILINE))
    assert told == set(MEANINGS)


def test_states_and_codes_and_limits_are_those_there_are():
    from flwr_afuic.erasure.record import State
    from flwr_afuic.strategies import AFUIC
    from flwr_afuic.unlearning.privacy import DeltaPrivacy
    from flwr_afuic.wire import REASON_CODES

    words = set(re.findall(r"[a-z]+(?:-[a-z]+)*", PAGE))
    assert {str(state) for state in State} <= words
    assert all(f"`{code}`" in PAGE for code in REASON_CODES)
    settings = AFUIC()
    assert DeltaPrivacy().small == 8
    assert settings.admission.lifetime == 90 * 86400
    assert (settings.max_attempts, settings.verify_rounds) == (3, 5)
    assert settings.batch_seconds == 3600


@pytest.mark.parametrize("page", ["erasure.md", "threat-model.md"])
def test_links_lead_somewhere(page):
    docs = Path(__file__).parents[2] / "docs"
    text = (docs / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)]+)\)", text):
        file, _, anchor = target.partition("#")
        linked = (docs / file) if file else docs / page
        assert linked.is_file(), target
        heads = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
        assert not anchor or anchor in slugs, target
