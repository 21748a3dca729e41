PYTHON ?= python3
BIN = .venv/bin
# Reading images, models, methods, scores, metrics and a run of training: what touches the interfaces of the libraries.
LOWEST_TESTS = tests/attribution_methods tests/data tests/evaluate_modules tests/hub tests/masking tests/metrics \
	tests/training/test_checkpoints.py tests/training/test_cached_runs.py
# In two processes, each of which keeps a file's tests together, because they share what is slow to make. The files come in
# their own order: by their number of tests, as pytest-xdist sorts them, some of the slowest would come last.
IN_TWO = --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Programs that tests start compute in one thread, because two processes have the cores already.
test test-lowest: export OMP_NUM_THREADS = 1

.PHONY: demo test test-lowest check docs package audit clean

demo: .venv/ready  ## make the environment, then the whole method on a small data set
	$(BIN)/salvage demo

test: .venv/ready  ## make the environment, then all tests
	$(BIN)/python -m pytest $(IN_TWO)

test-lowest: .venv-lowest/ready  ## a part of the tests, with the lowest versions that pyproject.toml allows
	.venv-lowest/bin/python -m pytest $(IN_TWO) $(LOWEST_TESTS)

check: .venv/ready  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/ready  ## the site, in site/; every warning is an error, and every cell of the notebook runs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	FOLDER=$$(mktemp -d) && cp docs/notebook.ipynb $$FOLDER && \
		HF_HUB_OFFLINE=1 $(BIN)/jupyter execute $$FOLDER/notebook.ipynb && rm -r $$FOLDER

package: .venv/ready  ## wheel and source distribution in dist/, tried out in a new environment without the checkout
	rm -rf build dist salvage_hf.egg-info .venv-package
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv .venv-package
	.venv-package/bin/pip install --quiet -c constraints.txt dist/*.whl
	FOLDER=$$(mktemp -d) && export HF_HUB_OFFLINE=1 HF_HOME=$$FOLDER/home && \
		.venv-package/bin/python -I tests/check_installation.py $$FOLDER && rm -r $$FOLDER

audit: .venv/ready  ## known vulnerabilities of the versions in constraints.txt, asked from pypi.org
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

clean:
	rm -rf .venv .venv-lowest .venv-package build dist site demo_output

.venv/ready: constraints.txt
.venv-lowest/ready: constraints-lowest.txt
.venv/ready: EXTRAS = dev,docs
.venv-lowest/ready: EXTRAS = dev
.venv/ready .venv-lowest/ready: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet -c $(filter constraints%,$^) -e ".[$(EXTRAS)]"
	touch $@
