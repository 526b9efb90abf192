# Every target creates or updates .venv first (no-op when it is up to date). Everything here runs on a CPU.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PY := .venv/bin/python
# A GPU, where there is one, is left alone: .venv is the CPU environment. gpu-check alone sees what the caller sees.
ifeq ($(origin CUDA_VISIBLE_DEVICES),undefined)
CALLERS_GPUS := env -u CUDA_VISIBLE_DEVICES
else
CALLERS_GPUS := env CUDA_VISIBLE_DEVICES='$(CUDA_VISIBLE_DEVICES)'
endif
export CUDA_VISIBLE_DEVICES :=

.PHONY: help setup demo demo-serve study test test-slow gpu-check lint docs bench bench-gpu clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: ## create or update .venv (CPU environment, exact versions of requirements/cpu.lock)
	@scripts/setup_env.sh

demo: setup ## the main job: train a small student on blended rollouts, measure it before and after
	$(PY) -m examples.micro.demo

demo-serve: setup ## serve a real small pair and show what the blend does to its answers
	$(PY) examples/smollm2/demo.py

# STUDY: another file of examples/study/ on the micro pair.
STUDY := micro-seeds
study: setup ## compare methods over ten seeds on the micro pair (hours; goes on where it was stopped): studies/*/report/
	$(PY) examples/micro/task.py --split train --count 4096 --out .cache/micro/train.jsonl
	$(PY) examples/micro/task.py --split eval --count 2048 --out .cache/micro/eval.jsonl
	.venv/bin/trb study --config examples/study/$(STUDY).yaml
	.venv/bin/trb report studies/$(STUDY)

# A worker a core, at most four (each may have two servers of 1 GB); a file stays in one worker, files in their order.
PYTEST := $(PY) -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: setup ## unit tests, then tests against a real SGLang server on the CPU
	$(PYTEST) -m "not gpu and not slow"

test-slow: setup ## the slow tests too
	$(PYTEST) -m "not gpu"

# GPU_ARGS: arguments of pytest, such as GPU_ARGS='-k fa3'.
GPU_OUT := out/gpu-check
gpu-check: PY := python3
gpu-check: ## on a GPU machine: the tests that need one, with the Python in use (or PY=…); JSON and logs in out/gpu-check/
	$(CALLERS_GPUS) $(PY) -m tests.gpu.check --output $(GPU_OUT) $(GPU_ARGS)

lint: setup ## ruff (lint and format), mypy, import-linter
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports --no-cache

docs: setup ## the documentation site, built strictly into out/site
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. .venv/bin/mkdocs build --strict --quiet
	@echo "docs: open out/site/index.html"

bench: setup ## measure solver, serving and training; results in benchmarks/results/*.json
	$(PY) benchmarks/solver.py
	$(PY) -m benchmarks.kernels
	$(PY) benchmarks/serving.py
	$(PY) -m benchmarks.attention --json benchmarks/results/attention-cpu-micro.json
	$(PY) benchmarks/payload.py
	$(PY) benchmarks/training.py
	$(PY) -m benchmarks.overlap
	$(PY) -m benchmarks.batching

bench-gpu: PY := python3
bench-gpu: ## on a GPU machine: the fused step against roofline, torch and FlashInfer; benchmarks/results/kernels-cuda.json
	$(CALLERS_GPUS) $(PY) -m benchmarks.kernels --device cuda

clean: ## remove .venv, caches and run outputs
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache build *.egg-info out
