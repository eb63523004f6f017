#!/usr/bin/env bash
# Trains on this machine: launch/local.sh --config=configs/demo.py [flags of mae_jax.main]
#
# The first call sets up .venv (see setup.sh), later ones start at once. Paths in the flags are
# relative to the folder you are in.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=setup.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/setup.sh" # it may be called through a link
setup run
setup_environment
# -P: a folder named mae_jax or configs where you happen to be is not imported instead of ours.
exec "$python" -P -m mae_jax.main "$@"
