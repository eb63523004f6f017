#!/usr/bin/env bash
# Renews requirements.lock with the newest versions of everything: needs uv (pip install uv).
# One file serves every supported Python, system and accelerator. Run launch/test.sh afterwards,
# with each Python, before it is committed.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

new=$(
  printf '# The versions that are tested together; constraints for pip and uv, made by launch/lock.sh.\n'
  # No header and no index: the lock must not name the machine or the mirror it was made on.
  printf 'jax[cuda12]\njax[cuda13]\njax[tpu]\n' |
    uv pip compile --quiet --universal --python-version 3.11 --upgrade --no-header --no-annotate \
      --no-emit-index-url --no-emit-find-links requirements.txt requirements-dev.txt -
)
printf '%s\n' "$new" >requirements.lock
