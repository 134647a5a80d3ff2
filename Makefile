# The commands of a contributor. The environment in .venv makes itself: with uv where it is installed, with venv and pip otherwise.
.POSIX:
.PHONY: help demo test test-all test-slim test-pgbouncer faults mutation soak model lint format layers bench audit constraints clean

# Compiled once and kept, even where the environment says otherwise: each process that imports Prefect would compile it anew.
export PYTHONDONTWRITEBYTECODE =

PYTHON ?= $(shell for v in 3.13 3.12 3.11; do python$$v -c '' 2>/dev/null && { echo python$$v; exit; }; done; echo python3)
BIN = .venv/bin
READY = .venv/.ready
WORKERS ?= 2
COMPILE = uv pip compile pyproject.toml --quiet --upgrade --constraint constraints/held.txt --universal --python-version 3.11 --generate-hashes \
  --no-annotate --no-header
# Named one by one: pytest refuses a path that is not there, where a pattern could select nothing and pass.
SLIM = \
  tests/unit/test_drafts.py \
  tests/unit/test_imports.py \
  tests/unit/test_payloads.py \
  tests/unit/test_rules.py \
  tests/unit/test_settings.py \
  tests/conformance/test_awaiting.py \
  tests/conformance/test_bad_input.py \
  tests/conformance/test_drivers.py \
  tests/conformance/test_migrations.py \
  tests/conformance/test_operations.py \
  tests/conformance/test_parameter_rows.py \
  tests/conformance/test_publishing.py \
  tests/conformance/test_publishing_by_url.py \
  tests/conformance/test_publishing_properties.py \
  tests/conformance/test_publishing_transactions.py \
  tests/conformance/test_rendering.py

help:
	@sed -n 's/^## //p' Makefile

## make demo         the whole thing on SQLite and Prefect's own server, with a crash in the middle
demo: $(READY)
	@$(BIN)/claim-dispatch demo

## make test         each kind of test, on SQLite and a real PostgreSQL, in parallel and in random order; minutes
test: $(READY)
	$(BIN)/pytest -q -n $(WORKERS) --only quick $(ARGS)

## make test-all     the rest: more cases, rows and time of each kind, and each PostgreSQL that there is
test-all: $(READY)
	CLAIM_DISPATCH_TEST_VERSIONS=all $(BIN)/pytest -q -n $(WORKERS) --only rest $(ARGS)

## make test-slim    what an application uses that only publishes, on SQLAlchemy 2.1 and without Prefect
test-slim: .venv-slim/.ready
	.venv-slim/bin/pytest -q -n $(WORKERS) --only quick $(ARGS) $(SLIM)

## make model        search the model of the design, and its mutants, to the end (needs spin and a C compiler)
model:
	@sh docs/model/check.sh

## make soak         break everything for hours, then audit: make soak ARGS="--minutes 30 --seed 7 --database postgresql"
soak: $(READY)
	$(BIN)/python -m tests.soak $(ARGS)

## make faults       the failpoint matrix: every statement struck in every way, on both databases, as a table
faults: $(READY)
	$(BIN)/python -m tests.faults.matrix $(ARGS)

## make mutation     one small mistake at a time in the code that claims, settles and rescues: a test must fail for each
mutation: $(READY)
	$(BIN)/python -m tests.mutation $(ARGS)

## make test-pgbouncer  the conformance suite through pgbouncer in transaction mode (Debian: apt install pgbouncer)
test-pgbouncer: $(READY)
	CLAIM_DISPATCH_TEST_PGBOUNCER=1 $(BIN)/pytest -q -n $(WORKERS) $(ARGS) tests/conformance

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

## make bench        all benchmarks, as pairs: one table of ratios and goals, one drawing; an hour or so, make bench ARGS=--quick minutes
bench: $(READY) .venv-peers/.ready
	$(BIN)/python benchmarks --peer-python .venv-peers/bin/python $(ARGS)

## make audit        known vulnerabilities in what the constraints name
audit: $(READY)
	$(BIN)/pip-audit --requirement constraints/dev.txt --require-hashes

## make constraints  resolve all dependencies anew, with hashes and without addresses (needs uv)
constraints:
	$(COMPILE) --extra dev --output-file constraints/dev.txt
	$(COMPILE) --extra postgres --output-file constraints/slim.txt constraints/slim.in

clean:
	rm -rf .venv .venv-peers .venv-slim .pytest_cache .ruff_cache .hypothesis build dist

# An environment with exactly what a hashed constraints file names, and this package: $(call environment,folder,constraints)
define environment
	@echo "making $(1) with $(PYTHON)"
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --clear --python $(PYTHON) $(1) && \
	  uv pip install --quiet --python $(1)/bin/python --no-deps --require-hashes -r $(2) && \
	  uv pip install --quiet --python $(1)/bin/python --no-deps -e . ; \
	else \
	  $(PYTHON) -m venv --clear $(1) && \
	  $(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(2) && \
	  $(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e . ; \
	fi
	@touch $(1)/.ready
endef

$(READY): pyproject.toml constraints/dev.txt
	$(call environment,.venv,constraints/dev.txt)

.venv-slim/.ready: pyproject.toml constraints/slim.txt
	$(call environment,.venv-slim,constraints/slim.txt)

.venv-peers/.ready: benchmarks/peers.txt
	@$(PYTHON) -m venv --clear .venv-peers && .venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt
	@touch .venv-peers/.ready
