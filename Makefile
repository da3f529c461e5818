# make demo, make test, make docs, make notebooks: each does all of its own set-up in .venv, once.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

# After the installation nothing may reach for a model hub.
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1

.PHONY: demo test docs notebooks
demo: $(STAMP)
	@$(OFFLINE) $(BIN)/regap demo --html demo.html

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(OFFLINE) $(BIN)/python -m pytest -n auto --maxprocesses=8 --dist=loadfile

docs: $(STAMP)
	@$(OFFLINE) $(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

# Runs all notebooks anew and keeps what they show.
notebooks: $(STAMP)
	@$(OFFLINE) $(BIN)/python -m tests.notebooks.runner

# -qq keeps pip's errors and drops its warnings, which are about the machine's package indexes.
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}: try make PYTHON=python3.11")'
	@echo "Installing into .venv, about two minutes, only the first time ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) --editable ".[tl,views,gguf,docs,dev]"
	@touch $@
	@echo "Installed."
