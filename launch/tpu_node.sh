# shellcheck shell=bash
# Sourced by tpu_pod.sh, after pod.sh: state, creation and deletion of the TPU itself.
#
# Uses the variables set by the options of create.
# shellcheck disable=SC2154 # set by tpu_pod.sh and pod.sh

# Sets answer to the output of gcloud describe: 0, or 1 and answer=ABSENT or UNKNOWN with its message.
describe() { # RESOURCE FORMAT
  local command=(gcloud compute tpus "$1" describe "$name" "${place[@]}" --format="$2" --quiet)
  if [[ -n $dry_run ]]; then
    quoted "${command[@]}"
    return
  fi
  if answer=$("${command[@]}" 2>"$scratch/error"); then return; fi
  answer=$(<"$scratch/error")
  shopt -s nocasematch
  if [[ $answer == *NOT_FOUND* || $answer == *'not found'* ]]; then answer=ABSENT; fi
  shopt -u nocasematch
  return 1
}

# Sets node: its state, ABSENT, or UNKNOWN (answer says why); and the number of workers.
find_node() {
  workers=0
  if [[ -n $dry_run ]]; then
    describe tpu-vm 'value(state,networkEndpoints.len())'
    # As documented in --help, it does not exist before create.
    if [[ $action == create ]]; then node=ABSENT; else node=READY workers=1; fi
  elif describe tpu-vm 'value(state,networkEndpoints.len())'; then
    read -r node workers <<<"$answer"
    node=${node:-UNKNOWN} workers=${workers:-0}
  elif [[ $answer == ABSENT ]]; then
    node=ABSENT
  else
    node=UNKNOWN
  fi
}

require_node() {
  find_node
  case $node in
    READY) ;;
    UNKNOWN) die "$answer" ;;
    ABSENT) die "there is no TPU $name in ${place[*]}: launch/tpu_pod.sh create creates it" ;;
    *) die "$name is $node, not READY: launch/tpu_pod.sh create recreates it" ;;
  esac
}

# Sets queue: the state of the queued resource, ABSENT, or UNKNOWN (answer says why).
find_queue() {
  if [[ -n $dry_run ]]; then
    describe queued-resources 'value(state.state)'
    # The second query, after the request.
    if [[ -z ${queue:-} ]]; then queue=ABSENT; else queue=ACTIVE; fi
  elif describe queued-resources 'value(state.state)'; then
    queue=${answer:-CREATING}
  elif [[ $answer == ABSENT ]]; then
    queue=ABSENT
  else
    queue=UNKNOWN
  fi
}

delete_queue() {
  gcloud_do compute tpus queued-resources delete "$name" "${place[@]}" --force ||
    die "the request of $name was not deleted, see above"
}

# --- create and delete -----------------------------------------------------------------------------

default_runtime() {
  case $type in
    v2-* | v3-* | v4-*) runtime=tpu-ubuntu2204-base ;;
    v5litepod-* | v5e-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) refuse "the system image for --type=$type is not known: set it with --runtime=" ;;
  esac
}

way_out='no quota: request more or use another --type; no capacity: use another --zone, wait with'
way_out+=' --queued, or let launch/babysit.sh try again'

make_queued() {
  find_queue
  case $queue in
    UNKNOWN) die "$answer" ;;
    FAILED | SUSPENDED | SUSPENDING | ACTIVE) # ACTIVE: its node is not usable
      say "the request is $queue: requesting it again"
      delete_queue
      queue=ABSENT
      ;;
  esac
  if [[ $queue == ABSENT ]]; then
    gcloud_do compute tpus queued-resources create "$name" --node-id="$name" "${place[@]}" \
      --accelerator-type="$type" --runtime-version="$runtime" ${spot:+--spot} "${others[@]}" ||
      die "Google Cloud refused to queue $name, see above ($way_out)"
  else
    say "the request already exists: $queue"
  fi
  local reported=''
  while find_queue && [[ $queue != ACTIVE ]]; do
    [[ $queue == "$reported" ]] || say "the request of $name is $queue"
    reported=$queue
    case $queue in
      FAILED | SUSPENDED | ABSENT)
        die "the request of $name became $queue; run create again to repeat it ($way_out)"
        ;;
    esac
    pause_until_deadline "$name is still $queue; run create to keep waiting, or delete to cancel the request"
  done
}

create() {
  [[ -n $type ]] || refuse 'create needs --type=, as in --type=v4-64'
  [[ -n $runtime ]] || default_runtime
  start_waiting
  find_node
  case $node in
    READY) say "$name is already ready" && return ;;
    UNKNOWN) die "$answer" ;;
    PREEMPTED | TERMINATED | SUSPENDED | FAILED)
      say "$name is $node: recreating it"
      delete
      node=ABSENT
      ;;
    STOPPED | STOPPING | HIDDEN | HIDING)
      die "$name is $node; to use it: gcloud compute tpus tpu-vm start $name ${place[*]}"
      ;;
  esac
  while [[ $node == DELETING ]]; do
    pause_until_deadline "$name is still being deleted"
    find_node
  done
  if [[ $node == ABSENT && -n $queued ]]; then
    make_queued
  elif [[ $node == ABSENT ]]; then
    gcloud_do compute tpus tpu-vm create "$name" "${place[@]}" \
      --accelerator-type="$type" --version="$runtime" "${others[@]}" ||
      die "Google Cloud did not create $name, see above ($way_out)"
  fi
  if [[ -n $dry_run ]]; then return; fi
  while find_node && [[ $node != READY ]]; do
    case $node in
      CREATING | STARTING | RESTARTING | REPAIRING | UNHIDING | UNKNOWN) ;;
      *) die "$name became $node during creation; run create again to recreate it" ;;
    esac
    pause_until_deadline "$name is still $node"
  done
  say "$name is ready: $type, $workers worker(s)"
}

delete() {
  if [[ -n $dry_run ]]; then
    find_queue
    gcloud_do compute tpus queued-resources delete "$name" "${place[@]}" --force
    find_node
    gcloud_do compute tpus tpu-vm delete "$name" "${place[@]}"
    return
  fi
  find_queue
  case $queue in
    ABSENT) ;;
    UNKNOWN) die "$answer" ;;
    *) delete_queue ;;
  esac
  find_node
  case $node in
    ABSENT) say "there is no TPU $name" ;;
    UNKNOWN) die "$answer" ;;
    *)
      gcloud_do compute tpus tpu-vm delete "$name" "${place[@]}" || die "$name was not deleted, see above"
      say "$name is deleted"
      ;;
  esac
}
