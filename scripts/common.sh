# shellcheck shell=bash
# Each script here begins with this, sourced: it stops at the first error, works from the checkout's
# root whatever directory it is called from, and finds the tools in /sbin, which a user's PATH lacks.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PATH:/usr/sbin:/sbin"

# fail MESSAGE...
fail() {
    echo "scripts/${0##*/}: $*" >&2
    exit 1
}

# offer_help "$@": print the script's usage and end, if that is what is asked for.
offer_help() {
    case ${1-} in
        -h | --help) usage && exit ;;
    esac
}

# refuse_arguments "$@": for a script that takes none.
refuse_arguments() {
    (($# == 0)) || { usage >&2 && exit 2; }
}

# require_root WHAT "$@": what the script does takes root.
require_root() {
    local command="scripts/${0##*/} ${*:2}"
    [[ $EUID -eq 0 ]] || fail "$1 takes root; try: sudo ${command% }"
}

done_checks=() failed_checks=()

# check NAME COMMAND...: run it, and go on also if it fails.
check() {
    local name=$1
    shift
    printf '\n== %s\n' "$name"
    done_checks+=("$name")
    "$@" || failed_checks+=("$name")
}

# What came of all checks; ends with status 1 if one has failed.
report_checks() {
    ((${#failed_checks[@]} == 0)) || fail "failed: $(in_line "${failed_checks[@]}")"
    printf '\nAll is well: %s.\n' "$(in_line "${done_checks[@]}")"
}

# in_line WORD...: the words with commas between them.
in_line() {
    printf '%s' "$1"
    shift
    (($# == 0)) || printf ', %s' "$@"
}
