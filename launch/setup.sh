# shellcheck shell=bash
# Sourced by the launch scripts: creates .venv in the repository, once, and finds the interpreter.
#
#   source .../launch/setup.sh   sets root, the folder of the repository
#   setup run                    or: setup dev, which adds test dependencies
#   setup_environment
#   "$python" ...                the interpreter; accelerator is cpu, cuda12, cuda13 or tpu
#
# If there is nothing to do, this reads a few small files, starts no other program, and prints nothing.
#
# Settings (environment variables):
#   MAE_JAX_ACCELERATOR=cpu|cuda12|cuda13|tpu   install for this instead of the detected hardware
#   MAE_JAX_UNLOCKED=1                          the newest packages instead of those in launch/locks/
#   MAE_JAX_PYTHON=/path/to/python              use this interpreter unchanged; install nothing
# (MAE_JAX_SYSROOT replaces / when tests fake /proc, /dev and /sys.)

root=$(cd "${BASH_SOURCE[0]%/*}/.." && pwd)

# shellcheck source-path=SCRIPTDIR source=common.sh
source "$root/launch/common.sh"

# slurp NAME FILE: NAME=content of FILE, empty if it cannot be read; starts no process.
slurp() {
  printf -v "$1" ''
  if [[ -r $2 ]]; then IFS= read -r -d '' "$1" <"$2" || true; fi
}

# --- hardware ------------------------------------------------------------------------------------

# The PCI IDs by which JAX detects TPUs (jax/_src/hardware_utils.py). The vendor is not enough: Google's
# network card has it too, and /dev/vfio exists on many machines without a TPU.
tpu_pci_ids=' 0x0027 0x0056 0x005e 0x0062 0x0063 0x006f 0x0076 0x007c 0x0083 '

