#!/usr/bin/env bash
# Writes launch/locks/: package versions that are tested together, with the hash of every published file.
# Needs uv (pip install uv).
#
#   launch/lock.sh            after changing requirements*.txt; other versions do not change
#   launch/lock.sh --upgrade  upgrades every package
#
# One list serves every supported Python and system. Before committing, run launch/test.sh with each
# Python.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

new=$(mktemp -d)
trap 'rm -r "$new"' EXIT

compile() { # FILE ARGUMENTS...: requirements come from the arguments and from the standard input
  # No index and no comments: the lists must not name the machine or mirror that made them.
  uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-emit-index-url \
    --no-emit-find-links --custom-compile-command launch/lock.sh --output-file "$@" - >/dev/null
}

# Resolve everything at once first, so that the lists agree. uv keeps versions already in the file.
sed -n 's/ \\$//; /==/p' launch/locks/*.txt | sort -u >"$new/all"
printf 'jax[%s]\n' cuda12 cuda13 tpu |
  compile "$new/all" "$@" requirements.txt requirements-dev.txt

hashed() { # NAME ARGUMENTS...
  compile "$new/$1.txt" --generate-hashes --constraints "$new/all" "${@:2}"
}
hashed cpu requirements.txt </dev/null
for accelerator in cuda12 cuda13 tpu; do
  hashed "$accelerator" requirements.txt <<<"jax[$accelerator]"
done
hashed dev requirements-dev.txt </dev/null
hashed build <<<setuptools
cp "$new"/*.txt launch/locks/
