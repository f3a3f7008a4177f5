# Two commands do everything on a fresh machine (Debian 12, whose Python is 3.11; make, git): `make demo` and `make test`.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: help install demo evaluate ui test test-slow smoke-online lint bench lock versions clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

install: .venv/.installed  ## the environment, from exact pins

# Debian packs venv apart from Python. Blender needs libraries of X even where nothing is shown.
VENV := python3.11-venv
LIBRARIES := libgl1 libice6 libsm6 libx11-6 libxext6 libxfixes3 libxi6 libxkbcommon0 libxrender1 libxxf86vm1
system = if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq $(1); \
	else echo "Some system packages are missing. Run: sudo apt-get install $(1)"; exit 1; fi

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv || { rm -rf .venv; $(call system,$(VENV)) && $(PYTHON) -m venv .venv; }
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m render --version || { $(call system,$(LIBRARIES)) && $(BIN)/python -m render --version; }
	touch $@

demo: install  ## the whole line on the bundled objects
	$(BIN)/python -m pipelines.line --preset demo

evaluate: install  ## after make demo: both trainings of the aligner, then every table of the evaluation and its report
	$(BIN)/python -m pipelines.pretrain --preset demo
	$(BIN)/python -m pipelines.finetune --preset demo
	$(BIN)/python -m pipelines.evaluate --preset demo

ui: install  ## the Dagster UI on http://127.0.0.1:3000
	$(BIN)/dagster dev -w workspace.yaml

test: install  ## the tests
	$(BIN)/python -m pytest -m "not slow"

test-slow: install  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

smoke-online: install  ## with a network: 20 real objects of every source, and the real encoder
	$(BIN)/python -m pipelines.smoke_online --preset paper --store data/smoke

lint: install  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy gap3d render pipelines assets_defs benchmarks

bench: install  ## the tables of docs/numbers.md; some, or quickly: python -m benchmarks --help
	$(BIN)/python -m benchmarks

versions: install  ## record that the stages' sources are as they are meant to be
	$(BIN)/python -m pipelines.versions

lock: install  ## write constraints.txt from the environment
	$(BIN)/pip freeze --exclude-editable | sed -E 's/\+cpu$$//' > constraints.txt

clean:  ## remove the environment and the demo's collection; other collections and raw files stay
	rm -rf .venv data/store/demo
