#!/usr/bin/env bash
# Trains on a Cloud TPU, one host or a whole pod: launch/tpu_pod.sh ACTION NAME --zone=ZONE [options]
#
#   create NAME --type=v4-64   creates the TPU and waits until it is ready; keeps one that is ready,
#                              recreates one that was preempted or has failed
#   setup NAME                 copies this repository (the files git tracks, as they are on disk) to
#                              ~/mae_jax on every worker and creates .venv there
#   run NAME -- --config=configs/vit_l.py --workdir=gs://BUCKET/run [flags of mae_jax.main]
#                              starts the run on every worker; it outlives the connection
#   status NAME                state of the TPU, and of the run on every worker
#   logs NAME                  the last lines of every worker; with --follow, worker 0 as it writes
#   stop NAME                  makes the run save and stop on every worker, and waits for it
#   delete NAME                deletes the TPU and its request
#
# All actions: --zone=ZONE, --project=PROJECT, --dry_run (prints the gcloud commands without running them,
# assuming that NAME does not exist before create and is ready for the other actions).
# create: --type=TYPE
#         --runtime=VERSION       system image; default: the one for the generation of TYPE
#         --spot                  a cheap TPU that can be preempted; implies --queued
#         --queued                request it as a queued resource
#         --network=, --subnetwork=
#         --service_account=      the workers' identity, also for buckets; default: that of Compute Engine
#         --wait_minutes=60       how long to wait until it is ready
#         --poll_seconds=10       time between checks
# setup:  --nfs=HOST:/SHARE       a disk that all workers share (Filestore), mounted at /mnt/mae_jax;
#                                 not needed for a workdir in a bucket
# run:    --env=KEY=VALUE         for the environment of the run; may be repeated
# logs:   --lines=20, --follow, --worker=N (one worker instead of all, with --follow instead of 0)
# stop:   --force                 kill it without saving
#         --wait_minutes=10, --poll_seconds=10
#
# Needs gcloud, and an SSH key without a passphrase or loaded in ssh-agent. On the workers it runs
# launch/worker.sh, which you can also call over plain SSH. The workdir must be visible to all workers and
# outlive them: gs://BUCKET/run, which the service account may write to, or a folder on a share
# (setup --nfs=). setup keeps .venv and runs/.
#
# Exit status: 0 done, 1 failed, 2 bad input. That of status:
#   0 the run succeeded on all workers         3 it is running
#   4 the TPU does not exist, or is not usable (preempted)
#   5 nothing was started on some worker       6 the run vanished from a worker without a status
#   7 unknown: a worker or Google Cloud did not answer, or the TPU is being created or repaired
#   75 or 70 if any worker ended with it (run continues the run; it may have caused others to fail)
#   otherwise the largest exit status of the run on any worker
set -euo pipefail

root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$root/launch/common.sh"
# shellcheck source-path=SCRIPTDIR source=pod.sh
source "$root/launch/pod.sh"
# shellcheck source-path=SCRIPTDIR source=tpu_node.sh
source "$root/launch/tpu_node.sh"

# --- the repository on the workers -------------------------------------------------------------------

pack() { # FILE
  if [[ ! -e $root/.git ]] || ! command -v git >/dev/null; then
    execute tar -czf "$1" --exclude=./.git --exclude='./.venv*' --exclude=./runs \
      --exclude=__pycache__ -C "$root" .
    return
  fi
  local file
  if [[ -n $(git -C "$root" ls-files --others --exclude-standard) ]]; then
    say 'not copied, because git does not track them (use git add):'
    git -C "$root" ls-files --others --exclude-standard | sed 's/^/launch:   /' >&2
  fi
  git -C "$root" ls-files -z | while IFS= read -r -d '' file; do
    if [[ -e $root/$file || -L $root/$file ]]; then printf '%s\0' "$file"; fi # skip deleted files
  done >"$scratch/files"
  execute tar -czf "$1" -C "$root" --null -T "$scratch/files"
}

# shellcheck disable=SC2016 # expanded by the workers
unpack='set -e
if [ -e mae_jax/launch/worker.sh ]; then
  state=0; bash mae_jax/launch/worker.sh status 2>/dev/null || state=$?
  if [ $state = 3 ]; then echo "launch: a run is alive: stop it first"; exit 1; fi
fi
gzip -t mae_jax.tar.gz
mkdir -p mae_jax
find mae_jax -mindepth 1 -maxdepth 1 ! -name ".venv*" ! -name runs -exec rm -rf {} +
tar -xzf mae_jax.tar.gz -C mae_jax
rm mae_jax.tar.gz
bash mae_jax/launch/worker.sh setup "$@"'

setup_workers() {
  require_node
  pack "$scratch/mae_jax.tar.gz"
  say "copying the repository to the workers of $name"
  gcloud_do compute tpus tpu-vm scp "$scratch/mae_jax.tar.gz" "$name:mae_jax.tar.gz" "${place[@]}" \
    --worker=all || die "the repository could not be copied to every worker, see above"
  say 'creating the environment on every worker: a few minutes the first time'
  on_workers bash -c "$unpack" setup ${nfs:+"--nfs=$nfs"}
  fail_if_any 'not set up'
  [[ -n $dry_run ]] || say "$name is set up"
}

# --- the run -------------------------------------------------------------------------------------------

worker=(bash mae_jax/launch/worker.sh)

