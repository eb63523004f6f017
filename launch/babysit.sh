#!/usr/bin/env bash
# Trains on a Cloud TPU until the run is done: launch/babysit.sh NAME --zone=ZONE --type=TYPE \
#   [options] -- --config=configs/vit_l.py --workdir=gs://BUCKET/run [flags of mae_jax.main]
#
# Creates the TPU, sets it up, starts the run (see launch/tpu_pod.sh), and checks on it regularly. A
# preempted TPU is created again. A run that stopped after saving, or that hung and was ended by the
# watchdog, is restarted. If the run ends with an error, this script shows the end of its log and exits
# with the same status. If a run is already alive on that TPU, it is watched.
#
# The workdir must outlive the TPU: a folder in a bucket or on a disk that all workers share.
#
# Ctrl-C does not stop the run; rerun the same command to watch it again.
#
#   --project=, --runtime=, --spot, --queued, --network=, --subnetwork=, --service_account=,
#   --wait_minutes=         as for tpu_pod.sh create
#   --nfs=HOST:/SHARE       as for tpu_pod.sh setup, with --workdir=/mnt/mae_jax/run; --nfs=none if the
#                           workers mount a disk themselves
#   --env=KEY=VALUE         as for tpu_pod.sh run
#   --tries=20              attempts to start the run before giving up
#   --poll_seconds=60       time between checks; also the first pause after the TPU could not be created
#                           (doubled by each failure, up to half an hour)
#   --delete_when_done      delete the TPU once the run has succeeded
#   --dry_run               print the commands of a run without failures
#
# Exit status: 0 done, 1 gave up, 2 bad input, 130 Ctrl-C, otherwise that of the run.
set -euo pipefail

root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$root/launch/common.sh"
# shellcheck source-path=SCRIPTDIR source=pod.sh
source "$root/launch/pod.sh"

create=() setup=() run=() nfs='' tries=20 poll_seconds=60 delete='' type=''
while (($#)); do
  case $1 in
    --type=*) type=$1 && create+=("$1") ;;
    --runtime=* | --spot | --queued | --network=* | --subnetwork=* | --service_account=* | \
      --wait_minutes=*) create+=("$1") ;;
    --nfs=none | --nfs=?*:/*) nfs=$1 ;;
    --env=[A-Za-z_]*=*) run+=("$1") ;;
    --tries=*) tries=${1#*=} ;;
    --poll_seconds=*) poll_seconds=${1#*=} ;;
    --delete_when_done) delete=yes ;;
    --) shift && break ;;
    *) take_option "$1" ;;
  esac
  shift
done
find_place
[[ -n $type ]] || refuse '--type= is needed, as in --type=v4-64'
(($#)) || refuse 'the flags of mae_jax.main are needed after --, as in -- --config=configs/vit_l.py'
[[ $tries =~ ^[1-9][0-9]*$ ]] || refuse "--tries=$tries is not a number from 1"

# Sets workdir from the flags; as in mae_jax.main, the last one wins.
find_workdir() { # FLAGS...
  workdir=''
  while (($#)); do
    case $1 in
      --workdir=*) workdir=${1#*=} ;;
      --workdir) workdir=${2:-} ;;
    esac
    shift
  done
}

# The TPU's own disk is lost with it, and the run would start over.
find_workdir "$@"
lasting='^gs://.'
case $nfs in
  --nfs=none) lasting='' ;;
  ?*) setup=("$nfs") lasting+='|^/mnt/mae_jax/.' ;;
esac
[[ $workdir =~ $lasting ]] || refuse "the workdir ${workdir:-runs/NAME} is on the TPU's own disk and lost" \
  'with it: use --workdir=gs://BUCKET/run, or --nfs=HOST:/SHARE and --workdir=/mnt/mae_jax/run' \
  '(--nfs=none if the workers mount a disk themselves)'
# A hung run exits with 70 and is restarted.
[[ $* == *--config.watchdog.abort* ]] || set -- "$@" --config.watchdog.abort=True

create+=("--poll_seconds=$poll_seconds")

event() { printf '%(%F %T)T babysit: %s\n' -1 "$*"; }
pod() { "$root/launch/tpu_pod.sh" "$1" "$name" "${place[@]}" "${@:2}"; }

if [[ -n $dry_run ]]; then
  pod create --dry_run "${create[@]}"
  pod setup --dry_run "${setup[@]}"
  pod run --dry_run "${run[@]}" -- "$@"
  pod status --dry_run
  [[ -z $delete ]] || pod delete --dry_run
  exit
fi

# shellcheck disable=SC2329 # it is called by trap
leave() {
  event "exiting; if the run on $name was started, it continues" \
    "(to stop it: launch/tpu_pod.sh stop $name ${place[*]})"
  exit 130
}
trap leave INT TERM HUP

# Sleeps in the background, so that signals are handled at once.
pause() { # SECONDS
  sleep "$1" &
  wait $!
}

failures=0
pause_longer() { # after a failure outside the run: longer each time in a row
  local seconds
  seconds=$(awk -v s="$poll_seconds" -v n="$failures" \
    'BEGIN { s *= 2 ^ n; print (s > 1800 ? 1800 : s) }')
  ((++failures))
  if ((try >= tries)); then return; fi
  event "retrying in $seconds s"
  pause "$seconds"
}

# Sets status to the first conclusive one.
watch() {
  local reported=''
  while true; do
    status=0
    pod status >/dev/null 2>&1 || status=$?
    case $status in
      3) ;;
      7) [[ $reported == 7 ]] || event 'no answer from a worker or from Google Cloud: still checking' ;;
      *) return ;;
    esac
    reported=$status
    pause "$poll_seconds"
  done
}

status=0
pod status >/dev/null 2>&1 || status=$?
usable='' watching=''
if [[ $status == 3 ]]; then
  event "a run is alive on $name: watching it"
  usable=yes watching=yes
fi

for ((try = 1; try <= tries; try++)); do
  if [[ -z $usable ]]; then
    event "try $try of $tries: creating $name"
    status=0
    pod create "${create[@]}" || status=$?
    [[ $status != 2 ]] || exit 2
    if [[ $status != 0 ]]; then
      event "$name could not be created"
      pause_longer
      continue
    fi
    event "setting up $name"
    if ! pod setup "${setup[@]}"; then
      event "$name could not be set up"
      pause_longer
      continue
    fi
    usable=yes
  fi
  if [[ -z $watching ]]; then
    event "try $try of $tries: starting the run"
    if ! pod run "${run[@]}" -- "$@"; then
      event 'the run could not be started'
      usable=''
      pause_longer
      continue
    fi
  fi
  watching='' failures=0
  watch
  case $status in
    0)
      event 'the run is done'
      if [[ -n $delete ]]; then pod delete; fi
      exit 0
      ;;
    75) event 'the run stopped after saving' ;;
    70) event 'the run was ended by the watchdog' ;;
    6) event 'the run is gone and left no status' ;;
    4) event "$name was preempted" && usable='' ;;
    5) event "$name was recreated by someone else" && usable='' ;;
    *)
      event "the run ended with exit status $status; the end of its log:"
      pod logs --lines=30 || true
      exit "$status"
      ;;
  esac
done
event "gave up after $tries tries"
exit 1
