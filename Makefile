# Everyday verbs. `make demo` and `make test` work on a fresh clone: they make .venv and install first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

LATEST := .venv-latest
LOWEST := .venv-lowest
# What needs no LLaMA-Factory; a test among them that does is skipped and says so.
WITHOUT_FACTORY := src tests/core tests/algorithms tests/ledger tests/cli tests/signals tests/train tests/trl \
	tests/plugin tests/distributed

# Processes that share the tests, a file at a time; a torch process in a test has one thread.
TEST_WORKERS ?= 2
SHARED := -n $(TEST_WORKERS) --dist loadfile

export TOKENIZERS_PARALLELISM := false

.PHONY: help install install-latest install-lowest demo compare compare-full test test-long test-latest test-lowest test-fast faults lint format clean

help: ## list the verbs
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 17

install: $(INSTALLED) ## make .venv and install everything, LLaMA-Factory included

install-latest: $(LATEST)/.installed ## make .venv-latest: the newest tested packages, no LLaMA-Factory

install-lowest: $(LOWEST)/.installed ## make .venv-lowest: the oldest supported packages, no LLaMA-Factory

$(INSTALLED): WHAT := -e '.[llamafactory,quickstart,dev]'
$(LATEST)/.installed: WHAT := -e '.[latest,test]'
$(LOWEST)/.installed: WHAT := -e '.[lowest,test]'

$(INSTALLED) $(LATEST)/.installed $(LOWEST)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "Installing into $(@D) (up to several GB, a few minutes) ..."
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/pip install --quiet --disable-pip-version-check $(WHAT) 2>$(@D)/pip.log \
		|| { cat $(@D)/pip.log >&2; exit 1; }
	@touch $@

demo: $(INSTALLED) ## choose samples while SmolLM2-135M trains on 240 puzzles; about 3 minutes on 2 cores
	@$(BIN)/python examples/quickstart/prepare.py
	@$(BIN)/dataflex-cli train examples/quickstart/delta_loss.yaml
	@$(BIN)/python examples/quickstart/show.py saves/quickstart/delta_loss
	@$(BIN)/dataflex-cli report saves/quickstart/delta_loss

compare: $(INSTALLED) ## five ways of choosing, 3 seeds, on a small model; a table with intervals
	@$(BIN)/python examples/compare/prepare.py
	@$(BIN)/dataflex-cli compare examples/compare/compare.yaml

compare-full: $(INSTALLED) ## the same at equal compute as well, then SmolLM2-135M; hours on 2 cores, can be resumed
	@$(BIN)/python examples/compare/prepare.py
	@$(BIN)/dataflex-cli compare examples/compare/compare_compute.yaml
	@$(BIN)/python examples/quickstart/prepare.py
	@$(BIN)/dataflex-cli compare examples/compare/compare_smollm2.yaml

test: $(INSTALLED) ## the tests, those without a model first; about 14 minutes on 2 cores (TEST_WORKERS=2)
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
		echo "No Chromium here: the tests of the report in a browser are skipped. apt-get install chromium chromium-driver"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" $(SHARED)

test-long: $(INSTALLED) ## the rest of them: several ranks, many kills, whole evaluations; 15 minutes on 2 cores
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long $(SHARED)

test-latest: $(LATEST)/.installed ## the tests that need no LLaMA-Factory, with the newest tested packages
	@OMP_NUM_THREADS=1 $(LATEST)/bin/python -m pytest -rs -m "not long" $(SHARED) $(WITHOUT_FACTORY)
	@OMP_NUM_THREADS=1 $(LATEST)/bin/python -m pytest -rs -m long $(SHARED) $(WITHOUT_FACTORY)

test-lowest: $(LOWEST)/.installed ## the same with the oldest supported packages; not part of CI
	@OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -rs -m "not long" $(SHARED) $(WITHOUT_FACTORY)
	@OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -rs -m long $(SHARED) $(WITHOUT_FACTORY)

test-fast: $(INSTALLED) ## tests without a model
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest src tests/core tests/algorithms tests/ledger tests/cli tests/report

faults: $(INSTALLED) ## the long fault tests: 10,000 damaged configs, kills at every place
	@DATAFLEX_FAULTS=long OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults tests/compare

lint: $(INSTALLED) ## ruff and pyright
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

format: $(INSTALLED) ## format the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

clean: ## remove what runs and tools left behind; .venv stays
	@rm -rf saves outputs .pytest_cache .ruff_cache .hypothesis build dist
	@find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
