# Two commands do everything on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
# The environment in .venv is made once and reused.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal --durations 15

.PHONY: demo test test-all browser fuzz coverage lint docs bench clean

demo: .venv/ready
	$(BIN)/headwater explain examples/espresso.jpg examples/tabby.jpg --model efficientnet-lite0 --out demo

test: lint
	$(PYTEST) -m 'not full'

test-all: lint
	$(PYTEST)

browser: .venv/ready-dev
	npm install --silent --no-audit --no-fund --prefix .local/browser playwright-core@1.65.1 axe-core@4.14.1 \
		onnxruntime-web@1.30.0
	PATH="$(CURDIR)/$(BIN):$$PATH" node tests/browser/report.mjs --python $(BIN)/python
	PATH="$(CURDIR)/$(BIN):$$PATH" node tests/browser/page.mjs --python $(BIN)/python
	PATH="$(CURDIR)/$(BIN):$$PATH" node tests/browser/exported.mjs --python $(BIN)/python

fuzz: .venv/ready-dev
	$(BIN)/python -m fuzz --count 10000 --seed 0 --workers $(WORKERS) --out docs/results/fuzz.md

coverage: .venv/ready-dev
	$(PYTEST) -m 'not full' --cov headwater --cov-branch --cov-report term

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/ready-dev
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build

bench: .venv/ready-dev
	$(BIN)/pip install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.speed --arch resnet18 resnet50 resnet101 convnext_tiny efficientnet_b0 vit_b_16 \
		--dtype float32 bfloat16 --runs 3 --out docs/results/speed.md
	$(BIN)/python -m benchmarks.measure

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "headwater needs Python 3.11 or newer; try: make PYTHON=python3.11")'
	@echo "making the environment in .venv: some minutes, with PyTorch's 5 GB"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[imagenet]'
	@touch $@

.venv/ready-dev: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv demo docs/_build
