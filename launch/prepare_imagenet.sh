#!/usr/bin/env bash
# ImageNet-1K from its two tar files to what training reads:
#
#   launch/prepare_imagenet.sh --tars=DIR --out=DIR [--format=folders|tfds] [--workers=N] [--dry_run]
#
# --help tells more. The first call sets up .venv (see setup.sh). Paths are relative to the folder
# you are in.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=setup.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/setup.sh" # it may be called through a link
setup run
setup_environment
exec "$python" -P -m mae_jax.tools.prepare_imagenet "$@"
