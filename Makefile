PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test check clean

demo: .venv/ready  ## make the environment, then the whole method on a small data set
	$(BIN)/salvage demo

test: .venv/ready  ## make the environment, then all tests
	$(BIN)/python -m pytest

check: .venv/ready  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv demo_output

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@
