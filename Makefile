# normbench: `make help` lists what there is. Needs Python 3.11 to 3.13, C and C++ compilers, make.
# PYTHON=… chooses the Python that .venv is made with (and the one `make gpu` runs on).

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?=
BIN := .venv/bin
SUITE ?= suites/small-batch.yaml
TESTS ?=
UPDATE ?=
TRITON ?= 3.6.0
WORKERS ?= logical
GPU_SUITES ?= small-batch throughput-cuda throughput-cuda-sweep memory-cuda
PYTEST := $(BIN)/python -m pytest --timeout 900
PARALLEL := -n $(WORKERS) --maxprocesses 8 --dist worksteal

# ---- what users run ----

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: .venv/run ## run suites/small-batch.yaml on the CPU and build the site (continues where it was stopped)
	@echo "Running $(SUITE). Ctrl-C stops; finished cells are kept and 'make demo' continues."
	@# A failed cell (1) is a result to look at; from 2 on there may be no records.
	code=0; $(BIN)/normbench run --device cpu --retry-failed $(SUITE) || code=$$?; \
	if [ $$code -lt 2 ]; then \
	  $(BIN)/normbench site build --out site; \
	  echo "Open this file in a browser: $(CURDIR)/site/index.html"; \
	fi; \
	exit $$code

.PHONY: site
site: .venv/run ## build the leaderboard from the records in results/ into site/
	$(BIN)/normbench site build --out site
	@echo "Open this file in a browser: $(CURDIR)/site/index.html"

.PHONY: gpu
gpu: ## on a CUDA machine: tests, kernels against their peers, costs, suites/small-batch.yaml, in stages (docs/gpu.md)
	@$(call find-gpu-python); exec "$$python" scripts/gpu.py $(if $(STAGE),--stage $(STAGE))

# ---- what developers run ----

.PHONY: test
test: .venv/dev ## all tests but the slow ones; TESTS=tests/cli runs a part
	@# tests/interpreter needs a process of its own: Triton interprets all kernels there, or none.
	code=0; \
	$(PYTEST) $(PARALLEL) -m "not slow" $(or $(TESTS),--ignore=tests/interpreter) || code=$$?; \
	$(if $(TESTS),,$(PYTEST) $(PARALLEL) -m "not slow" tests/interpreter || code=$$?;) \
	exit $$code

.PHONY: test-slow
test-slow: .venv/dev ## the tests that take minutes
	$(PYTEST) $(PARALLEL) -m "slow and not matrix" $(TESTS)

.PHONY: test-matrix
test-matrix: .venv/dev ## every method trains ten steps in a model of every timm family: hours; TESTS="-k 'group_norm'"
	$(PYTEST) $(PARALLEL) -m matrix tests/surgery/test_every_method_trains.py $(TESTS)

.PHONY: lint
lint: .venv/dev ## ruff, formatting, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files -z | xargs -0 $(BIN)/codespell

.PHONY: format
format: .venv/dev ## let ruff fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: types
types: .venv/dev ## mypy --strict over the package, kernels/ and leaderboard/ at their installed names
	$(BIN)/python scripts/check_types.py

.PHONY: check
check: lint types test ## everything CI runs

.PHONY: kernels-report
kernels-report: .venv/dev ## registers, shared memory and width of accesses of every fused kernel; UPDATE=1 accepts them
	$(BIN)/python scripts/kernel_report.py $(if $(UPDATE),--update)

.PHONY: test-old-triton
test-old-triton: .venv/dev ## the kernels' tests with another Triton, in an environment of its own; TRITON=3.6.0
	@# In front of everything that .venv has: what else there is stays as it is.
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --upgrade \
	  --target build/triton-$(TRITON) triton==$(TRITON)
	export PYTHONPATH=$(CURDIR)/build/triton-$(TRITON); \
	$(PYTEST) $(PARALLEL) -m "not slow" tests/kernels; \
	$(PYTEST) $(PARALLEL) -m "not slow" tests/interpreter

.PHONY: bench
bench: .venv/dev ## benchmarks/: layers against torch's, costs against timm's protocol, the harness against a bare loop, start and swap
	$(BIN)/python -m pytest benchmarks -p no:xdist -m 'not slow' -s

.PHONY: bench-layers
bench-layers: .venv/dev ## time every method's layer against batch norm, and SyncBN's communication; the records go to results/
	mkdir -p results
	rm -f results/layers.json
	@# A failed benchmark leaves the records of the others.
	code=0; $(BIN)/python -m pytest benchmarks/layers/test_layer_costs.py benchmarks/layers/test_sync_cost.py \
	  -p no:xdist -m 'not slow' -s --benchmark-json results/layers.json $(TESTS) || code=$$?; \
	if [ -s results/layers.json ]; then $(BIN)/normbench import-benchmark results/layers.json; fi; \
	exit $$code

# ---- generated files that are committed ----

.PHONY: catalogue
catalogue: .venv/run ## refresh leaderboard/catalogue.json and docs/catalogue.md from the methods
	$(BIN)/normbench methods --json > leaderboard/catalogue.json.new
	mv leaderboard/catalogue.json.new leaderboard/catalogue.json
	$(BIN)/normbench methods --markdown > docs/catalogue.md.new
	mv docs/catalogue.md.new docs/catalogue.md

.PHONY: gpu-cells
gpu-cells: .venv/run ## refresh the cells that `make gpu` reads from the suites
	mkdir -p suites/cells
	for suite in $(GPU_SUITES); do \
	  $(BIN)/normbench suite cells suites/$$suite.yaml --out suites/cells/$$suite.cells.jsonl.gz; \
	done

.PHONY: constraints
constraints: .venv/dev ## resolve pyproject.toml anew into constraints.txt (all extras, newest versions)
	mkdir -p build
	$(BIN)/python -m pip install --dry-run --ignore-installed --quiet --report build/report.json '.[dev,onnx,ray,gpu,browser]'
	$(BIN)/python scripts/constraints.py build/report.json

.PHONY: clean
clean: ## remove .venv, build/ and site/, never records
	rm -rf .venv build site *.egg-info

# ---- the environment; a stamp each, written last, so that a stopped installation starts again ----

.venv/run: pyproject.toml constraints.txt | .venv/bin/pip
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/dev: pyproject.toml constraints.txt | .venv/bin/pip
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ .venv/run

.venv/bin/pip:
	@$(call find-python); echo "Making .venv with $$python"; "$$python" -m venv --clear .venv

define find-python
for python in $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11); do \
  version=$$("$$python" -c 'import sys; print((3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || true); \
  [ "$$version" = True ] || continue; \
  "$$python" -c 'import ensurepip, venv' 2>/dev/null && break; \
  echo "$$python cannot make virtual environments: install its venv module (Debian: python3-venv)." >&2; exit 2; \
done; \
if [ "$$version" != True ]; then \
  echo "normbench needs Python 3.11, 3.12 or 3.13$(if $(PYTHON),; $(PYTHON) is not,; none was found. PYTHON=/path/to/python names one)." >&2; exit 2; \
fi
endef

define find-gpu-python
for python in $(if $(PYTHON),"$(PYTHON)",python3 python $(BIN)/python); do \
  "$$python" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("torch"))' 2>/dev/null && break; \
  python=; \
done; \
if [ -z "$$python" ]; then \
  echo "make gpu needs a Python with torch, timm, numpy, pyarrow and pytest; PYTHON=/path/to/python names one." >&2; exit 2; \
fi
endef
