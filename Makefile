PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test slow-tests test-lm-eval install train-mini

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# Installed once; pip itself finds out quickly that nothing has changed.
install: $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .

# The main job on the built-in model: about five minutes on two cores.
quickstart: install
	$(BIN)/umcompress apply quickstart -o runs/quickstart

# One thread: the models are tiny, and threads that wait for each other cost more than they bring.
test: $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

# What takes longer than the suite may: kills at random moments, the full scores of the built-in model.
slow-tests: $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	$(BIN)/python -m pytest -q -m slow

# Evaluation through lm-eval, with its own command line: `test` leaves it out, for it brings some 400 MB.
test-lm-eval: $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[test,lm-eval]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "slow or not slow" tests/test_lm_eval.py

# Train the built-in model from nothing (hours on two cores); resumes where it was stopped.
train-mini: install
	$(BIN)/python -m umcompress.evals.scenes.train --out runs/mini
