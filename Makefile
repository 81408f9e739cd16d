PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: campaigns gpu-bench quickstart test slow-tests golden install train-mini

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# Installed once; pip itself finds out quickly that nothing has changed.
install: $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .

# The main job on the built-in model: about five minutes on two cores.
quickstart: install
	$(BIN)/umcompress apply quickstart -o runs/quickstart

# One thread a process: the models are tiny, and threads that wait for each other cost more than they bring.
# `make test ROOM=graph` runs the tests of one room, those in tests/graph.
test: $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist worksteal $(if $(ROOM),tests/$(ROOM))

# What takes longer than the suite may: kills at random moments, the full scores of the built-in model, lm-eval's own
# command line and `accelerate launch` in processes of their own.
slow-tests: $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	$(BIN)/python -m pytest -q -m slow

# Write anew what tests compare with: the command line's words, the schema of recipes, docs/support.md. Read the diff.
golden: $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	UMCOMPRESS_WRITE_GOLDEN=1 $(BIN)/python -m pytest -q tests/cli/test_cli_light.py tests/models/test_conformance_table.py
	git diff --stat -- tests/support/data docs/support.md

# Attacks by generated input: recipes, damaged folders, kills, tampered resumes, full disks. None may end in a traceback,
# and none may lose a run; each prints its figures. SHARE=100 does a hundredth of it.
SHARE ?= 1
campaigns: $(BIN)/python
	$(BIN)/python tests/campaigns/recipe_mutation.py --count $$((5000 / $(SHARE)))
	$(BIN)/python tests/campaigns/recipe_schema.py --count $$((5000 / $(SHARE)))
	$(BIN)/python tests/campaigns/damaged_folders.py --count $$((2000 / $(SHARE)))
	$(BIN)/python tests/campaigns/kills.py --count $$((200 / $(SHARE)))
	$(BIN)/python tests/campaigns/tampered.py --count $$((200 / $(SHARE)))
	$(BIN)/python tests/campaigns/full_disks.py --count $$((100 / $(SHARE)))

# What only a GPU shows, in under five minutes; says so where there is none.
gpu-bench: install
	$(BIN)/python benchmarks/gpu.py --record

# Train the built-in model from nothing (hours on two cores); resumes where it was stopped.
train-mini: install
	$(BIN)/python -m umcompress.evals.scenes.make_model.train --out runs/mini
