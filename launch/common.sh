# shellcheck shell=bash
# Sourced by the launch scripts: messages, --help, and commands that --dry_run prints instead.

say() { printf 'launch: %s\n' "$*" >&2; }
die() { # the work failed
  say "$@"
  exit 1
}
refuse() { # bad input
  say "$@"
  exit 2
}

# --help prints the comment at the top of a script.
show_help() { sed -n '2,${/^#/!q; s/^# \{0,1\}//p;}' "$1"; }

# Formats a command as a line that can be pasted into a shell.
quoted() {
  local word line=''
  for word in "$@"; do
    # The output of printf %q is correct too, but hard to read.
    if [[ $word =~ ^[A-Za-z0-9_/.,:=@%+-]+$ ]]; then
      line+=" $word"
    else
      line+=" '${word//\'/\'\\\'\'}'"
    fi
  done
  printf '%s\n' "${line# }"
}

dry_run='' # set by --dry_run
execute() { # COMMAND...: runs it, or prints it
  if [[ -n $dry_run ]]; then quoted "$@"; else "$@"; fi
}
