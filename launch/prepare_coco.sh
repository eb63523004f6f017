#!/usr/bin/env bash
# Unpacks COCO 2017's three zip files to the folders that training reads:
#
#   launch/prepare_coco.sh --zips=DIR --out=DIR [--workers=N] [--verify_md5] [--dry_run]
#
# See --help. The first call creates .venv (see setup.sh). Paths are relative to the current folder.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=setup.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/setup.sh" # this file may be a symlink
setup run
setup_environment
exec "$python" -P -m mae_jax.tools.prepare_coco "$@"
