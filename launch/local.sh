#!/usr/bin/env bash
# Trains on this machine: launch/local.sh --config=configs/demo.py [flags of mae_jax.main]
#
# One process uses every GPU, every chip of a TPU host, or the CPU. The first call creates .venv (see
# setup.sh); later calls start immediately. Paths in the flags are relative to the current folder.
#
#   --processes=N   N processes that share the GPUs evenly (or the CPU); one per GPU sometimes feeds
#                   them faster. All but the first prefix their lines with the process, [1]. They
#                   listen on the loopback interface only.
#   --preflight     check whether the run will work, without running it (mae_jax.tools.preflight)
#   --dry_run       print the commands without running them
#   --help          show this text (--helpshort: the flags of mae_jax.main; docs/pretraining.md: recipes)
#
# Exit status, that of mae_jax.main: 0 done, 1 failed, 2 bad input, 70 ended by the watchdog, 75 stopped
# by a signal after saving. After 70 and 75 the same command continues the run. If any process exits with
# 75 or 70, that status is used (it may have caused the others to fail); otherwise that of the first to fail.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=setup.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/setup.sh" # this file may be a symlink

processes='' program=mae_jax.main
for word; do # extract the options of this script
  shift
  case $word in
    --processes=*) processes=${word#*=} ;;
    --preflight) program=mae_jax.tools.preflight ;;
    --dry_run) dry_run=yes ;;
    --help) show_help "$root/launch/local.sh" && exit ;;
    *) set -- "$@" "$word" ;;
  esac
done
[[ $processes =~ ^([1-9][0-9]*)?$ ]] || refuse "--processes=$processes must be a number, 1 or more"

setup run
setup_environment
# -P: do not import a folder named mae_jax or configs from the current directory instead of ours.
command=("$python" -P -m "$program" "$@")
if [[ -z $processes ]]; then
  [[ -z $dry_run ]] || { quoted "${command[@]}" && exit; }
  exec "${command[@]}"
fi

# Sets gpus: the names of all usable GPUs.
find_gpus() {
  local line
  gpus=()
  if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
    IFS=, read -r -a gpus <<<"$CUDA_VISIBLE_DEVICES"
  else
    while IFS= read -r line; do gpus+=("$line"); done < <(
      nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || true
    )
  fi
}

# Sets environment: additional variables for process INDEX.
share_of() { # INDEX
  local each list
  environment=()
  case $accelerator in
    tpu) refuse '--processes is for GPUs and CPU: one process uses all chips of a TPU host' ;;
    cuda*)
      each=$((${#gpus[@]} / processes))
      ((each > 0 && each * processes == ${#gpus[@]})) ||
        refuse "--processes=$processes does not divide the ${#gpus[@]} GPUs of this machine"
      list=$(
        IFS=,
        printf '%s' "${gpus[*]:$1 * each:each}"
      )
      environment=("CUDA_VISIBLE_DEVICES=$list")
      ;;
  esac
}

find_gpus
free='import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])'
port=PORT
[[ -n $dry_run ]] || port=$("$python" -c "$free")
pids=()
# Each process gets its own group, so Ctrl-C reaches them only through the trap: a run that gets two
# signals exits without saving.
set -m
for ((index = 0; index < processes; index++)); do
  share_of "$index"
  start=(env ${environment[@]+"${environment[@]}"} "${command[@]}"
    --coordinator="localhost:$port" --num_processes="$processes" --process_id="$index")
  if [[ -n $dry_run ]]; then
    quoted "${start[@]}"
  elif ((index == 0)); then
    "${start[@]}" &
    pids+=("$!")
  else
    "${start[@]}" > >(while IFS= read -r line; do printf '[%s] %s\n' "$index" "$line" >&2; done) 2>&1 &
    pids+=("$!")
  fi
done

signaled='' status=0 again=0
# shellcheck disable=SC2329 # the traps call it
forward() { # SIGNAL
  signaled=yes
  kill "-$1" ${pids[@]+"${pids[@]}"} 2>/dev/null || true
}
for name in INT TERM USR1; do
  # shellcheck disable=SC2064 # expand the name now
  trap "forward $name" "$name"
done
for pid in ${pids[@]+"${pids[@]}"}; do
  while :; do # a signal ends the wait, not the process
    signaled='' now=0
    wait "$pid" || now=$?
    ((now == 127)) || ended=$now # 127: it was already reaped
    [[ -n $signaled ]] || break
  done
  case $ended in
    70 | 75) ((ended <= again)) || again=$ended ;;
    *) ((status)) || status=$ended ;;
  esac
done
((!again)) || status=$again
exit "$status"
