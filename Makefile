# Everything runs in .venv, which is made on the first call. PYTHON chooses the interpreter (3.11 or later).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: install demo test test-all faults test-gpu fuzz shipped-model check clean
.DEFAULT_GOAL := install

install: $(STAMP)

# The stamp is renewed when what is to be installed changes, and not otherwise.
$(STAMP): pyproject.toml constraints-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit("jepamba needs Python 3.11 or later; run: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-dev.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-dev.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/jepamba demo

# Two processes of one thread each: most tests are too small for more threads. The order is tests/conftest.py's.
# Without bytecode, each process would compile every test again.
PYTEST = env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Every test but the sweeps and costly variants. Bound: 7 minutes of CPU time, which are 12 on slow cores; measured there: 11.
test: $(STAMP)
	$(PYTEST) -m "not slow"

# The sweeps as well: Triton's interpreter over many shapes, the faults of ranks, fuzzing.
test-all: $(STAMP)
	$(PYTEST)

# Twenty kills of one process and of two, and what they cost: some minutes.
faults: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults.py > docs/results/faults.md

# On a machine with a CUDA GPU, with the package and its dependencies in PYTHON.
test-gpu:
	PYTHONPATH=src $(PYTHON) -m pytest --noconftest tests/gpu tests/ops tests/test_decode_static.py

# Mutated files for every reader; what ended badly is named and can be run again (tests/fuzz/__main__.py).
fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz --replay --out docs/results/fuzz.md

# The model in the package. CORPUS=TEXT trains it first, 19 minutes on two cores (VAL=TEXT: held-out text, else a part of
# CORPUS); RUN is then its new folder, and otherwise a run or an artifact that is there.
RUN ?= runs/shipped
shipped-model: $(STAMP)
ifdef CORPUS
	$(BIN)/jepamba train cpu --data.train $(CORPUS) $(if $(VAL),--data.val $(VAL)) --out $(RUN)
endif
	$(BIN)/python tests/ship.py $(RUN)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
