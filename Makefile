# Every target builds what it needs: `make demo` and `make test` work in a fresh clone with Python >= 3.10 and make.
# `make PYTHON=python3.12 test` chooses the interpreter. Stamp files keep a second run from installing again.

PYTHON ?= python3
SECONDS ?= 60
VENV   := .venv
VENV5  := .venv-tf5
VENVC  := .venv-clients
BIN    := $(VENV)/bin
BIN5   := $(VENV5)/bin
BINC   := $(VENVC)/bin
VENVM  := .venv-mlserver
PACKAGES := examples/javascript/node_modules
TESTS5 := $(wildcard tests/test_export*.py tests/test_zoo*.py) tests/test_support.py

# Tests run in two processes of one thread each: more threads only fight over the same cores. Each process begins with a run of
# neighbours (worksteal), which share their models and exports. Clients have targets of their own.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
PYTEST   := -m pytest -n 2 --dist worksteal
OTHERS   := --ignore=tests/clients
ALONE    := $(filter-out $(addprefix bench/,guard.py moved.py record.py runtime_forms.py work.py),$(wildcard bench/*.py))

.DEFAULT_GOAL := help
.PHONY: help demo test pytest test5 test-all support stub screens docs fuzz lint format wheel release-check bench guard model clean picture clients servers javascript

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.package ## optimize the example model; installs no torch
	$(BIN)/axformer-onnx optimize models/nli-mini/model.onnx --task mnli -o run/nli-mini --overwrite

test: $(VENV)/.tests ## lint, type-check, all tests; of the matrix (architecture x file) the sample of this commit
	$(MAKE) --no-print-directory --jobs 2 lint pytest

# Beside each other: the type checker keeps one core busy for a minute.
pytest: $(VENV)/.tests
	$(TEST_ENV) $(BIN)/python $(PYTEST) $(OTHERS)

test5: $(VENV5)/.tests ## the export tests again, with transformers 5 and without optimum, sampled alike
	$(TEST_ENV) $(BIN5)/python $(PYTEST) $(TESTS5)

clients: $(VENVC)/.tests ## real clients read what deploy writes; ONNX_RUNTIMES=all: every version since 1.18, not only those that targets name
	$(TEST_ENV) $(BINC)/python -m pytest tests/clients

servers: $(VENVM)/.tests ## MLServer and serve under load, with clients that people use (Python below 3.13)
	$(TEST_ENV) EXPORTER=$(CURDIR)/$(BIN)/axformer-onnx $(VENVM)/bin/python -m pytest tests/test_mlserver.py || test $$? -eq 5  # 5: there is no MLServer

javascript: $(VENV)/.tests $(PACKAGES)/.installed ## Node and a browser read what deploy writes for them (Node 20 or later, npm; Chromium)
	$(TEST_ENV) $(BIN)/python -m pytest tests/clients/test_node.py tests/clients/test_browser.py

test-all: lint $(VENV5)/.tests ## both with the whole matrix (an hour)
	$(TEST_ENV) $(BIN)/python $(PYTEST) --whole-matrix $(OTHERS)
	$(TEST_ENV) $(BIN5)/python $(PYTEST) --whole-matrix $(TESTS5)

support: $(VENV)/.tests $(VENV5)/.tests ## measure the support matrix (ONLY=family,..: of these alone) and write docs/support.md
	$(TEST_ENV) $(BIN5)/python tests/support.py --only "$(ONLY)"
	$(TEST_ENV) $(BIN)/python tests/support.py docs/support.md --only "$(ONLY)"

stub: $(VENV)/.tests ## write the package's face for type checkers, axformer_onnx/__init__.pyi, from the options
	$(BIN)/python tests/stub.py
	$(BIN)/ruff format axformer_onnx/__init__.pyi

picture: demo ## draw the README's picture, docs/frontier.svg, from the run of `make demo`
	$(BIN)/python docs/picture.py run/nli-mini docs/frontier.svg

screens: $(VENV)/.tests ## run the commands of the documentation and write what they say
	OMP_NUM_THREADS=1 $(BIN)/python tests/screens.py

docs: $(VENV)/.docs ## build the documentation into build/docs; a warning is an error
	$(BIN)/sphinx-build -b html --fresh-env --fail-on-warning --keep-going --quiet docs build/docs

fuzz: $(VENV)/.tests ## fuzz the loader and the plan reader side by side, SECONDS=60
	$(BIN)/python -m pip install --quiet --group fuzz
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/run.py $(SECONDS)

lint: $(VENV)/.tests ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy models/build_nli_mini.py
	$(BIN)/mypy tests/typed_user.py

format: $(VENV)/.tests ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(VENV)/.package ## build the wheel into dist/
	rm -f dist/*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

release-check: $(VENV)/.package ## build sdist and wheel, use both on every Python that is here (PYTHONS="path ..": on these, too)
	$(BIN)/python -m pip install --quiet --group release
	$(BIN)/python tests/release.py $(addprefix --with ,$(PYTHONS))

bench: $(VENV)/.tests ## the benchmarks that need no arguments: ratios measured in one run
	set -e; for script in $(ALONE); do echo "== $$script"; $(BIN)/python $$script; done

guard: $(VENV)/.tests ## what this project is worth here, against the last recorded on a like machine (docs/benchmarks.md)
	status=0; $(BIN)/python bench/guard.py --json run/guard.json || status=1; \
	$(BIN)/python bench/moved.py run/guard.json && exit $$status

model: $(VENV)/.tests ## train the example model again (20 minutes or more)
	$(BIN)/python models/build_nli_mini.py

clean: ## remove the environments and everything that was built
	rm -rf $(VENV) $(VENV5) $(VENVC) $(VENVM) $(PACKAGES) run dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis

# -- environments ------------------------------------------------------------------------------------------------

$(VENV)/.package: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.tests: $(VENV)/.package .ci/install-torch
	bash .ci/install-torch $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[export,graphsurgeon,ray,serve]" "transformers>=4.57,<5" \
		--group test --group browser --group lint --group bench
	touch $@

$(VENV)/.docs: $(VENV)/.package
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

$(VENV5)/.tests: pyproject.toml .ci/install-torch
	test -x $(BIN5)/python || $(PYTHON) -m venv $(VENV5)
	$(BIN5)/python -m pip install --quiet --upgrade "pip>=25.1"
	bash .ci/install-torch $(BIN5)/python
	$(BIN5)/python -m pip install --quiet --editable . "transformers>=5" "onnxscript>=0.5" --group test
	touch $@

# Libraries that servers and programs read graphs with; their versions of protobuf and transformers are not those of the tests.
$(VENVC)/.tests: pyproject.toml .ci/install-torch
	test -x $(BINC)/python || $(PYTHON) -m venv $(VENVC)
	$(BINC)/python -m pip install --quiet --upgrade "pip>=25.1"
	bash .ci/install-torch $(BINC)/python
	$(BINC)/python -m pip install --quiet --editable . "transformers>=4.57,<5" "onnxscript>=0.5" --group clients --group test
	touch $@

$(VENVM)/.tests: pyproject.toml
	test -x $(VENVM)/bin/python || $(PYTHON) -m venv $(VENVM)
	$(VENVM)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(VENVM)/bin/python -m pip install --quiet --editable ".[serve]" --group mlserver
	touch $@

$(PACKAGES)/.installed: examples/javascript/package-lock.json examples/javascript/package.json examples/javascript/.npmrc
	cd examples/javascript && npm ci
	touch $@
