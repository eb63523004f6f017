# shellcheck shell=bash
# Sourced by tpu_pod.sh, after common.sh: what a TPU and its workers are asked through gcloud.
#
# Uses name, place (--zone=..., --project=...) and poll_seconds. Some answers are kept in scratch, a
# folder that is removed in the end.
# shellcheck disable=SC2154 # set by tpu_pod.sh

start_pod() {
  [[ -n $dry_run ]] || command -v gcloud >/dev/null ||
    die 'gcloud is needed: https://cloud.google.com/sdk/docs/install'
  scratch=$(mktemp -d "${TMPDIR:-/tmp}/mae_jax_pod.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
}

gcloud_do() { execute gcloud "$@" --quiet; }

# Sets answer to what gcloud describe says: 0, or 1 and answer=ABSENT or UNKNOWN with its message.
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

# Sets node: its state, ABSENT, or UNKNOWN (answer tells why); and the number of workers.
find_node() {
  workers=0
  if [[ -n $dry_run ]]; then
    describe tpu-vm 'value(state,networkEndpoints.len())'
    # As --help says: none before create.
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
    ABSENT) die "there is no TPU $name in ${place[*]}: launch/tpu_pod.sh create makes it" ;;
    *) die "$name is $node, not READY: launch/tpu_pod.sh create makes it again" ;;
  esac
}

# Sets queue: the state of the queued resource, ABSENT, or UNKNOWN (answer tells why).
find_queue() {
  if [[ -n $dry_run ]]; then
    describe queued-resources 'value(state.state)'
    # The second look, after it was asked for.
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

pause_until_deadline() { # MESSAGE of giving up
  ((SECONDS < deadline)) || die "$1"
  sleep "$poll_seconds"
}

# --- workers -----------------------------------------------------------------------------------------

# Runs a command on all workers at once. What each said is kept with its exit status as the last
# line: gcloud tells only that some worker failed, and calls a lost connection a failure too.
on_workers() { # COMMAND...
  rm -rf "$scratch/answers"
  mkdir "$scratch/answers"
  # shellcheck disable=SC2016 # $? is for the worker
  gcloud_do compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=all \
    --output-directory="$scratch/answers" --command="$(quoted "$@"); "'printf "\nexit status %s\n" $?' \
    2>"$scratch/ssh" || true # which worker failed is found in the answers
}

exit_of() { # WORKER: its exit status, or nothing when it did not answer
  # shellcheck disable=SC2016 # $ is the last line
  sed -n '${s/^exit status \([0-9]*\)$/\1/p;}' "$scratch/answers/$1.log" 2>/dev/null || true
}

what_said() { # WORKER
  if [[ -n $(exit_of "$1") ]]; then
    sed '$d' "$scratch/answers/$1.log" | sed '${/^$/d;}'
  else
    printf 'no answer\n'
    tail -n 3 "$scratch/answers/$1.log" 2>/dev/null || true
  fi
}

# Sets failed: the numbers of the workers whose command failed, or that did not answer.
find_failed() {
  local i
  failed=''
  if [[ -n $dry_run ]]; then return; fi
  for ((i = 0; i < workers; i++)); do
    [[ $(exit_of "$i") == 0 ]] || failed+="${failed:+ }$i"
  done
}

show_answers() { # [WORKERS]
  local i
  for i in ${1:-$(seq 0 $((workers - 1)))}; do
    what_said "$i" | sed "s/^/worker $i: /" >&2
  done
}

fail_if_any() { # WHAT
  find_failed
  if [[ -z $failed ]]; then return; fi
  show_answers "$failed"
  if ((workers)) && [[ ! -e $scratch/answers/0.log ]]; then tail -n 5 "$scratch/ssh" >&2; fi
  die "$1: worker(s) $failed"
}
