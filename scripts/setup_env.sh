#!/usr/bin/env bash
# Create or update .venv, the CPU environment that server, trainer and tests share. Does nothing when it is up to date.
#
# Environment:
#   PYTHON        the interpreter to build on (default python3; 3.11 is what the lock was made and tested with)
#   TRB_PIP_ARGS  more options for pip, e.g. "--extra-index-url https://download.pytorch.org/whl/cpu": PyPI's torch for
#                 Linux is a CUDA build, which works on a CPU but brings several GB along
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
stamp=.venv/.trb-lock-hash
lock=requirements/cpu.lock

fail() { echo "setup: $*" >&2; exit 1; }
say() { echo "setup: $*"; }

inputs_hash() { cat "$lock" pyproject.toml scripts/setup_env.sh | sha256sum | cut -d' ' -f1; }

if .venv/bin/python -V >/dev/null 2>&1 && [ "$(cat "$stamp" 2>/dev/null)" = "$(inputs_hash)" ]; then
  exit 0
fi

command -v "$python" >/dev/null || fail "no $python on this machine; install Python 3.11 or name one: PYTHON=/path/to/python3 make setup"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$("$python" -V) is too old; Python 3.11 or newer is needed: PYTHON=/path/to/python3.11 make setup"

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  say "creating .venv with $("$python" -V)"
  "$python" -m venv .venv || fail "$python cannot make virtual environments (Debian, Ubuntu: apt-get install python3-venv)"
fi
rm -f "$stamp"

pip_install() {
  # shellcheck disable=SC2086  # TRB_PIP_ARGS is a list of options
  .venv/bin/python -m pip --disable-pip-version-check install -qq --progress-bar off ${TRB_PIP_ARGS:-} "$@" ||
    fail "pip failed, see above; where it found no versions, it reached no package index (PyPI, or one given with TRB_PIP_ARGS)"
}

# torch with what it asks for, because a CUDA build needs its libraries; everything else exactly as locked.
say "1/3 torch and build tools (200 MB for a CPU build)"
pip_install -c "$lock" setuptools wheel torch
say "2/3 the $(grep -c == "$lock") packages of $lock (about 800 MB, some minutes)"
pip_install --no-deps --no-build-isolation -r "$lock"
say "3/3 this project, editable"
pip_install --no-deps --no-build-isolation -e .

# Lets torchvision's CUDA build be imported beside a CPU torch, in every process: see sglang_trb_startup.py.
site_packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "import sglang_trb_startup" > "$site_packages/sglang_trb_startup.pth"

.venv/bin/python -c 'import sglang, deepspeed' >/dev/null 2>&1 ||
  fail "installed, but 'import sglang, deepspeed' fails: run .venv/bin/python -c 'import sglang, deepspeed'"
inputs_hash > "$stamp"
say "done: .venv, $(du -sh .venv | cut -f1)"
