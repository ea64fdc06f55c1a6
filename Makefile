.DEFAULT_GOAL := help
.PHONY: help setup demo demo-stream ui down test check bench docs docs-serve clean
SHELL := bash
PYTHON := .venv/bin/python

help:  ## Show what there is to make.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 13

setup:  ## Install all that is needed: Java (as root on Debian), .venv, Spark's JARs.
	@./devstack/setup.sh

demo: setup  ## Run customer_360 on real PostgreSQL and S3, and show what came out.
	@$(PYTHON) -m devstack.demo run

demo-stream: setup  ## Stream purchases through real Kafka into a Delta table, watch it, and verify it.
	@$(PYTHON) -m devstack.demo_stream

ui: setup  ## Open Dagster's UI and daemon on the demo's servers (Ctrl+C ends them).
	@$(PYTHON) -m devstack.demo ui

down:  ## Stop the demo's servers and remove their data.
	@$(PYTHON) -m devstack down

test:  ## Run all tests, on the real servers, which the tests start.
	@./devstack/setup.sh --test
	@$(PYTHON) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: setup  ## Lint and type-check.
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

bench: setup  ## Measure against bare PySpark, plain Dagster and tuning by hand; into docs/benchmarks.md, tuning.md.
	@$(PYTHON) -m benchmarks --pages docs

docs: setup  ## Build the site of the documentation into site/.
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --strict
	@echo "$(CURDIR)/site/index.html"

docs-serve: setup  ## Show the site, with its search, and again after each change (Ctrl+C ends it).
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs serve --dev-addr 127.0.0.1:8000

clean:  ## Remove what the demo, the tests and the tools left in this folder.
	rm -rf warehouse .dagster_home artifacts site .pytest_cache .mypy_cache .ruff_cache spark-warehouse
