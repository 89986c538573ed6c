# make demo   environment, then the sample corpus from metadata to shards, then the report
# make test   the default tests
# make check  lint, format and types
# make bench  the benchmarks, against peers, in one run each; PHOTOS=DIR for real photographs, whose results are kept;
#             SHARED=DIR for real lengths and texts (needs mistral-common and sentencepiece, installed with --no-deps)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/demo

.PHONY: demo test test-all check bench clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python shards/sample/serve.py --port 8765 -- $(BIN)/vila-data run recipes/sample.yaml --out $(OUT)
	$(BIN)/vila-data check $(OUT)

test: $(VENV)/.installed
	$(BIN)/pytest

test-all: $(VENV)/.installed
	$(BIN)/pytest -m "slow or not slow"

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/download.py $(if $(PHOTOS),--photos $(PHOTOS) --json benchmarks/results/download.json)
	$(BIN)/python benchmarks/score.py --json benchmarks/results/score.json
	$(BIN)/python benchmarks/score.py --backend transformers --random-vit-b-32 --pairs 48 --repeats 3 --records \
	  --json benchmarks/results/score.json
	$(BIN)/python benchmarks/blend.py --json benchmarks/results/blend.json
	$(BIN)/python benchmarks/encode.py $(if $(SHARED),--shared $(SHARED) --json benchmarks/results/encode.json)
	$(if $(SHARED),$(BIN)/python benchmarks/packing.py --shared $(SHARED) --json benchmarks/results/packing.json)

clean:
	rm -rf $(VENV) .venvs runs .mypy_cache .ruff_cache .pytest_cache
