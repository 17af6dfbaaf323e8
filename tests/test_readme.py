"""The README's drop-in example is what is shipped, is short, and really forgets."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict
from flwr.app.user_config import UserConfig

from flwr_afuic.app.local import LocalGrid
from flwr_afuic.bench.figures import BEGIN, END
from flwr_afuic.erasure.inbox import SiteInbox

ROOT = Path(__file__).parents[1]
DROPIN = ROOT / "examples" / "dropin"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(title: str) -> str:
    """Return the Python block under the link to an example file."""
    pattern = rf"\[[^]]*\]\(examples/dropin/{re.escape(title)}\)[^\n]*\n\n```python\n(.*?)```"
    found = re.findall(pattern, README, re.DOTALL)
    assert len(found) == 1, f"the README must hold one block for {title}"
    return found[0]


@pytest.mark.parametrize("name", ["server_app.py", "client_app.py"])
def test_the_readme_shows_the_shipped_example_in_at_most_15_lines(name):
    shown = block(name)
    assert shown == (DROPIN / name).read_text(encoding="utf-8")
    assert len(shown.splitlines()) <= 15


def test_the_readme_has_a_place_for_the_measured_table():
    assert README.count(BEGIN) == README.count(END) == 1


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((?!http|#)([^)]+)\)", README))))
def test_files_the_readme_links_to_exist(path):
    assert (ROOT / path.partition("#")[0]).exists()


class FilesAnErasure:
    """A hospital's data steward beside its ClientApp: files a request after some messages."""

    def __init__(self, app, inbox: SiteInbox, client_class, after: int) -> None:
        self._app, self._inbox, self._client, self._left = app, inbox, client_class, after

    def __call__(self, message, context):
        if context.node_config["partition-id"] == 0:
            self._left -= 1
            if self._left == 0:
                held = self._client.from_context(context).sample_ids()
                self._inbox.file(scope="client", sample_ids=(), held=held)
        return self._app(message, context)


def load(name: str, source: str):
    """Run a README block as a module."""
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, None))
    exec(compile(source, name, "exec"), module.__dict__)
    return module


def test_the_readmes_example_trains_and_forgets(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(DROPIN))
    monkeypatch.delitem(sys.modules, "hospital", raising=False)
    torch.set_num_threads(1)
    source = block("server_app.py")
    server, client = load("server_app", source), load("client_app", block("client_app.py"))
    inbox = SiteInbox(tmp_path / "site-0.sqlite")
    app = FilesAnErasure(client.app, inbox, client.Hospital, after=14)
    grid = LocalGrid(
        app,
        3,
        node_configs={i: {"inbox": str(tmp_path / f"site-{i}.sqlite")} for i in range(3)},
    )
    context = Context(1, 1, UserConfig(), RecordDict(), UserConfig())
    try:
        server.app(grid, context)
    finally:
        grid.close()
        sys.modules.pop("hospital", None)
    words = capsys.readouterr().out.strip().splitlines()[-1].split()
    assert words[0] == "site-0"
    assert words[1].startswith("completed"), " ".join(words)
    assert not inbox.pending()
