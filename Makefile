# Every target creates or updates .venv first (no-op when it is up to date). Everything here runs on a CPU.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PY := .venv/bin/python
# A GPU, where there is one, is left alone: .venv is the CPU environment.
export CUDA_VISIBLE_DEVICES :=

.PHONY: help setup demo demo-serve test test-slow lint bench clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: ## create or update .venv (CPU environment, exact versions of requirements/cpu.lock)
	@scripts/setup_env.sh

demo: setup ## the main job: train a small student on blended rollouts, measure it before and after
	$(PY) -m examples.micro.demo

demo-serve: setup ## serve a real small pair and show what the blend does to its answers
	$(PY) examples/smollm2/demo.py

test: setup ## unit tests, then tests against a real SGLang server on the CPU
	$(PY) -m pytest -m "not gpu and not slow"

test-slow: setup ## the slow tests too
	$(PY) -m pytest -m "not gpu"

lint: setup ## ruff (lint and format) and mypy
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(PY) -m mypy

bench: setup ## measure solver, serving and training; results in benchmarks/results/*.json
	$(PY) benchmarks/solver.py
	$(PY) benchmarks/serving.py
	$(PY) benchmarks/payload.py
	$(PY) benchmarks/training.py

clean: ## remove .venv, caches and run outputs
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache build *.egg-info out