has_tpu() {
  local sys=${MAE_JAX_SYSROOT:-} file vendor device
  compgen -G "$sys/dev/accel[0-9]*" >/dev/null || compgen -G "$sys/dev/vfio/[0-9]*" >/dev/null ||
    return 1
  # Set in TPU containers; covers generations whose ID is not listed yet.
  [[ -z ${TPU_ACCELERATOR_TYPE:-} ]] || return 0
  for file in "$sys"/sys/bus/pci/devices/*/vendor; do
    slurp vendor "$file"
    [[ $vendor == 0x1ae0* ]] || continue
    slurp device "${file%vendor}device"
    [[ $tpu_pci_ids != *" ${device%$'\n'} "* ]] || return 0
  done
  return 1
}

# Sets accelerator, and gpu_note for the line printed on installation. nvidia-smi takes most of a
# second, so its answer is cached together with the driver version.
detect_nvidia() {
  local sys=${MAE_JAX_SYSROOT:-} kept='' answer='' line driver=0 capability oldest=999
  accelerator=cpu
  if [[ -e $sys/proc/driver/nvidia/version ]]; then
    # A container without a GPU still sees the host's /proc.
    compgen -G "$sys/dev/nvidia[0-9]*" >/dev/null || return 0
    slurp gpu_driver "$sys/proc/driver/nvidia/version"
    slurp kept "$venv/mae_jax.gpu"
    if [[ $kept == *$'\n'"$gpu_driver" ]]; then
      accelerator=${kept%%$'\n'*} gpu_driver=''
      return 0
    fi
    # "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build ..."
    if [[ $gpu_driver =~ \ ([0-9]{3})\.[0-9] ]]; then driver=${BASH_REMATCH[1]}; fi
  fi
  # WSL has no /proc/driver/nvidia; some containers have no nvidia-smi.
  if command -v nvidia-smi >/dev/null; then
    answer=$(nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader 2>/dev/null) ||
      gpu_note=' (nvidia-smi exists but does not work)'
  fi
  while read -r line; do # one per GPU: 580.65.06, 9.0
    [[ $line =~ ^([0-9]+)\.[0-9.]+,\ *([0-9]+)\.([0-9]+) ]] || continue
    driver=${BASH_REMATCH[1]} capability=$((BASH_REMATCH[2] * 10 + BASH_REMATCH[3]))
    ((capability >= oldest)) || oldest=$capability
  done <<<"$answer"
  # JAX's wheels: CUDA 13 needs driver 580 and Turing (7.5) or newer, CUDA 12 driver 525.
  if ((driver >= 580 && oldest >= 75)); then
    accelerator=cuda13
  elif ((driver >= 525)); then
    accelerator=cuda12
  elif ((driver > 0)); then
    gpu_note=" (the NVIDIA driver is $driver, JAX needs 525 or newer)"
  fi
}

detect_accelerator() {
  gpu_note='' gpu_driver=''
  case ${MAE_JAX_ACCELERATOR:-} in
    cpu | cuda12 | cuda13 | tpu) accelerator=$MAE_JAX_ACCELERATOR ;;
    '') if has_tpu; then accelerator=tpu; else detect_nvidia; fi ;;
    *) die "MAE_JAX_ACCELERATOR is '$MAE_JAX_ACCELERATOR'; it can be cpu, cuda12, cuda13 or tpu" ;;
  esac
}

# --- is it installed? ----------------------------------------------------------------------------

# Sets lists: the package lists to install.
find_lists() { # run|dev
  if [[ -n ${MAE_JAX_UNLOCKED:-} ]]; then
    lists=("$root/requirements.txt")
    [[ $1 != dev ]] || lists+=("$root/requirements-dev.txt")
  else
    lists=("$root/launch/locks/$accelerator.txt")
    [[ $1 != dev ]] || lists+=("$root/launch/locks/dev.txt")
  fi
}

# Sets stamp_text: everything the installation depends on, after a first line that names the
# accelerator. A finished installation leaves it in .venv/mae_jax.run, or .venv/mae_jax.dev.
describe() { # run|dev
  local config version='' list text
  slurp config "$venv/pyvenv.cfg"
  if [[ $config =~ version(_info)?\ *=\ *([0-9]+\.[0-9]+) ]]; then version=${BASH_REMATCH[2]}; fi
  stamp_text="Python $version"$'\n'
  find_lists "$1"
  for list in "${lists[@]}"; do
    slurp text "$list"
    stamp_text+=$text
  done
}

is_ready() { # run|dev
  local found installed
  [[ -x $venv/bin/python && ! -e $venv/mae_jax.unfinished && -e $venv/mae_jax.$1 ]] || return 1
  slurp found "$venv/mae_jax.$1"
  installed=${found%%$'\n'*}
  # An installation for a GPU also runs without one (a login node on the same disk).
  [[ $installed == "$accelerator" || $accelerator == cpu ]] || return 1
  local accelerator=$installed
  describe "$1"
  [[ ${found#*$'\n'} == "$stamp_text" ]]
}

# --- install -------------------------------------------------------------------------------------

supported='import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

make_venv() {
  local candidate without_venv=''
  # Run each candidate: a pyenv shim is on PATH whether or not its Python exists.
  for candidate in python3.12 python3.13 python3.11 python3 python; do
    "$candidate" -c "$supported" >/dev/null 2>&1 || continue
    if [[ -n $uv ]]; then
      "$uv" venv --quiet --seed --allow-existing --python "$(command -v "$candidate")" "$venv"
      return
    fi
    if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
      "$candidate" -m venv "$venv"
      return
    fi
    without_venv=${without_venv:-$candidate}
  done
  if [[ -n $uv ]]; then # uv downloads a Python
    "$uv" venv --quiet --seed --allow-existing --python 3.12 "$venv"
  elif [[ -n $without_venv ]]; then
    die "$without_venv has no venv module; on Debian and Ubuntu: sudo apt install $without_venv-venv"
  else
    die "Python 3.11, 3.12 or 3.13 is needed, and none is on PATH (now: $(python3 --version 2>&1 || true))"
  fi
}

pip_install() { # run|dev
  local list
  local -a pip packages=()
  if [[ -n $uv ]]; then
    # Without bytecode, which uv omits by default, every import is three times slower.
    pip=("$uv" pip install --quiet --compile-bytecode --python "$venv/bin/python")
  else
    # -I: packages in PYTHONPATH or the user's site directory do not count as installed.
    pip=("$venv/bin/python" -I -m pip)
    "${pip[@]}" --version >/dev/null 2>&1 ||
      "$venv/bin/python" -I -m ensurepip >/dev/null || return
    pip+=(install --quiet --disable-pip-version-check --use-pep517)
  fi
  find_lists "$1"
  for list in "${lists[@]}"; do packages+=(-r "$list"); done
  if [[ -n ${MAE_JAX_UNLOCKED:-} ]]; then
    [[ $accelerator == cpu ]] || packages+=("jax[$accelerator]")
    [[ -n $uv ]] || packages+=(--upgrade-strategy eager)
    "${pip[@]}" --upgrade "${packages[@]}"
  else
    # promise (a dependency of tensorflow-datasets) is published only as source. By default, pip and uv
    # build it with the newest setuptools, without checking its hash.
    "${pip[@]}" --require-hashes -r "$root/launch/locks/build.txt" || return
    "${pip[@]}" --require-hashes --no-build-isolation "${packages[@]}"
  fi
}

write_stamp() { # run|dev
  describe "$1"
  printf '%s\n%s' "$accelerator" "$stamp_text" >"$venv/mae_jax.$1"
}

start_again() { # WHY
  say "$1: starting over with an empty .venv"
  rm -rf "$venv"
  stage=first
}

install() { # run|dev
  local accelerator=$accelerator size=2.3 stage=first state='' old=''
  uv=$(command -v uv || true)
  # mae_jax.unfinished contains the stage while the installer runs, and "failed" after a failed update.
  # A killed installer can leave a package that looks installed but is broken (seen with numpy), so after
  # that, and after any failed first installation, we start from an empty folder. A manually created
  # folder ("adopted") is never deleted.
  slurp state "$venv/mae_jax.unfinished"
  slurp old "$venv/mae_jax.run"
  old=${old%%$'\n'*} # the accelerator it was installed for
  if [[ -n $old ]]; then stage=update; elif [[ -e $python && -z $state ]]; then stage=adopted; fi
  # If no GPU is visible, an environment for GPUs keeps its plugins.
  if [[ $accelerator == cpu && -n $old ]]; then accelerator=$old; fi
  case $accelerator in cuda*) size=6 ;; esac
  if [[ $state == adopted* ]]; then
    die "an installation into $venv was interrupted and may have left broken packages: remove it"
  elif [[ $state == first* || $state == update* ]]; then
    start_again 'the last installation did not finish'
  elif [[ $stage == update && ! -x $venv/bin/python ]]; then
    start_again 'the Python that created .venv is gone'
  elif [[ $old == cuda12 && $accelerator == cuda13 || $old == cuda13 && $accelerator == cuda12 ]]; then
    start_again "$old before, $accelerator now" # JAX's plugins for the two exclude each other
  fi
  if [[ $stage == update ]]; then
    say "updating the packages for $accelerator$gpu_note in $venv"
  else
    say "installing the packages for $accelerator$gpu_note into $venv:" \
      "takes a minute or two and $size GB of disk, once"
  fi
  mkdir -p "$venv"
  printf '%s\n' "$stage" >"$venv/mae_jax.unfinished"

  [[ -x $venv/bin/python ]] || make_venv
  "$python" -c "$supported" || die "$venv has a Python that is not 3.11, 3.12 or 3.13; remove it"
  if ! pip_install "$1"; then
    if [[ $stage == update ]]; then
      printf 'failed\n' >"$venv/mae_jax.unfinished"
      say "to run with the old packages: MAE_JAX_PYTHON=$python"
    elif [[ $stage == adopted ]]; then
      rm "$venv/mae_jax.unfinished"
    fi
    die 'the installation failed, see above; rerun the same command to try again'
  fi
  [[ $1 != dev ]] || write_stamp dev
  write_stamp run
  rm -f "$venv/mae_jax.unfinished"
  say "installed in $SECONDS s"
}

# If two starts overlap, the second waits and then finds everything installed.
lock() {
  if command -v flock >/dev/null; then
    exec 9>"$root/.venv.lock"
    flock -n 9 && return
    say 'another start is installing; waiting for it'
    flock 9 || say 'this disk does not support locks; continuing without'
  else # macOS
    local announced=''
    until mkdir "$root/.venv.lock.d" 2>/dev/null; do
      [[ -n $announced ]] || say "another start is installing; waiting (none is? remove $root/.venv.lock.d)"
      announced=yes
      sleep 1
    done
    trap 'rmdir "$root/.venv.lock.d"' EXIT
  fi
}

unlock() {
  exec 9>&- # otherwise the training run would hold the lock
  if [[ -d $root/.venv.lock.d ]]; then rmdir "$root/.venv.lock.d"; fi
  trap - EXIT INT TERM HUP
}

setup() { # run|dev
  venv=$root/.venv
  python=$venv/bin/python
  detect_accelerator
  if [[ -n ${MAE_JAX_PYTHON:-} ]]; then
    python=$MAE_JAX_PYTHON
    "$python" -c "$supported" || die "MAE_JAX_PYTHON=$python does not start, or is not 3.11 to 3.13"
    return
  fi
  if ! is_ready "$1"; then
    if [[ -n $dry_run ]]; then
      say "would first install the packages for $accelerator into $venv"
      return
    fi
    [[ -w $root ]] || die "$root is not writable, so .venv cannot be created there"
    lock
    # pip turns Ctrl-C into an ordinary failure, so a trap is needed to stop.
    trap 'exit 130' INT TERM HUP
    is_ready "$1" || install "$1"
    unlock
  fi
  if [[ -n $gpu_driver ]]; then # so that the next start can skip nvidia-smi
    printf '%s\n%s' "$accelerator" "$gpu_driver" 2>/dev/null >"$venv/mae_jax.gpu" || true
  fi
}

# Sets the environment variables of all our programs.
setup_environment() {
  export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
  export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"
}
