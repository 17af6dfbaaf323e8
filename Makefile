# `make demo` and `make test` do all their own set-up: a virtual environment in .venv with pinned
# dependencies, made once and again when pyproject.toml, constraints.txt or this file change.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= runs/demo
ARGS ?=

# What is compiled is kept: tests start hundreds of processes, and each would compile it anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo deploy-demo test suite test-e2e test-crash lint figures clean
.DELETE_ON_ERROR:

demo: $(STAMP) ## a federation of hospitals, an erasure in the middle, a report
	$(BIN)/flwr-afuic demo --out $(OUT) $(ARGS)

deploy-demo: $(STAMP) ## SuperLink and four SuperNodes with TLS; an erasure ends with a verified certificate
	$(BIN)/python examples/hospitals/federation.py demo --folder runs/hospitals $(ARGS)

test: $(STAMP) ## lint, types and the test suite
	$(MAKE) --jobs 2 lint suite

suite: $(STAMP) ## unit, property, golden and end-to-end tests; of three processes one often waits for those it started
	$(BIN)/pytest -n 3 --durations 10 $(ARGS)

test-e2e: $(STAMP) ## only real Flower processes with TLS, killed at six steps of an erasure
	$(BIN)/pytest -n 0 -v tests/e2e $(ARGS)

test-crash: $(STAMP) ## real processes killed at every step of an erasure, about an hour
	$(BIN)/pytest -n 0 -m crash -v tests/e2e $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict -p flwr_afuic

figures: $(STAMP) ## the measured tables of the README, in minutes per data set and seed
	$(BIN)/flwr-afuic bench figures --datasets pneumoniamnist,pbc28,mednist --out runs/figures --json runs/figures.json \
		--markdown README.md $(ARGS)

clean:
	rm -rf $(VENV) runs .mypy_cache .pytest_cache .ruff_cache .hypothesis

# torch first and pinned: left to itself, the resolver may bring gigabytes of CUDA packages.
$(STAMP): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is missing or older than 3.11; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[simulation,clinical,multimodal,speed,dev]'
	@touch $@
