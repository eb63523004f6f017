#!/usr/bin/env bash
# Runs every check of CI: launch/test.sh [arguments of pytest]
#
#   launch/test.sh                               everything that needs no accelerator (see pyproject.toml)
#   launch/test.sh --fast                        in two minutes: lint, and the tests that start no runs
#   launch/test.sh tests/launch/test_setup.py -k lock  some tests
#   launch/test.sh -m slow                       the slow tests; likewise gpu, tpu
#   launch/test.sh --interop                     exported weights in torch, transformers, and timm, which
#                                                are installed into .venv (requirements-interop.txt)
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=setup.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/setup.sh" # this file may be a symlink
case ${1:-} in -h | --help) show_help "$root/launch/test.sh" && exit ;; esac
setup dev
setup_environment
cd "$root"
if [[ ${1:-} == --interop ]]; then
  shift
  # Without hashes: the lists have none for torch, and pip requires them for all packages or none.
  [[ -n ${MAE_JAX_PYTHON:-} ]] ||
    "$python" -m pip install --quiet --disable-pip-version-check -r requirements-interop.txt \
      -c <(sed -n 's/ \\$//; /==/p' launch/locks/*.txt | sort -u)
  exec "$python" -m pytest -m interop "$@"
fi

types=', pyright'
if [[ ${1:-} == --fast ]]; then
  shift
  types=''
  set -- tests/test_imports.py tests/{checkpoint,config,data,ops,optim} "$@"
fi
failed=''
check() { # NAME COMMAND...: later checks run even if one fails
  local name=$1
  shift
  printf '== %s\n' "$name"
  "$@" || failed+="${failed:+, }$name"
}
check 'ruff check' "$python" -m ruff check .
check 'ruff format' "$python" -m ruff format --check .
export PYRIGHT_PYTHON_IGNORE_WARNINGS=1 # do not look up newer versions on the network
[[ -z $types ]] || check 'pyright' "$python" -m pyright --pythonpath "$python"
# One process per core; the tests of a file share a process, and thus fixtures and traced programs.
# Files start in the order of tests/conftest.py, those that take long first.
check 'pytest' "$python" -m pytest -n auto --maxprocesses 8 \
  --no-loadscope-reorder --dist loadfile "$@"

if [[ -n $failed ]]; then
  printf '== FAILED: %s (%s s)\n' "$failed" "$SECONDS"
  exit 1
fi
printf '== all passed: ruff check, ruff format%s, pytest (%s s)\n' "$types" "$SECONDS"
