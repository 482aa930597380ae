# Everything runs in .venv with the exact versions of constraints.txt. A virtual environment of your own: VENV=path.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# The oldest stable-baselines3, torch and gymnasium that pyproject.toml admits.
OLDEST_SB3 := $(shell sed -n 's/.*"stable-baselines3>=\([0-9.]*\),.*/\1/p' pyproject.toml)
OLDEST_TORCH := $(shell sed -n 's/.*"torch>=\([0-9.]*\),.*/\1/p' pyproject.toml)
OLDEST_GYMNASIUM := $(shell sed -n 's/.*"gymnasium\[classic-control\]>=\([0-9.]*\),.*/\1/p' pyproject.toml)

.PHONY: demo test test-fast test-long coverage sb3-suite check-sb3-repo test-sb3-versions test-sb3-oldest test-sb3-newest test-oldest
.PHONY: gpu-check crash-test fuzz soak docs notebooks agents study study-mujoco tuned play
.PHONY: lint format typecheck benchmark dist clean

demo: $(VENV)/installed-core
	$(BIN)/simple-ddpg train

# Two processes, since two cores have to do; they steal tests from each other at the end.
test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not long"

# The same tests, and that they run 95 of 100 lines. Counting takes three quarters of the time again.
coverage: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not long" \
		--cov --cov-report=term-missing:skip-covered --cov-fail-under=95

test-fast: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m "not slow and not long"

# What takes a minute or more for one claim: kills, memory, simulations, compiled code of drawn settings, notebooks.
test-long: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m long

# The README's table of speeds; SBX, where it is installed: SBX_PYTHON=path of the Python of its environment.
benchmark: $(VENV)/installed-dev
	$(BIN)/simple-ddpg benchmark $(if $(SBX_PYTHON),--sbx-python $(SBX_PYTHON))

# On a machine with a GPU: what holds there, and how fast it is. The PyTorch of $(PYTHON) is used, whatever build it is.
gpu-check:
	$(PYTHON) -m venv --system-site-packages .venv-gpu
	grep -v '^torch==' constraints.txt > .venv-gpu/constraints.txt
	.venv-gpu/bin/python -m pip install -q -c .venv-gpu/constraints.txt -e .
	.venv-gpu/bin/python -m tests.long.gpu_check

# Kill a training N times at random moments, resume it each time, and compare it to one that was left alone.
crash-test: $(VENV)/installed-dev
	$(BIN)/python -m tests.long.crash_test --kills $(or $(N),200)

# Settings drawn at random: compiled updates against the plain path (SB3=1: the plain path against SB3's DDPG), for so many
# minutes. Most of the time goes into compiling; another SEED may run beside it.
fuzz: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.long.fuzz --minutes $(or $(MINUTES),10) --seed $(or $(SEED),0) \
		$(if $(SETTINGS),--settings $(SETTINGS)) $(if $(SB3),--sb3)

# N timesteps in eight processes with checkpoints and evaluation: memory and open files flat, no process left.
soak: $(VENV)/installed-dev
	$(BIN)/python -m tests.long.soak --timesteps $(or $(N),200000)

# Run what is missing of the study in docs/study, some hours on one core, and write its tables.
study: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python docs/study/run.py --jobs 2

# The same for docs/mujoco, some days on two cores. It may be stopped at any time. What to run: OPTIONS="--rounds ...".
study-mujoco: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python docs/mujoco/run.py --jobs 2 $(OPTIONS)

# Run what is missing of the searches in docs/tune, an hour on two cores that do nothing else, and write what they found.
tuned: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python docs/tune/run.py

# Train and evaluate the agents in agents/, all of them or one (ENV=Pendulum-v1), and write the table there.
agents: $(VENV)/installed-dev
	$(BIN)/python -m agents.make $(ENV)