run() { # FLAGS...
  local id failed_text
  (($#)) || refuse 'run needs the flags of mae_jax.main after --, as in -- --config=configs/vit_l.py'
  require_node
  printf -v id '%(%Y%m%d-%H%M%S)T-%s' -1 $$
  on_workers "${worker[@]}" start --id="$id" "${environment[@]}" -- "$@"
  find_failed
  if [[ -n $failed ]]; then
    # The others would wait for it. Runs that were already alive have a different ID.
    failed_text=$(show_answers "$failed" 2>&1)
    on_workers "${worker[@]}" stop --force --id="$id"
    printf '%s\n' "$failed_text" >&2
    die "not started on worker(s) $failed; stopped on the others"
  fi
  if [[ -n $dry_run ]]; then return; fi
  say "started on all workers; to watch it: launch/tpu_pod.sh logs $name ${place[*]} --follow"
}

# Sets verdict, the exit status of status, and states: one line per worker.
find_verdict() {
  local i own again='' largest=0 running='' missing='' none='' gone=''
  states='' verdict=0
  on_workers "${worker[@]}" status
  for ((i = 0; i < workers; i++)); do
    own=$(exit_of "$i")
    states+="worker $i: $(output_of "$i" | tail -n 1)"$'\n'
    case $own in
      '') missing=yes ;;
      3) running=yes ;;
      5 | 127) none=yes ;; # 127: worker.sh is missing
      6) gone=yes ;;
      70 | 75) ((own <= ${again:-0})) || again=$own ;;
      *) ((own <= largest)) || largest=$own ;;
    esac
  done
  if [[ -n $missing ]]; then
    verdict=7
  elif [[ -n $running ]]; then
    verdict=3
  # A worker lost its disk or was restarted, which makes the others fail in various ways.
  elif [[ -n $none ]]; then
    verdict=5
  elif [[ -n $gone ]]; then
    verdict=6
  elif [[ -n $again ]]; then
    verdict=$again
  elif [[ $largest != 0 ]]; then
    verdict=$largest
  fi
}

status() {
  find_node
  say "$name is $node"
  case $node in
    READY) ;;
    UNKNOWN) say "$answer" && exit 7 ;;
    CREATING | STARTING | RESTARTING | REPAIRING | UNHIDING) exit 7 ;;
    *) exit 4 ;;
  esac
  find_verdict
  if [[ -n $dry_run ]]; then return; fi
  printf '%s' "$states"
  exit "$verdict"
}

logs() {
  local i
  require_node
  if [[ -n $follow ]]; then
    one=${one:-0}
    gcloud_do compute tpus tpu-vm ssh "$name" "${place[@]}" --worker="$one" \
      --command="$(quoted "${worker[@]}" log --lines="$lines" --follow)" |
      if [[ -n $dry_run ]]; then cat; else while IFS= read -r i; do printf '%s: %s\n' "$one" "$i"; done; fi
    return
  fi
  on_workers "${worker[@]}" log --lines="$lines"
  if [[ -n $dry_run ]]; then return; fi
  for ((i = 0; i < workers; i++)); do
    [[ -n $one && $i != "$one" ]] || output_of "$i" | sed "s/^/$i: /"
  done
  fail_if_any 'no log'
}

stop() {
  require_node
  on_workers "${worker[@]}" stop ${force:+--force}
  find_failed
  if [[ -n $dry_run ]]; then
    find_verdict
    return
  fi
  show_answers
  [[ -z $failed ]] || say "worker(s) $failed did not answer"
  start_waiting
  while find_verdict && [[ $verdict == 3 || $verdict == 7 ]]; do
    pause_until_deadline "not stopped after $wait_minutes minutes: $states(stop --force kills it)"
  done
  printf '%s' "$states"
  case $verdict in
    0 | 5 | 75) ;;
    *) [[ -n $force ]] || die "the run did not stop properly: exit status $verdict" ;;
  esac
}

# --- options -------------------------------------------------------------------------------------------

actions='create, setup, run, logs, status, stop or delete'
action='' type='' runtime='' spot='' queued='' follow='' force='' one='' nfs=''
lines=20 wait_minutes='' poll_seconds=10 others=() environment=()
while (($#)); do
  case $action:$1 in
    create:--type=*) type=${1#*=} ;;
    create:--runtime=*) runtime=${1#*=} ;;
    create:--spot) spot=yes queued=yes ;;
    create:--queued) queued=yes ;;
    create:--network=?* | create:--subnetwork=?* | create:--service_account=?*)
      others+=("${1/#--service_account=/--service-account=}")
      ;;
    setup:--nfs=?*:/*) nfs=${1#*=} ;;
    run:--env=[A-Za-z_]*=*) environment+=("$1") ;;
    logs:--lines=*) lines=${1#*=} ;;
    logs:--follow) follow=yes ;;
    logs:--worker=*) one=${1#*=} ;;
    stop:--force) force=yes ;;
    create:--wait_minutes=* | stop:--wait_minutes=*) wait_minutes=${1#*=} ;;
    create:--poll_seconds=* | stop:--poll_seconds=*) poll_seconds=${1#*=} ;;
    run:--) shift && break ;;
    :create | :setup | :run | :logs | :status | :stop | :delete) action=$1 ;;
    :[!-]*) refuse "unknown action '$1': it can be $actions" ;;
    *) take_option "$1" ;;
  esac
  shift
done
[[ -n $action ]] || refuse "give an action: $actions (see --help)"
find_place
[[ $lines =~ ^[0-9]+$ ]] || refuse "--lines=$lines is not a number"
[[ $one =~ ^[0-9]*$ ]] || refuse "--worker=$one is not the number of a worker"
if [[ $action == stop ]]; then wait_minutes=${wait_minutes:-10}; fi
wait_minutes=${wait_minutes:-60}
[[ $wait_minutes =~ ^[0-9]+$ ]] || refuse "--wait_minutes=$wait_minutes is not a whole number"
start_pod
case $action in
  setup) setup_workers ;;
  run) run "$@" ;;
  *) "$action" ;;
esac
