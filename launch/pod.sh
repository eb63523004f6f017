# shellcheck shell=bash
# Sourced by tpu_pod.sh and babysit.sh, after common.sh: selects the TPU and queries its workers.
#
# The workers' answers are kept in scratch, a temporary folder.
# shellcheck disable=SC2154 # set by tpu_pod.sh and tpu_node.sh

# --- options -----------------------------------------------------------------------------------------

name='' zone='' project='' poll_seconds=''

take_option() { # WORD: an option that both scripts have
  case $1 in
    -h | --help) show_help "$0" && exit ;;
    --dry_run) dry_run=yes ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    -*)
      refuse "unknown option '$1'${action:+ of $action}" \
        '(see --help; flags of mae_jax come after --)'
      ;;
    *)
      [[ -z $name ]] || refuse "give one name, not '$name' and '$1'"
      name=$1
      ;;
  esac
}

# Sets place: the flags with which gcloud finds the TPU.
find_place() {
  [[ -n $name ]] || refuse 'give the name of the TPU (see --help)'
  [[ -n $zone ]] || refuse '--zone= is needed, as in --zone=us-central2-b'
  [[ $poll_seconds =~ ^[0-9]+(\.[0-9]+)?$ ]] || refuse "--poll_seconds=$poll_seconds is not a number"
  place=("--zone=$zone" ${project:+"--project=$project"})
}

# --- gcloud ------------------------------------------------------------------------------------------

start_pod() {
  [[ -n $dry_run ]] || command -v gcloud >/dev/null ||
    die 'gcloud is needed: https://cloud.google.com/sdk/docs/install'
  scratch=$(mktemp -d "${TMPDIR:-/tmp}/mae_jax_pod.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
}

gcloud_do() { execute gcloud "$@" --quiet; }

start_waiting() { deadline=$((SECONDS + wait_minutes * 60)); }
pause_until_deadline() { # MESSAGE on giving up
  ((SECONDS < deadline)) || die "$1"
  sleep "$poll_seconds"
}

# --- workers -----------------------------------------------------------------------------------------

# Runs a command on all workers at once. The output of each is kept, with its exit status in the last line:
# gcloud only reports that some worker failed, and treats a lost connection as a failure too.
on_workers() { # COMMAND...
  rm -rf "$scratch/answers"
  mkdir "$scratch/answers"
  # shellcheck disable=SC2016 # $? is for the worker
  gcloud_do compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=all \
    --output-directory="$scratch/answers" --command="$(quoted "$@"); "'printf "\nexit status %s\n" $?' \
    2>"$scratch/ssh" || true # the answers show which worker failed
}

exit_of() { # WORKER: its exit status, or nothing if it did not answer
  # shellcheck disable=SC2016 # $ is the last line
  sed -n '${s/^exit status \([0-9]*\)$/\1/p;}' "$scratch/answers/$1.log" 2>/dev/null || true
}

output_of() { # WORKER
  if [[ -n $(exit_of "$1") ]]; then
    sed '$d' "$scratch/answers/$1.log" | sed '${/^$/d;}'
  else
    printf 'no answer\n'
    tail -n 3 "$scratch/answers/$1.log" 2>/dev/null || true
  fi
}

# Sets failed: the numbers of the workers whose command failed or that did not answer.
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
    output_of "$i" | sed "s/^/worker $i: /" >&2
  done
}

fail_if_any() { # WHAT
  find_failed
  if [[ -z $failed ]]; then return; fi
  show_answers "$failed"
  if ((workers)) && [[ ! -e $scratch/answers/0.log ]]; then tail -n 5 "$scratch/ssh" >&2; fi
  die "$1: worker(s) $failed"
}
