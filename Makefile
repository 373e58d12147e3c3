# `make demo` and `make test` set up what they need, in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow lint benchmark clean

demo: .venv/installed
	$(BIN)/python -m pllava.nano demo

test: .venv/installed
	$(BIN)/python -m pytest

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

lint: .venv/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

benchmark: .venv/installed
	$(BIN)/python benchmarks/imports.py
	$(BIN)/python benchmarks/convert.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/vision_tower.py
	$(BIN)/python benchmarks/train_step.py

.venv/installed: setup.cfg
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test,dev]'
	touch $@

clean:
	rm -rf .venv demo.mp4 nano-training
