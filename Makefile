# Everything runs in .venv, which these targets make by themselves. Needed: Python 3.11 or newer, and make.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
SOURCES := src tests
NUMERICS := constructions learners nn ops tasks uncover
PYTEST := $(BIN)/pytest -n 2 --dist worksteal

.PHONY: quickstart test lint types unit unit-torch end-to-end test-browser test-sanitized test-neon docs reproduce-quick clean

quickstart: .venv/installed ## Train, measure and write the report; prints the claims and where the page is
	$(BIN)/mesascope quickstart --out runs/quickstart --resume

test: lint types unit unit-torch end-to-end ## What continuous integration runs

lint: .venv/installed-dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: .venv/installed-dev
	$(BIN)/mypy

unit: .venv/installed-dev ## Coverage is that of the numerics by their own tests: it takes half as long again
	$(PYTEST) $(addprefix --cov=mesascope.,$(NUMERICS) predictor) --cov-report=term:skip-covered $(addprefix tests/,$(NUMERICS))
	$(PYTEST) $(addprefix --ignore=tests/,$(NUMERICS))

unit-torch: .venv/installed-dev ## The same tests without the native kernels; reports call none, annotations were checked with them
	MESASCOPE_NATIVE=0 JAXTYPING_DISABLE=1 $(PYTEST) --ignore=tests/report \
		--deselect=tests/test_strictness.py::test_shape_annotations_are_enforced

end-to-end: .venv/installed-dev ## The quickstart from nothing; fails unless every claim holds
	rm -rf runs/end-to-end
	$(BIN)/mesascope quickstart --out runs/end-to-end
	$(BIN)/python tests/check_claims.py runs/end-to-end/claims.json

test-browser: .venv/installed-dev ## Opens the report in a Chromium
	$(BIN)/pytest -m browser tests/browser

docs: .venv/installed-docs ## Builds the documentation into docs/_build; every warning is an error
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build
	@echo "documentation: docs/_build/index.html"

reproduce-quick: .venv/installed ## Every figure, with the reductions of the quick profile; goes on where it stopped
	$(BIN)/mesascope reproduce all --profile quick --out runs/quick --resume

# kernels without Python, at -O1 because the checks are many; cmake and a compiler are needed, .venv is not
test-sanitized: ## The kernels under AddressSanitizer and UndefinedBehaviorSanitizer, then under ThreadSanitizer
	cmake -S tests/native -B build/address -DMESASCOPE_OPTIMISATION=-O1 \
		-DCMAKE_CXX_FLAGS="-g1 -fsanitize=address,undefined -fno-sanitize-recover=all"
	cmake --build build/address
	build/address/kernels_test
	cmake -S tests/native -B build/thread -DMESASCOPE_OPTIMISATION=-O1 -DCMAKE_CXX_FLAGS="-g1 -fsanitize=thread"
	cmake --build build/thread
	TSAN_OPTIONS=halt_on_error=1 build/thread/kernels_test

test-neon: ## The kernels for ARM, emulated; needs g++-aarch64-linux-gnu and qemu-user
	cmake -S tests/native -B build/neon -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
		-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
	cmake --build build/neon
	qemu-aarch64 -L /usr/aarch64-linux-gnu build/neon/kernels_test

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "mesascope needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

# torch is named first and exactly: that is what finds the build for CPUs where it is at hand
.venv/installed: .venv/python pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*)
	$(BIN)/pip install "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install -c constraints.txt -e .
	@touch $@

# only what an extra names: installing the package again would build the kernels again
.venv/installed-%: .venv/installed
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["$*"], sep="\n")' > .venv/$*.txt
	$(BIN)/pip install -c constraints.txt -r .venv/$*.txt
	@touch $@

clean:
	rm -rf docs/_build .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
