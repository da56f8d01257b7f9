# make demo, make test: all a fresh machine needs is Python 3.11 or newer, git and make.
PYTHON ?= python3
BIN := .venv/bin
PACKAGES := layers nets prototxt_like tools

.PHONY: setup demo test lint bench clean

setup: .venv/installed
.venv/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test,dev]"
	touch $@

demo: setup
	$(BIN)/cortado demo

test: lint
	$(BIN)/python -m pytest -n 2

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/mypy/cortado  # mypy does not see setup.cfg's package_dir: show it the tree as installed
	ln -sfn $(addprefix $(CURDIR)/,$(wildcard cortado/*.py) cortado/py.typed $(PACKAGES)) build/mypy/cortado
	MYPYPATH=build/mypy $(BIN)/mypy -p cortado

bench: setup
	$(BIN)/python -m pytest benchmarks --benchmark-only

clean:
	rm -rf .venv build dist demo_out *.egg-info
