# make demo    set up .venv, make a small synthetic biobank, run the main job on it, print the report's path
# make test    set up .venv, then everything that CI checks
# make studies the slow tests: every study of configs/hs_mice, and one on shuffled labels
# make docs    build the documentation site into _docs/
# make fix     format, export and clean the notebooks (before a commit)

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
NEWEST := .venv-newest

export MPLBACKEND = Agg

.PHONY: setup demo test docs fix notebooks clean-check unit studies newest readme clean

setup: $(VENV)/.ready

# Compiled once here, for all the programs that the tests start.
$(VENV)/.ready: settings.ini setup.py constraints.txt
	@echo "== setting up $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@UV_COMPILE_BYTECODE=1 scripts/install.sh $(VENV) -c constraints.txt -e '.[dev,docs]'
	@touch $@

demo: setup
	@$(BIN)/ukbmm demo --out demo

test: setup clean-check notebooks docs newest unit

# The exported library and the committed notebooks are in step, and the notebooks are clean.
clean-check: setup
	@echo "== notebooks formatted and clean, exported code in step"
	@$(BIN)/ruff check nbs tests scripts benchmarks setup.py
	@$(BIN)/ruff format --check nbs tests scripts benchmarks setup.py
	@$(BIN)/nbdev_export
	@$(BIN)/nbdev_clean
	@$(BIN)/python scripts/build_readme.py
	@$(BIN)/ruff check --isolated --select F401 ukbmm
	git diff --exit-code -- nbs ukbmm README.md
	test -z "$$(git status --porcelain -- nbs ukbmm README.md)"  # nothing exported is missing in git

# One thread for each of two notebooks: threads of two programs on two cores wait for each other.
notebooks: setup
	@echo "== every notebook runs"
	@OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --timing

# Two processes, each with a thread; the tests of a file stay together, with what they have prepared.
unit: setup
	@echo "== tests"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --cov --cov-report=term --durations=20

# The studies of real data that CI has no time for: minutes each.
studies: setup
	@$(BIN)/python -m pytest -m slow

docs: setup
	@echo "== documentation site"
	@$(BIN)/python scripts/build_docs.py

# The library is not pinned: it must import and train with the newest fastai and fastcore too.
newest: setup
	@echo "== the newest fastai and fastcore"
	@test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	@scripts/install.sh $(NEWEST) -U 'torch==2.13.0' fastai fastcore .
	@cd tests && ../$(NEWEST)/bin/python integration/train_step.py

fix: setup
	@$(BIN)/ruff check --fix -q nbs tests scripts benchmarks setup.py
	@$(BIN)/ruff format -q nbs tests scripts benchmarks setup.py
	@$(BIN)/nbdev_export
	@$(BIN)/nbdev_clean
	@$(BIN)/python scripts/build_readme.py

readme: setup
	@$(BIN)/python scripts/build_readme.py

clean:
	rm -rf $(VENV) $(NEWEST) _proc _docs demo build *.egg-info
