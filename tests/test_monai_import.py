"""A process that makes a network does not wait for a library that it never asks for."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from flwr_afuic.models.networks import make_model
make_model("groupnorm-cnn", channels=1, num_classes=2)
assert "monai" in sys.modules
print("transformers" in sys.modules)
from transformers import CLIPConfig
print(CLIPConfig.__name__)
"""


def test_monai_comes_without_transformers_which_can_follow() -> None:
    pytest.importorskip("transformers")
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "CLIPConfig"]
