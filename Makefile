# make demo   install into .venv, then prune a network on real digits while it trains; under 5 minutes
# make test   the same environment, the whole test suite; random networks are the same ones each time, plain pytest draws new ones
# make lint   ruff: style and format        make types   mypy, over all three source folders
# make fuzz   N random networks, pruned and compared (make fuzz N=10000 FIRST=0): what fails is printed with its seed
# make gpu    what needs a CUDA device: tests, ratios of training steps, the check and the speed of pruned files; under 8 minutes
# make docs   the site, into site/: every page, without a warning
# make real   networks of torchvision and timm: an extra that is installed on its own
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := runs/demo

.PHONY: demo test lint types fuzz real gpu docs format clean

demo: $(STAMP)
	rm -rf $(DEMO)
	$(BIN)/prunec train-prune --preset digits -o $(DEMO)

test: $(STAMP)
	CI=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The folders do not lie as they are imported (passes/ is prunec.passes), and from here mypy would read
# prunec/ alone and be content: it is given a tree of links, and every source file must have been read.
types: $(STAMP)
	rm -rf build/types
	mkdir -p build/types/prunec
	ln -s "$(CURDIR)"/prunec/* "$(CURDIR)/passes" "$(CURDIR)/cli" build/types/prunec/
	cd build/types && "$(CURDIR)/$(BIN)/python" -m mypy --config-file "$(CURDIR)/pyproject.toml" --linecount-report lines -p prunec
	read=$$(grep -c ' prunec' build/types/lines/linecount.txt); there=$$(find prunec passes cli -name '*.py' | wc -l); \
	echo "mypy read $$read of $$there files"; test "$$read" -eq "$$there"

N ?= 1000
FIRST ?= 0
fuzz: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py $(N) --first $(FIRST) --shrink

# torchvision and timm ask for torch builds of their own: they are installed without what they ask for.
real: $(STAMP)
	$(BIN)/pip install -q -c constraints.txt pyyaml huggingface_hub
	$(BIN)/pip install -q --no-deps -c constraints.txt torchvision timm
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m real

gpu: $(STAMP)
	$(BIN)/python benchmarks/gpu.py

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "prunec needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $(STAMP)

# As for types: mkdocstrings reads a tree of links, as the package is imported.
docs: $(STAMP)
	$(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	rm -rf build/site
	mkdir -p build/site/prunec
	ln -s "$(CURDIR)"/prunec/* "$(CURDIR)/passes" "$(CURDIR)/cli" build/site/prunec/
	$(BIN)/python -m mkdocs build --strict -d build/pages

clean:
	rm -rf $(VENV) build dist runs *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
