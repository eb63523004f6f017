#!/usr/bin/env bash
# Converts ImageNet-1K's two tar files to the format that training reads:
#
#   launch/prepare_imagenet.sh --tars=DIR --out=DIR [--format=folders|tfds] [--workers=N] [--dry_run]
#
# See --help. The first call creates .venv (see setup.sh). Paths are relative to the current folder.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=setup.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/setup.sh" # this file may be a symlink
setup run
setup_environment
exec "$python" -P -m mae_jax.tools.prepare_imagenet "$@"
