# PYTHON (3.11 or newer) makes the environment; everything runs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo venv test test-all check bench cost clean

help: ## what there is to make
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: ## build, check and serve the shipped model's table on a cluster of this machine
	@test -e $(STAMP) || echo 'First $(VENV) is made, once: pip downloads torch, Ray and what they need, 0.6 GB in a few' \
		'minutes (3 GB more where it picks a torch for CUDA). Then the demo takes at most 3 minutes, without downloads.'
	@$(MAKE) --no-print-directory venv
	@$(BIN)/python -m cluster.demo

venv: $(STAMP) ## .venv with everything that demo, tests and checks need

$(STAMP): pyproject.toml constraints.txt $(wildcard tolserve/native/*.[ch] infra/*/package-lock.json)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"{sys.executable} is Python {sys.version.split()[0]}; 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@for name in s3rver node-client; do \
		if command -v npm >/dev/null && npm ci --prefix infra/$$name --silent --no-audit --no-fund; then :; else \
		echo "infra/$$name is not installed: npm is not here or failed; its tests and benches are left out"; fi; done
	@touch $(STAMP)

test: venv ## all tests but the long ones
	$(BIN)/python -m pytest -m 'not slow'

test-all: venv ## all tests, the long ones too
	$(BIN)/python -m pytest

check: venv ## ruff, and mypy --strict on the packages
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: venv ## the benchmarks of building and serving, on a quiet machine: results and pages in benchmarks/
	$(BIN)/python -m tolbuild.bench --out benchmarks/build.json
	$(BIN)/python -m tolserve.bench rows --out benchmarks/rows.json
	$(BIN)/python -m tolserve.bench engine --out benchmarks/engine.json
	$(BIN)/python -m tolserve.bench.page

cost: venv ## what networked memory costs on this machine, in 4 minutes: build/cost/quick.html
	$(BIN)/python -m tolserve.bench cost --quick

clean: ## remove .venv and what tools have left
	rm -rf $(VENV) infra/*/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
