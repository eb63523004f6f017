#!/usr/bin/env bash
# Trains on a Cloud TPU until the run is done: launch/babysit.sh NAME --zone=ZONE --type=TYPE \
#   [options] -- --config=configs/vit_l.py --workdir=gs://BUCKET/run [flags of mae_jax.main]
#
# Makes the TPU, sets it up and starts the run (see launch/tpu_pod.sh), then looks at it again and
# again: a TPU that was taken away is made again, a run that stopped after saving or was ended by the
# watchdog (which is told to end one that hangs) is started again. When the run ends with an error
# this shows the end of its log and ends with the same status. A run that is alive on that TPU
# already is watched.
#
# The workdir must outlive the TPU: a folder of a bucket, or one of a disk that all workers share.
#
# Ctrl-C leaves the run alone; the same command watches it again.
#
#   --project=, --runtime=, --spot, --queued, --network=, --subnetwork=, --service_account=,
#   --wait_minutes=         as of tpu_pod.sh create
#   --nfs=HOST:/SHARE       as of tpu_pod.sh setup: for --workdir=/mnt/mae_jax/run; --nfs=none when the
#                           workers mount a disk by themselves
#   --env=KEY=VALUE         as of tpu_pod.sh run
#   --tries=20              how often the run is started, or was to be, before this gives up
#   --poll_seconds=60       how often to look; also the first pause after the TPU could not be made
#                           (each failure doubles it, up to half an hour)
#   --delete_when_done      delete the TPU when the run has ended well
#   --dry_run               print the commands of a run without trouble
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

# Sets workdir: what the flags say, the last of them as for mae_jax.main.
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

# What is on the TPU's own disk is lost with it: the run would begin again.
find_workdir "$@"
lasting='^gs://.'
case $nfs in
  --nfs=none) lasting='' ;;
  ?*) setup=("$nfs") lasting+='|^/mnt/mae_jax/.' ;;
esac
[[ $workdir =~ $lasting ]] || refuse "the workdir ${workdir:-runs/NAME} is on the TPU's own disk and lost" \
  'with it: give --workdir=gs://BUCKET/run, or --nfs=HOST:/SHARE and --workdir=/mnt/mae_jax/run' \
  '(--nfs=none if the workers mount a disk by themselves)'
# A run that hangs ends, with 70, and is started again.
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
  event "leaves; the run on $name goes on if it was started (to end it: launch/tpu_pod.sh stop $name ${place[*]})"
  exit 130
}
trap leave INT TERM HUP

# A signal is answered at once, not when the pause is over.
pause() { # SECONDS
  sleep "$1" &
  wait $!
}

failures=0
pause_longer() { # after what went wrong without the run: each time in a row for longer
  local seconds
  seconds=$(awk -v s="$poll_seconds" -v n="$failures" \
    'BEGIN { s *= 2 ^ n; print (s > 1800 ? 1800 : s) }')
  ((++failures))
  if ((try >= tries)); then return; fi
  event "tries again in $seconds s"
  pause "$seconds"
}

# Sets status to the first one that is a verdict.
watch() {
  local told=''
  while true; do
    status=0
    pod status >/dev/null 2>&1 || status=$?
    case $status in
      3) ;;
      7) [[ $told == 7 ]] || event 'no answer from a worker or from Google Cloud: going on looking' ;;
      *) return ;;
    esac
    told=$status
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
    event "try $try of $tries: making $name"
    status=0
    pod create "${create[@]}" || status=$?
    [[ $status != 2 ]] || exit 2
    if [[ $status != 0 ]]; then
      event "$name could not be made"
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
    4) event "$name was taken away" && usable='' ;;
    5) event "$name was made anew by somebody" && usable='' ;;
    *)
      event "the run ended with exit status $status; the end of its log:"
      pod logs --lines=30 || true
      exit "$status"
      ;;
  esac
done
event "gave up after $tries tries"
exit 1
