PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# test processes of one thread each; one more than two cores, since a test often waits
TEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist loadgroup

.PHONY: demo test test-all lint site install clean

demo: $(INSTALLED)
	$(BIN)/mate-edge demo

test: lint
	$(TEST)

test-all: lint
	$(TEST) -m ""

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

site: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "mate-edge needs Python 3.10 or newer: make PYTHON=python3.x"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "cannot make $(VENV): apt-get install python3-venv"; exit 2; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[train,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info
