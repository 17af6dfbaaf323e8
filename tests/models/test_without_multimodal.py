"""The core works where transformers and peft are not installed, and says what is missing."""

from __future__ import annotations

import subprocess
import sys

BLOCKED = """
import sys
for name in ("transformers", "peft", "tokenizers"):
    sys.modules[name] = None  # as if it were not installed
import flwr_afuic.models, flwr_afuic.data.multimodal, flwr_afuic.metrics, flwr_afuic.strategies
import flwr_afuic.clients
from flwr_afuic.clients import MultimodalClient
import flwr_afuic.models.multimodal, flwr_afuic.models.clip, flwr_afuic.models.pretraining
from flwr_afuic.models.clip import load_clip
from flwr_afuic.models.tokens import build_tokenizer
from flwr_afuic.errors import ConfigError
for call in (lambda: load_clip("anything"), lambda: build_tokenizer(["a"])):
    try:
        call()
    except ConfigError as error:
        assert "flwr-afuic[multimodal]" in str(error), error
    else:
        raise SystemExit("nothing was said of the missing package")
"""


def test_the_core_imports_without_them_and_says_what_to_install():
    subprocess.run([sys.executable, "-c", BLOCKED], check=True)
