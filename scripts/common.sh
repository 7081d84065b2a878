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
