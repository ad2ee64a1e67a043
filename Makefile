# Each target makes the virtual environment first, if it is missing or older
# than what it is made of. Only Python (3.11 or newer) and pip are needed.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHONS ?= python3.11 python3.12 python3.13 python3

.PHONY: help demo demo-transfer demo-roberta backbone test test-fast test-long fuzz lint clean

help:
	@echo 'make demo       the method end to end on the embedded benchmark'
	@echo '                (5 seeds, some 5 minutes on 2 cores) -> demo/'
	@echo 'make demo-transfer  prompts on other tasks and on another backbone'
	@echo '                (3 seeds, under 20 minutes) -> demo-transfer/'
	@echo "make demo-roberta  an encoder's prompts on a text-to-text model"
	@echo '                (3 seeds, under 20 minutes) -> demo-roberta/'
	@echo 'make backbone   pretrain the demo backbones anew, under two hours'
	@echo 'make test       every test but those of test-long'
	@echo 'make test-fast  the tests that take less than about five seconds'
	@echo 'make test-long  a run killed at ten moments: some minutes'
	@echo 'make fuzz       20,000 damaged files per reader, about half an hour'
	@echo 'make lint       ruff and mypy'
	@echo 'make clean      remove build leftovers and caches (keeps results)'

demo: $(STAMP)
	$(BIN)/python -m mpt_jax.pipeline --gin_file=gin_configs/runs/demo.gin \
	  --gin.MODEL_DIR="'demo'"
	$(BIN)/python -m mpt_jax.transfer all \
	  --gin_file=gin_configs/runs/demo_page.gin --tfds_data_dir=demo/data \
	  --gin.MODEL_DIR="'demo/transfer'"
	@$(BIN)/python -m mpt_jax.pipeline --gin_file=gin_configs/runs/demo.gin \
	  --gin.MODEL_DIR="'demo'"

demo-transfer: $(STAMP)
	$(BIN)/python -m mpt_jax.transfer all \
	  --gin_file=gin_configs/runs/demo_transfer.gin \
	  --gin.MODEL_DIR="'demo-transfer'"

demo-roberta: $(STAMP)
	$(BIN)/python -m mpt_jax.transfer all \
	  --gin_file=gin_configs/runs/demo_roberta.gin \
	  --gin.MODEL_DIR="'demo-roberta'"

backbone: $(STAMP)
	$(BIN)/python -m mpt_jax.train \
	  --gin_file=gin_configs/runs/pretrain_demo.gin \
	  --gin.MODEL_DIR="'pretrained'"
	$(BIN)/python -m tasks.offline.ship pretrained
	$(BIN)/python -m mpt_jax.train \
	  --gin_file=gin_configs/runs/pretrain_demo_small.gin \
	  --gin.MODEL_DIR="'pretrained-small'"
	$(BIN)/python -m tasks.offline.ship pretrained-small \
	  --out tasks/offline/demo_small_backbone
	$(BIN)/python -m mpt_jax.train \
	  --gin_file=gin_configs/runs/pretrain_demo_large.gin \
	  --gin.MODEL_DIR="'pretrained-large'"
	$(BIN)/python -m tasks.offline.ship pretrained-large \
	  --out tasks/offline/demo_large_backbone --large
	$(BIN)/python -m tasks.offline.pretrain_masked \
	  tasks/offline/demo_roberta_backbone

test: $(STAMP)
	$(BIN)/python -m pytest

test-fast: $(STAMP)
	$(BIN)/python -m pytest -m 'not slow'

test-long: $(STAMP)
	$(BIN)/python -m pytest -m long

fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d \
	  -exec rm -rf {} +

$(STAMP): setup.py constraints.txt
	@if ! $(BIN)/python -m pip --version > /dev/null 2>&1; then \
	  found=; \
	  for python in $(PYTHONS); do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	        > /dev/null 2>&1; then \
	      found=$$python; break; \
	    fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo 'mpt_jax needs Python 3.11 or newer, and none of' \
	      '$(PYTHONS) is; give yours as: make PYTHONS=/path/to/python' >&2; \
	    exit 2; \
	  fi; \
	  echo "making $(VENV) with $$found"; \
	  $$found -m venv $(VENV) || { \
	    $$found -m venv --without-pip $(VENV) && \
	    $$found -m pip --python $(BIN)/python install --quiet pip; \
	  } || exit 2; \
	fi
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	@touch $@
