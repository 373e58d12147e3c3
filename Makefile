# `make demo` and `make test` set up what they need, in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow test-readme test-oldest test-lmms-eval lint benchmark clean

demo: .venv/installed
	$(BIN)/python -m pllava.nano demo

test: .venv/installed
	$(BIN)/python -m pytest

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

test-readme: .venv/installed
	$(BIN)/python -m pytest -m slow tests/cli/test_readme.py

test-oldest: .venv-oldest/installed
	.venv-oldest/bin/python -m pytest tests/model tests/video/test_video_processing.py \
		tests/checkpoints/test_loading.py tests/checkpoints/test_saving.py

test-lmms-eval: .venv/installed .venv-lmms-eval/installed
	PLLAVA_LMMS_EVAL_PYTHON=$(CURDIR)/.venv-lmms-eval/bin/python \
		$(BIN)/python -m pytest -m slow tests/eval/test_lmms_eval.py

lint: .venv/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

benchmark: .venv/installed
	$(BIN)/python benchmarks/imports.py
	$(BIN)/python benchmarks/convert.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/media_gate.py
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/evaluate.py

.venv/installed: setup.cfg
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test,dev]'
	touch $@

.venv-oldest/installed: setup.cfg
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --upgrade pip
	.venv-oldest/bin/python -m pip install --quiet --editable '.[test]' 'transformers==5.19.0'
	touch $@

.venv-lmms-eval/installed: setup.cfg
	$(PYTHON) -m venv .venv-lmms-eval
	.venv-lmms-eval/bin/python -m pip install --quiet --upgrade pip
	.venv-lmms-eval/bin/python -m pip install --quiet 'lmms-eval==0.7.3' 'filelock<4' --editable .
	touch $@

clean:
	rm -rf .venv .venv-oldest .venv-lmms-eval demo.mp4 nano-training
