# make demo, make test: all a fresh machine needs is Python 3.11 or newer, git and make.
PYTHON ?= python3
BIN := .venv/bin
PACKAGES := layers nets prototxt_like tools

.PHONY: setup demo demo-train demo-scnet test test-slow lint docs bench gpu clean

setup: .venv/installed
.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test,dev]"
	touch $@

demo: setup
	$(BIN)/cortado demo

demo-train: setup
	$(BIN)/cortado demo_train

demo-scnet: setup
	$(BIN)/cortado demo_scnet

test: lint
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: setup .venv/docs
	$(BIN)/python -m pytest -n 2 -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/mypy && mkdir -p build/mypy/cortado  # mypy does not see setup.cfg's package_dir: show it the tree as installed
	ln -sfn $(addprefix $(CURDIR)/,$(wildcard cortado/*.py) cortado/py.typed cortado/pycaffe $(PACKAGES)) build/mypy/cortado
	MYPYPATH=build/mypy $(BIN)/mypy -p cortado

docs: setup .venv/docs
	OMP_NUM_THREADS=1 $(BIN)/python docs/generate.py build/docs
	$(BIN)/python -m sphinx -q -W -j auto -c docs -d build/docs/doctrees build/docs/source build/docs/html

.venv/docs: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	touch $@

bench: setup
	$(BIN)/python -m pytest benchmarks --benchmark-only

# On a machine with a GPU, without an install: $(PYTHON) has torch, CuPy, pytest, if possible torchvision.
GPU_WORKERS = $(shell $(PYTHON) -c "import xdist; print('-n 4')" 2>/dev/null)
GPU_SECONDS ?= 220
RESULTS ?= benchmarks/results
gpu: export PYTHONPATH = .
gpu:
	@status=0; \
	timeout -s INT -k 10 $(GPU_SECONDS) $(PYTHON) -m pytest tests/gpu tests/cuda -m gpu -W default $(GPU_WORKERS) || status=$$?; \
	$(PYTHON) -m benchmarks --device cuda --write --seconds $(GPU_SECONDS) --results $(RESULTS) || status=$$?; \
	exit $$status

clean:
	rm -rf .venv build dist demo_out *.egg-info