# SB3's own tests with SimpleDDPG in the place of DDPG and TD3; SB3_REPO is a checkout of stable-baselines3.
sb3-suite: check-sb3-repo $(VENV)/installed-dev
	PYTHONPATH=tests/sb3_suite PYTHONHASHSEED=0 OMP_NUM_THREADS=1 \
		$(BIN)/pytest -p stand_in --import-mode=importlib -p no:cacheprovider $(SB3_REPO)/tests

check-sb3-repo:
	@test -d "$(SB3_REPO)/tests" || { echo "Usage: make sb3-suite SB3_REPO=path, a checkout of stable-baselines3 or sb3-contrib"; exit 2; }

# The tests with the oldest stable-baselines3 that pyproject.toml admits (==2.9 is 2.9.0) and with the newest 2.x, each
# in an environment of its own. RL Zoo goes with SB3, and an older one needs an older huggingface-hub: neither is pinned.
# Options for pytest: PYTEST_ARGS="-q -m 'not slow'".
test-sb3-versions: test-sb3-oldest test-sb3-newest

test-sb3-oldest: SB3 := ==$(OLDEST_SB3)
test-sb3-newest: SB3 := >=$(OLDEST_SB3),<3
test-sb3-oldest test-sb3-newest: test-sb3-%:
	$(PYTHON) -m venv .venv-sb3-$*
	grep -viE '^(stable.baselines3|sb3.contrib|rl.zoo3|huggingface.hub)==' constraints.txt > .venv-sb3-$*/constraints.txt
	.venv-sb3-$*/bin/python -m pip install -q --upgrade -c .venv-sb3-$*/constraints.txt \
		"stable-baselines3$(SB3)" "sb3-contrib$(SB3)" -e ".[test]"
	.venv-sb3-$*/bin/python -m pytest $(PYTEST_ARGS)

# The tests with the oldest torch and gymnasium that pyproject.toml admits, by hand: CI does not run it, since an older
# torch may be the large build with CUDA, several GB. An older gymnasium needs box2d-py, which pip compiles, with the
# swig of the environment; pygame, which it needs too, warns of setuptools before 82.
test-oldest:
	$(PYTHON) -m venv .venv-oldest
	grep -viE '^(torch|gymnasium)==' constraints.txt > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install -q --upgrade "setuptools>=82" "swig==4.*"
	PATH="$(CURDIR)/.venv-oldest/bin:$$PATH" .venv-oldest/bin/python -m pip install -q --upgrade --no-build-isolation \
		-c .venv-oldest/constraints.txt "torch==$(OLDEST_TORCH)" "gymnasium==$(OLDEST_GYMNASIUM)" -e ".[test]"
	.venv-oldest/bin/python -m pytest $(PYTEST_ARGS)

# The site, into docs/_build/html, without the network; a warning is an error.
docs: $(VENV)/installed-dev
	$(BIN)/python -m sphinx -a -E -W --keep-going -q -b html docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

# Run the notebooks in full, ten minutes on one core, and store what they show.
notebooks: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/jupyter execute --inplace --timeout=1200 notebooks/*.ipynb

# What docs/play.md and docs/knobs.md show: four agents, and the records of ten settings. Half an hour on one core.
play: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m docs.play.agents
	OMP_NUM_THREADS=1 $(BIN)/python -m docs.play.knobs

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

typecheck: $(VENV)/installed-dev
	$(BIN)/mypy

# After all tests both packages, the wheel out of the sdist; then the wheel alone in a fresh environment and another
# folder.
dist: coverage test-long $(VENV)/installed-release
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && $(PYTHON) -m venv "$$folder/venv" \
		&& "$$folder/venv/bin/python" -m pip install -q -c constraints.txt dist/*.whl \
		&& cd "$$folder" && venv/bin/simple-ddpg train --timesteps 500

clean:
	rm -rf $(VENV) .venv-sb3-* .venv-oldest .venv-gpu build dist docs/_build docs/tutorials *.egg-info .coverage \
		.mypy_cache .pytest_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-core: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@ $(VENV)/installed-core

$(VENV)/installed-release: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[release]"
	touch $@
