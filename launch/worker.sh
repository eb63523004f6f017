#!/usr/bin/env bash
# Manages one training run on this machine that outlives the SSH connection that started it.
#
#   launch/worker.sh setup [--nfs=HOST:/SHARE]   creates .venv; installs uv if no Python is new enough;
#                                                mounts the share at /mnt/mae_jax, also after a reboot
#   launch/worker.sh start [--env=KEY=VALUE] [--id=ID] -- [flags of mae_jax.main]
#   launch/worker.sh status
#   launch/worker.sh log [--lines=N] [--follow]
#   launch/worker.sh stop [--force] [--id=ID]
#
# With --dry_run, setup, start, and stop only print what they would do.
#
# start runs launch/local.sh in the repository's folder and returns at once. The files log, pid, and
# status are in ~/mae_jax_run. It refuses to start while a run is alive or a process holds the TPU (the
# message names it); a lock left behind by a killed run is removed. With the --id of the run that is alive,
# it does nothing, since SSH may retry a command.
#
# stop asks the run to save and exit, but only once: a second signal would make it exit without saving.
# --force kills it. With --id, only the run started with that ID is stopped.
#
# Exit status of status: 3 running, 5 nothing was started, 6 the run vanished without a status (it was
# killed, or the machine was restarted), otherwise that of the run. Other actions: 0 done, 1 failed or
# refused, 2 bad input.
#
# MAE_JAX_RUN_DIR replaces ~/mae_jax_run. (MAE_JAX_SYSROOT replaces / in tests.)
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=setup.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/setup.sh" # this file may be a symlink
PATH=$HOME/.local/bin:$PATH # where pip puts uv
folder=${MAE_JAX_RUN_DIR:-$HOME/mae_jax_run}
sys=${MAE_JAX_SYSROOT:-}

# --- the most recent run --------------------------------------------------------------------------

# When a process started, in ticks since boot: its pid may have been reused since.
started_at() { # PID
  local stat
  slurp stat "/proc/$1/stat"
  read -r -a stat <<<"${stat##*) }" # the name before it may contain spaces
  [[ ${stat[0]:-Z} != Z ]] || return 1
  printf '%s\n' "${stat[19]}"
}

is_alive() { # sets pid and id
  local ticks
  [[ -e $folder/pid ]] || return 1
  read -r pid ticks id <"$folder/pid" || return 1
  [[ $(started_at "$pid") == "$ticks" ]]
}

# Sets state, its exit status.
find_state() {
  state=5
  [[ -e $folder/pid ]] || return 0
  if is_alive; then
    state=3
  elif [[ -e $folder/status ]]; then
    state=$(<"$folder/status")
  else
    # The status is written shortly after the run ends.
    local tries
    for ((tries = 0; tries < 30; tries++)); do
      [[ ! -e $folder/status ]] || break
      sleep 0.1
    done
    state=6
    [[ ! -e $folder/status ]] || state=$(<"$folder/status")
  fi
}

show_status() {
  find_state
  case $state in
    3) say "running (process $pid)" ;;
    5) say 'nothing was started' ;;
    6) say 'the run is gone and left no status: killed, or the machine was restarted' ;;
    0) say 'succeeded' ;;
    75) say 'stopped after saving' ;;
    *) say "ended with exit status $state" ;;
  esac
  # 3, 5 and 6 are free for the meanings above: mae_jax never exits with them.
  exit "$state"
}

# --- the TPU ---------------------------------------------------------------------------------------

# Without root, only our own processes can be inspected. TPU machines let all users run sudo.
as_root=()
if sudo -n true 2>/dev/null; then as_root=(sudo -n); fi

# Prints the pid of each process that has the devices or libtpu's lock open.
tpu_holders() {
  "${as_root[@]}" find "$sys"/proc/[0-9]*/fd -maxdepth 1 \
    '(' -lname '/dev/accel[0-9]*' -o -lname '/dev/vfio/[0-9]*' -o -lname /tmp/libtpu_lockfile ')' \
    2>/dev/null | sed -E 's,.*/([0-9]+)/fd/[0-9]+$,\1,' | sort -u || true # some may exit in between
}

free_tpu() {
  local holders holder command lockfile=$sys/tmp/libtpu_lockfile
  holders=$(tpu_holders)
  if [[ -n $holders ]]; then
    for holder in $holders; do
      command=$(tr '\0' ' ' 2>/dev/null <"$sys/proc/$holder/cmdline" || true)
      say "the TPU is held by process $holder: ${command:-?}"
    done
    die 'not started: first end the process that holds the TPU (kill it, or wait)'
  fi
  [[ -e $lockfile ]] || return 0
  say 'removing the lock that a killed process left on the TPU'
  "${as_root[@]}" rm -f "$lockfile" || die "cannot remove $lockfile, which belongs to another user"
}

# --- actions ---------------------------------------------------------------------------------------

mount_share() {
  local share=$sys/mnt/mae_jax table=$sys/etc/fstab
  if [[ -n $dry_run ]]; then say "would mount $nfs at $share" && return; fi
  if grep -qs " $share nfs " "$table" && ! grep -qsF "$nfs $share " "$table"; then
    die "another share is mounted at $share, see $table: remove its line there and unmount it"
  elif ! grep -qsF "$nfs $share " "$table"; then
    say "$nfs is now mounted at $share"
    printf '%s %s nfs defaults,_netdev 0 0\n' "$nfs" "$share" |
      "${as_root[@]}" tee -a "$table" >/dev/null
  fi
  if ! mountpoint -q "$share"; then
    command -v mount.nfs >/dev/null || "${as_root[@]}" apt-get install -qq -y nfs-common >/dev/null
    "${as_root[@]}" mkdir -p "$share"
    "${as_root[@]}" mount "$share" ||
      die "$nfs could not be mounted: does the share admit this machine?"
  fi
  # A new Filestore share is owned by root.
  [[ -w $share ]] || "${as_root[@]}" chmod 1777 "$share"
}

