# make demo      a real picture there and back, in its own environment: about five minutes, most of it the install
# make test      lint, types, import contract and tests, in its own environment: what CI runs
# make test-all  the same with the slow tests
# make clean     remove what the above made

PYTHON ?= python3
# Three at a time on two cores, since some wait for other processes; each file by one: a file's fixtures are made once.
# In the order of names: the longest files come early.
PYTEST ?= -n 3 --dist loadfile --no-loadscope-reorder
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# What is imported is compiled once, when it is: a tenth of what is installed.  Torch and numpy before, on all cores.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all check tests all-tests clean

demo: .venv-demo/installed
	.venv-demo/bin/python examples/demo.py

# Checks and tests beside one another: each leaves a core idle now and then.
test: .venv/installed
	@$(MAKE) --no-print-directory -j 2 check tests

test-all: .venv/installed
	@$(MAKE) --no-print-directory -j 2 check all-tests

tests: .venv/installed
	.venv/bin/pytest -m "not slow" $(PYTEST)

all-tests: .venv/installed
	.venv/bin/pytest $(PYTEST)

check: .venv/installed
	scripts/check .venv/bin/python

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --upgrade pip  # resolves in a third of the time of the one that comes with Python 3.11
	PYTHONWARNINGS='ignore:Editable installation' .venv/bin/pip install --quiet --no-compile -c constraints.txt -e '.[dev]'
	-.venv/bin/python -m compileall -qq -j 0 .venv/lib/python3*/site-packages/torch .venv/lib/python3*/site-packages/numpy
	touch $@

# Not editable: what a user gets.  The code is copied at install time, so the demo environment follows the sources.
.venv-demo/installed: pyproject.toml constraints.txt $(shell find ditic_stream schemas workers -type f -not -name '*.pyc')
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/pip install --quiet --upgrade pip
	rm -rf build
	.venv-demo/bin/pip install --quiet -c constraints.txt . 'scikit-image>=0.26'
	.venv-demo/bin/pip install --quiet --no-deps --force-reinstall .
	rm -rf build
	touch $@

clean:
	rm -rf .venv .venv-demo build demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
