"""The layers point one way (checked on the imports as written, lazy ones included)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import flwr_afuic

PACKAGE = "flwr_afuic"
ROOT = Path(flwr_afuic.__file__).parent

PURE = {"federation", "metrics", "calibration", "unlearning", "data", "models"}
FLOWER_FACING = {"strategies", "clients", "app", "cli", "bench"}
STORES = {"erasure", "state", "history"}
TOP_OF_ALL = {"app", "cli", "bench", "report"}


def imports(tree: ast.AST, module: list[str]) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute name) of each import; ``module`` is the package it stands in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module[: len(module) - node.level + 1], *filter(None, [base])])
            # ``from flwr_afuic import strategies`` imports a package as well as a name.
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def refused(layer: str, name: str) -> str | None:
    """Return why a module of ``layer`` may not import ``name``."""
    if inside(name, "flwr") and layer not in FLOWER_FACING:
        return "only strategies, clients and the app import flwr"
    if inside(name, "sqlite3") and layer not in STORES:
        return "only stores import sqlite3"
    if any(inside(name, other) for other in ("pickle", "cloudpickle", "dill", "shelve")):
        return "nothing is pickled"
    if not inside(name, PACKAGE):
        return None
    target = name.split(".")[1] if "." in name else ""
    if {layer, target} == {"strategies", "clients"}:
        return "strategies and clients never import each other"
    if layer in PURE | STORES | {""} and target in {"strategies", "clients", *TOP_OF_ALL}:
        return "a lower layer imports no higher one"
    if layer in PURE and target in STORES:
        return "pure packages import no store"
    if layer in {"strategies", "clients"} and target in TOP_OF_ALL:
        return "strategies and clients import no app"
    return None


def offences(root: Path) -> list[str]:
    """List every breach of the rules under a package's folder."""
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        layer = parts[0] if len(parts) > 1 else ""
        tree = ast.parse(path.read_text(encoding="utf-8"))
        place = "/".join(parts)
        for line, name in imports(tree, [PACKAGE, *parts[:-1]]):
            why = refused(layer, name)
            if why:
                found.append(f"{place}:{line}: {name}: {why}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Assert):
                found.append(f"{place}:{node.lineno}: assert: -O removes it; raise an error")
            elif isinstance(node, ast.ExceptHandler) and node.type is None:
                found.append(f"{place}:{node.lineno}: bare except")
            elif (
                isinstance(node, ast.keyword)
                and node.arg == "allow_pickle"
                and (not isinstance(node.value, ast.Constant) or node.value.value is not False)
            ):
                found.append(f"{place}:{node.value.lineno}: allow_pickle must be False")
    return found


def test_the_package_keeps_its_layers() -> None:
    assert offences(ROOT) == []


def test_the_package_was_seen() -> None:
    layers = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert layers >= PURE | {"erasure", "strategies", "clients", "app"}
    unknown = layers - PURE - STORES - FLOWER_FACING - TOP_OF_ALL
    assert not unknown, f"say here which layer {unknown} belongs to"


def test_flwr_is_imported_lazily_enough_for_the_pure_layers() -> None:
    """A hospital's tools may use the pure layers where flwr is not installed."""
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['flwr'] = None\n"
        "import flwr_afuic.federation.buffer, flwr_afuic.federation.screening\n"
        "import flwr_afuic.metrics, flwr_afuic.wire, flwr_afuic.erasure.inbox\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("path", "code", "offence"),
    [
        ("federation/x.py", "import flwr", "only strategies, clients and the app"),
        ("federation/x.py", "from flwr.app import Message", "only strategies, clients and the app"),
        ("wire.py", "import flwr.app", "only strategies, clients and the app"),
        ("report/x.py", "def f():\n    import flwr", "only strategies, clients and the app"),
        ("strategies/x.py", "import sqlite3", "only stores"),
        ("data/x.py", "from sqlite3 import connect", "only stores"),
        ("strategies/x.py", "from flwr_afuic.clients import y", "never import each other"),
        ("strategies/x.py", "from flwr_afuic import clients", "never import each other"),
        ("strategies/x.py", "from ..clients.y import z", "never import each other"),
        ("strategies/x.py", "from .. import clients", "never import each other"),
        ("strategies/deep/x.py", "from ...clients import z", "never import each other"),
        ("clients/x.py", "import flwr_afuic.strategies.run", "never import each other"),
        ("metrics/x.py", "from flwr_afuic.strategies import y", "no higher one"),
        ("metrics/x.py", "from flwr_afuic.erasure.book import y", "no store"),
        ("erasure/x.py", "from flwr_afuic.app import y", "no higher one"),
        ("errors.py", "from flwr_afuic.cli import main", "no higher one"),
        ("strategies/x.py", "from flwr_afuic.app.local import LocalGrid", "import no app"),
        ("app/x.py", "import pickle", "pickled"),
        ("app/x.py", "from pickle import loads", "pickled"),
        ("app/x.py", "assert True", "-O removes it"),
        ("app/x.py", "try:\n    f()\nexcept:\n    pass", "bare except"),
        ("data/x.py", "np.load(f, allow_pickle=True)", "allow_pickle"),
        ("data/x.py", "np.load(f, allow_pickle=flag)", "allow_pickle"),
    ],
)
def test_each_rule_can_fail(tmp_path: Path, path: str, code: str, offence: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(code)
    (found,) = offences(tmp_path)
    assert offence in found
    assert found.startswith(path)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("strategies/x.py", "import flwr"),
        ("clients/x.py", "from flwr.client import NumPyClient"),
        ("app/x.py", "from flwr_afuic.strategies import a\nfrom flwr_afuic.clients import b"),
        ("erasure/x.py", "import sqlite3"),
        ("clients/x.py", "from flwr_afuic.erasure.inbox import SiteInbox"),
        ("strategies/x.py", "from flwr_afuic import wire\nfrom .run import y"),
        ("federation/x.py", "import flwrish\nfrom flwr_afuic.errors import E"),
        ("app/x.py", "try:\n    f()\nexcept ValueError:\n    pass"),
        ("data/x.py", "np.load(f, allow_pickle=False)"),
    ],
)
def test_what_is_allowed(tmp_path: Path, path: str, code: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(code)
    assert offences(tmp_path) == []
