# The ten commands of a contributor. The environment in .venv makes itself: with uv where it is installed, with venv and pip otherwise.
.POSIX:
.PHONY: help demo test lint format layers bench audit constraints clean

PYTHON ?= $(shell for v in 3.13 3.12 3.11; do python$$v -c '' 2>/dev/null && { echo python$$v; exit; }; done; echo python3)
BIN = .venv/bin
READY = .venv/.ready
WORKERS ?= 2

help:
	@sed -n 's/^## //p' Makefile

## make demo         the whole thing on SQLite and Prefect's own server, with a crash in the middle
demo: $(READY)
	@$(BIN)/claim-dispatch demo

## make test         all tests, on SQLite and a real PostgreSQL, in parallel and in random order
test: $(READY)
	$(BIN)/pytest -q -n $(WORKERS) $(ARGS)

## make lint         style, types, layers
lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

## make format       mend what can be mended
format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

layers: $(READY)
	$(BIN)/lint-imports

## make bench        claim + settle, and publish, against bare psycopg and against peers, as ratios
bench: $(READY) .venv-peers/.ready
	$(BIN)/python benchmarks/claim_settle.py --peer-python .venv-peers/bin/python $(ARGS)
	$(BIN)/python benchmarks/publish.py --peer-python .venv-peers/bin/python $(ARGS)

## make audit        known vulnerabilities in what the constraints name
audit: $(READY)
	$(BIN)/pip-audit --requirement constraints/dev.txt --require-hashes

## make constraints  resolve all dependencies anew, with hashes and without addresses (needs uv)
constraints:
	uv pip compile pyproject.toml --quiet --upgrade --extra dev --constraint constraints/held.txt --universal --python-version 3.11 --generate-hashes --no-annotate \
	  --no-header --output-file constraints/dev.txt

clean:
	rm -rf .venv .venv-peers .pytest_cache .ruff_cache .hypothesis build dist

$(READY): pyproject.toml constraints/dev.txt
	@echo "making .venv with $(PYTHON)"
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --clear --python $(PYTHON) .venv && \
	  uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r constraints/dev.txt && \
	  uv pip install --quiet --python $(BIN)/python --no-deps -e . ; \
	else \
	  $(PYTHON) -m venv --clear .venv && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r constraints/dev.txt && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e . ; \
	fi
	@touch $(READY)

.venv-peers/.ready: benchmarks/peers.txt
	@$(PYTHON) -m venv --clear .venv-peers && .venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt
	@touch .venv-peers/.ready
