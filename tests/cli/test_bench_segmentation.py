"""What the command refuses before it loads anything."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from flwr_afuic.cli.bench import app


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["forget", "--task", "segmentation", "--methods", "pga"], "leave"),
        (["forget", "--task", "detection"], "classification or segmentation"),
        (["segmentation", "--areas", "hospital"], "site, patient"),
        (["segmentation", "--areas", " , "], "names nothing"),
        (["segmentation", "--arms", "retrain"], "needs afuic and retrain"),
        (["segmentation", "--arms", "afuic,retrain,magic"], "use one of"),
        (["segmentation", "--set", "depth=3"], "unknown setting"),
        (["wall", "--runs", "0"], "runs is 0"),
    ],
)
def test_what_cannot_be_asked_is_said(arguments: list[str], complaint: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code != 0
    assert complaint in str(result.exception)
