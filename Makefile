# `make demo` and `make test` set up what they need, once, and run. The other targets serve these two.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Shared libraries of open3d and OpenCV, and a compiler for the dependencies that come as source.
APT_PACKAGES := libusb-1.0-0 libgl1 libgomp1 g++
# Options of sa3d demo, such as ARGS="--segmenter sam-vit-b".
ARGS :=

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := demo
.PHONY: demo test test-main

demo: $(VENV)/.installed
	$(BIN)/sa3d demo $(ARGS)

# Tests are many small sums: more threads only get in each other's way. Files that train come first, on both workers.
test: export OMP_NUM_THREADS ?= 1
test: $(VENV)/.installed
	-@sh tools/install-apt-packages chromium # For the tests of the viewer, which are skipped where there is none.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The same tests with nerfstudio's main branch, from a folder that holds it: make test-main NERFSTUDIO=../nerfstudio. It
# pins other versions than the release does, so it gets an environment of its own.
# nerfstudio's main branch reads images through a function of Pillow's that asks for more since 12.2.
test-main: MAIN_NEEDS := 'pillow<12.2'
test-main: export OMP_NUM_THREADS ?= 1
test-main:
	@test -f "$(NERFSTUDIO)/pyproject.toml" || \
		{ echo "name the folder of nerfstudio's main branch: make test-main NERFSTUDIO=FOLDER" >&2; exit 2; }
	@sh tools/install-apt-packages $(APT_PACKAGES)
	$(MAKE) VENV=.venv-main .venv-main/bin/pip
	.venv-main/bin/python -m pip install --editable "$(NERFSTUDIO)" --editable '.[dev]' $(MAIN_NEEDS)
	.venv-main/bin/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Where ensurepip is not installed, the machine's own pip fills the environment.
$(BIN)/pip:
	$(PYTHON) -m venv $(VENV) || \
		{ $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install pip; }
	$(BIN)/python -m pip install --upgrade pip

# Installed anew when the dependencies change.
$(VENV)/.installed: pyproject.toml Makefile | $(BIN)/pip
	@sh tools/install-apt-packages $(APT_PACKAGES)
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@