make_environment() {
  # The system image of TPU machines has Python 3.10; uv downloads a newer one.
  if ! command -v uv >/dev/null && [[ -z ${MAE_JAX_PYTHON:-} ]]; then
    local candidate found=''
    for candidate in python3.12 python3.13 python3.11; do
      if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then found=yes; fi
    done
    if [[ -z $found ]]; then
      say 'no Python from 3.11 to 3.13 found: installing uv, which provides one'
      python3 -m pip install --user --quiet uv || say 'uv could not be installed'
    fi
  fi
  setup run
}

start() { # FLAGS...
  if [[ -n $dry_run ]]; then quoted "$root/launch/local.sh" "$@" && return; fi
  mkdir -p "$folder"
  exec 8>"$folder/lock"
  flock -n 8 || die 'another start is in progress'
  if is_alive; then
    if [[ -n $wanted_id && $id == "$wanted_id" ]]; then return; fi
    die "a run is alive (process $pid): stop it first (launch/worker.sh stop, or tpu_pod.sh stop)"
  fi
  # SSH may have lost the reply to a start whose run has since ended.
  if [[ -n $wanted_id && -e $folder/pid && $(<"$folder/pid") == *" $wanted_id" ]]; then return; fi
  free_tpu
  rm -f "$folder/pid" "$folder/status" "$folder/asked_to_stop"
  setsid -f "${BASH:-bash}" "$root/launch/worker.sh" --supervise "${wanted_id:--}" "$@" \
    8>&- </dev/null >>"$folder/log" 2>&1
  local tries
  for ((tries = 0; tries < 100; tries++)); do
    [[ ! -e $folder/pid ]] || break
    sleep 0.1
  done
  [[ -e $folder/pid ]] || die "the run did not start, see $folder/log"
  read -r pid _ <"$folder/pid"
  say "started (process $pid), log in $folder/log"
}

# The supervisor: starts the run and records how it ended.
supervise() { # ID FLAGS...
  local child status=0 ticks own_id=$1
  shift
  trap '' HUP
  cd "$root"
  printf '== %(%F %T)T started: %s\n' -1 "$(quoted "$@")"
  "$root/launch/local.sh" "$@" &
  child=$!
  ticks=$(started_at "$child" || echo 0)
  printf '%s %s %s\n' "$child" "$ticks" "$own_id" >"$folder/pid.new"
  mv "$folder/pid.new" "$folder/pid"
  wait "$child" || status=$?
  printf '== %(%F %T)T exit status %s\n' -1 "$status"
  printf '%s\n' "$status" >"$folder/status.new"
  mv "$folder/status.new" "$folder/status"
}

show_log() {
  [[ -e $folder/log ]] || die 'nothing was started, so there is no log'
  exec tail -n "$lines" ${follow:+-F} "$folder/log"
}

stop() {
  local session name=TERM
  [[ -z $force ]] || name=KILL
  is_alive || { say 'no run is alive' && return; }
  [[ -z $wanted_id || $id == "$wanted_id" ]] || { say 'another run is alive' && return; }
  if [[ -n $dry_run ]]; then
    quoted kill "-$name" "$pid"
  elif [[ -n $force ]]; then
    # Its whole session, data loaders included, except for the supervisor, which writes the status.
    session=$(ps -o sid= -p "$pid")
    say "killing the run (process $pid)"
    ps -o pid= -s "$((session))" | while read -r holder; do
      [[ $holder == "$((session))" ]] || kill -KILL "$holder" 2>/dev/null || true
    done
  elif [[ -e $folder/asked_to_stop ]]; then
    say "the run (process $pid) was already asked to stop and is not done yet; --force kills it"
  else
    say "asking the run (process $pid) to save and stop"
    : >"$folder/asked_to_stop"
    kill -TERM "$pid"
  fi
}

# --- options ---------------------------------------------------------------------------------------

action=${1:-} nfs='' wanted_id='' lines=20 follow='' force=''
[[ -z $action ]] || shift
if [[ $action == --supervise ]]; then
  supervise "$@"
  exit
fi
case $action in
  setup | start | status | log | stop) ;;
  -h | --help) show_help "$0" && exit ;;
  '') refuse 'give an action: setup, start, status, log or stop (see --help)' ;;
  *) refuse "unknown action '$action': it can be setup, start, status, log or stop" ;;
esac
while (($#)); do
  case $action:$1 in
    start:--env=[A-Za-z_]*=*) export "${1#--env=}" ;;
    start:--id=* | stop:--id=*) wanted_id=${1#*=} ;;
    setup:--nfs=?*:/*) nfs=${1#*=} ;;
    log:--lines=*) lines=${1#*=} ;;
    log:--follow) follow=yes ;;
    stop:--force) force=yes ;;
    start:--) shift && break ;;
    *:--dry_run) dry_run=yes ;;
    *:-h | *:--help) show_help "$0" && exit ;;
    *) refuse "unknown option '$1' of $action (flags of mae_jax come after --)" ;;
  esac
  shift
done
[[ $lines =~ ^[0-9]+$ ]] || refuse "--lines=$lines is not a number"
case $action in
  setup)
    [[ -z $nfs ]] || mount_share
    make_environment
    ;;
  start) start "$@" ;;
  status) show_status ;;
  log) show_log ;;
  stop) stop ;;
esac
