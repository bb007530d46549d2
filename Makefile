# `make demo` and `make test` set up everything they need in .venv; `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?= -n auto --dist worksteal

.DEFAULT_GOAL := help
.PHONY: wheels sanitize bail-outs bench-xen help man demo test guests lint format samples bench clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

# Made whole or not at all: what an earlier try left, or a Python that has gone since, is begun anew.
$(VENV)/.made $(VENV)/bin/python &:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; try make PYTHON=python3.13" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) comes without venv and ensurepip here; on Debian: apt install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "$(PYTHON) -m venv $(VENV)" && rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); }
	@touch $(VENV)/.made

# What the compiled core is made of: an installation is renewed with it.
CORE := $(wildcard hvcore/cpu/core/*.[ch]) scripts/backend.py scripts/compile_core.py setup.py

$(VENV)/.run: $(VENV)/.made pyproject.toml $(CORE)
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml $(CORE)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test,dev]'
	@touch $@ $(VENV)/.run

demo: $(VENV)/.run ## Set up, then boot the bundled sample guest and talk to it
	@guest=$$($(BIN)/python -m domainbuilder.guests hello) && \
	$(BIN)/domainbuilder launch "$$guest" --memory 32 --cmdline 'ticks=3' --timeout 60 \
	    --expect 'hello> ' --send 'about\n' --expect 'hello> ' --send 'halt\n' && \
	echo && echo "That was a Xen PV kernel. Talk to it yourself (Ctrl-] leaves):" && \
	echo "  $(BIN)/domainbuilder launch $$guest"

test: $(VENV)/.dev ## Set up, fetch the real kernels where there is a network, run every test
	@$(BIN)/python scripts/guests.py || [ "$$CI" != true ]
	$(BIN)/pytest $(PYTEST_ARGS)

guests: $(VENV)/.made ## Fetch the real kernels out of Debian's packages into .cache (no root)
	$(BIN)/python scripts/guests.py

lint: $(VENV)/.dev ## ruff, mypy --strict and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Format the Python code and sort its imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --select I --fix .

samples: $(VENV)/.dev ## Rebuild the bundled sample guests from samples/, byte for byte
	$(BIN)/python samples/build.py
	$(BIN)/python samples/bundle.py

man: $(VENV)/.run ## Make the man pages, in build/man; a plain install has them
	$(BIN)/python scripts/manpages.py build/man

bench: $(VENV)/.dev ## Measure what things cost; prints, and judges nothing
	$(BIN)/python -m benchmarks

# XEN32: a Xen built with CONFIG_PV32, which Debian's is not.
bench-xen: $(VENV)/.dev ## Xen's services and Debian's boots under real Xen in QEMU and here: fills and draws the tables of docs/64bit.md
	$(BIN)/python scripts/bench_services.py --runs 3 --json .cache/bench-services.json
	$(if $(XEN32),$(BIN)/python scripts/bench_services.py --runs 3 --width 32 --xen $(XEN32) --json .cache/bench-services-32.json)
	$(BIN)/python scripts/bench_xen.py --runs 3 --json .cache/bench-bookworm.json
	$(BIN)/python scripts/bench_xen.py --runs 3 --release trixie --json .cache/bench-trixie.json
	$(BIN)/python scripts/plot_bench.py $(patsubst %,.cache/bench-%.json,services $(if $(XEN32),services-32) bookworm trixie)

# FUZZ_SECONDS of random acts, from FUZZ_SEED on, before the tests.
sanitize: $(VENV)/.dev ## The compiled core under AddressSanitizer and UBSan: random acts against Python, then its tests
	$(BIN)/python scripts/prove_core.py sanitize --seconds $(or $(FUZZ_SECONDS),120) --seed $(or $(FUZZ_SEED),1)

bail-outs: $(VENV)/.dev ## How often each lane of the compiled core was left to Python, line by line, by gcov
	$(BIN)/python scripts/prove_core.py bail-outs --seconds $(or $(FUZZ_SECONDS),120) --seed $(or $(FUZZ_SEED),1)

wheels: $(VENV)/.made ## Build the wheels into dist/: manylinux x86-64 and aarch64 by zig, and one without the compiled core
	for machine in x86_64 aarch64; do HVCORE_MACHINE=$$machine $(BIN)/python -m pip wheel --quiet --no-deps -w dist . || exit 1; done
	HVCORE_WITHOUT_CORE=1 $(BIN)/python -m pip wheel --quiet --no-deps -w dist .
	@for wheel in dist/*.whl; do echo "$$wheel: files by folder, and the compiled core"; \
	    $(BIN)/python -m zipfile --list "$$wheel" | tail -n +2 | \
	    sed -E 's, .*,,; /_core\.so$$/!s,/[^/]*$$,/,' | LC_ALL=C sort | uniq -c; done

clean: ## Remove what was built and installed; keeps the fetched kernels
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
