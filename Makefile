# make demo   create the environment, then build the sample corpus, check it, write its pages and stream it
# make test   the default tests
# make check  lint, format and types
# make conformance  test that other tools can read our output, each in its own environment; JSON=FILE keeps the table
# make bench  the benchmarks, next to other tools, in one run each; PHOTOS=DIR for real photographs, whose results are kept;
#             SHARED=DIR for real lengths and texts (needs mistral-common and sentencepiece, installed with --no-deps);
#             SPDL's decoder needs FFmpeg's shared libraries; bench-gpu: how long a GPU training step waits for data
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/demo

.PHONY: demo test test-all conformance check bench bench-gpu clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python shards/sample/serve.py --port 8765 -- $(BIN)/vila-data run recipes/sample.yaml --out $(OUT)
	$(BIN)/vila-data check $(OUT)
	$(BIN)/vila-data preview $(OUT) --out $(OUT)-preview.html
	$(BIN)/vila-data bench recipes/sample.yaml --run $(OUT) --seconds 3
	@echo "open these files: $(OUT)/report.html, $(OUT)/card.md, $(OUT)-preview.html"

test: $(VENV)/.installed
	$(BIN)/pytest

test-all: $(VENV)/.installed
	$(BIN)/pytest -m "slow or not slow"

conformance: $(VENV)/.installed
	$(BIN)/python tests/conformance/make_environments.py
	VILA_DATA_CONFORMANCE=all VILA_DATA_CONFORMANCE_JSON=$(JSON) $(BIN)/pytest -m "slow or not slow" tests/conformance

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/download.py $(if $(PHOTOS),--photos $(PHOTOS) --json benchmarks/results/download.json)
	$(if $(PHOTOS),$(BIN)/python benchmarks/lay_down.py --photos $(PHOTOS) --json benchmarks/results/lay_down.json && $(BIN)/python docs/costs.py)
	$(BIN)/python benchmarks/pictures.py $(if $(PHOTOS),--photos $(PHOTOS)) --json benchmarks/results/pictures.json
	$(BIN)/python benchmarks/score.py --json benchmarks/results/score.json
	$(BIN)/python benchmarks/score.py --backend transformers --random-vit-b-32 --pairs 48 --repeats 3 --records \
	  --json benchmarks/results/score.json
	$(BIN)/python benchmarks/blend.py --json benchmarks/results/blend.json
	$(BIN)/python benchmarks/encode.py $(if $(SHARED),--shared $(SHARED) --json benchmarks/results/encode.json)
	$(if $(SHARED),$(BIN)/python benchmarks/packing.py --shared $(SHARED) --json benchmarks/results/packing.json)

	$(BIN)/python benchmarks/shuffle.py --json benchmarks/results/shuffle.json
	$(BIN)/python benchmarks/search.py --json benchmarks/results/search.json
	$(BIN)/python benchmarks/opening.py --json benchmarks/results/opening.json
	PYTHON=$(BIN)/python sh benchmarks/make_peers_env.sh
	$(BIN)/python benchmarks/stream.py $(if $(PHOTOS),--photos $(PHOTOS) --json benchmarks/results/stream.json)
	$(BIN)/python benchmarks/limit.py $(if $(PHOTOS),--photos $(PHOTOS) --json benchmarks/results/limit.json)
	$(BIN)/python benchmarks/stream_memory.py $(if $(PHOTOS),--photos $(PHOTOS) --json benchmarks/results/stream_memory.json)
	$(BIN)/python benchmarks/workers.py $(if $(PHOTOS),--photos $(PHOTOS) --json benchmarks/results/workers.json)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/learning.py --json benchmarks/results/learning.json

bench-gpu: $(VENV)/.installed
	$(BIN)/python benchmarks/gpu_stream.py $(if $(PHOTOS),--photos $(PHOTOS)) --json benchmarks/results/gpu_stream.json
	$(BIN)/python benchmarks/score.py --backend transformers --random-vit-l-336 --json benchmarks/results/gpu_score.json

clean:
	rm -rf $(VENV) .venvs runs .mypy_cache .ruff_cache .pytest_cache
