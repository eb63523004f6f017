#!/usr/bin/env bash
# Compares our training step with PyTorch's on one GPU, in under nine minutes: launch/bench.sh [flags]
#
#   launch/bench.sh --torch_python=/path/to/python   an interpreter with a CUDA build of torch
#   launch/bench.sh --repeats=50                     other flags of `mae_jax.tools.bench step`
#
# ViT-L runs first (and again with cuDNN's attention), then B and H. Each prints its table as soon as it is
# done, so earlier results are kept if time runs out.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=setup.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/setup.sh" # this file may be a symlink
case ${1:-} in -h | --help) show_help "$root/launch/bench.sh" && exit ;; esac
setup run
setup_environment

deadline=$((SECONDS + 530))
failed=''
compare() { # NAME RECIPE FLAGS...
  local name=$1 recipe=$2 left=$((deadline - SECONDS))
  shift 2
  printf '== %s\n' "$name"
  if ((left <= 0)); then
    failed+="${failed:+, }$name (no time left)"
    return
  fi
  timeout "$left" "$python" -P -m mae_jax.tools.bench step --config="configs/$recipe.py" \
    --config.model.dtype=bfloat16 "$@" ||
    failed+="${failed:+, }$name"
}
compare 'ViT-L/16, batch 256' vit_l --config.batch_size=256 \
  --against=official --torch_compile "$@"
compare 'ViT-L/16, batch 256, cuDNN attention' vit_l --config.batch_size=256 \
  --config.model.attention=cudnn "$@"
compare 'ViT-B/16, batch 256' vit_b --config.batch_size=256 \
  --against=torch --torch_compile "$@"
compare 'ViT-H/14, batch 128' vit_h --config.batch_size=128 \
  --against=torch --torch_compile "$@"

if [[ -n $failed ]]; then
  printf '== not measured: %s (%s s)\n' "$failed" "$SECONDS"
  exit 1
fi
printf '== measured in %s s\n' "$SECONDS"
