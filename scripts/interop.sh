#!/bin/sh
# The main job: gets the stock QEMU builds if they are missing, builds the command and its judge, runs the matrix and
# prints the table. Every argument goes to the judge: --short, --only PATTERN, --peer NAME=PATH, --list, .. (--help).
#
# Exit codes are the judge's: 0 all as expected, 1 something is not, 2 usage, 3 nothing could be built or run here.
#
#   MIGWIRE_QEMU_DIR   where the builds are (default: target/qemu)
#   MIGWIRE_NO_FETCH   set: use only the builds that are there
set -u
cd "$(dirname -- "$0")/.." || exit 3

say() { printf 'interop: %s\n' "$*" >&2; }

qemu=${MIGWIRE_QEMU_DIR:-$PWD/target/qemu}
target=${CARGO_TARGET_DIR:-target}
export MIGWIRE_QEMU_DIR="$qemu"

missing() {
    for release in 5.2 7.2 10.0 11.1; do
        [ -x "$qemu/$release/qemu-system-x86_64" ] || printf '%s ' "$release"
    done
}

# Some words need no QEMU at all.
needs_qemu=yes
for word in "$@"; do
    case $word in
    merge | --list | --help | -h | --version | -V) needs_qemu= ;;
    esac
done

if [ -n "$needs_qemu" ] && [ -n "$(missing)" ]; then
    if [ -n "${MIGWIRE_NO_FETCH:-}" ]; then
        say "MIGWIRE_NO_FETCH is set, so nothing is fetched"
    else
        say "fetching QEMU builds: $(missing)"
        # shellcheck disable=SC2046 # a list of releases
        scripts/fetch-qemu.sh --dir "$qemu" $(missing) || say "not everything could be fetched (no network?)"
    fi
    for release in $(missing); do
        say "NOT RUN: every cell with QEMU $release, which is not in $qemu/$release"
    done
fi

cargo build --release -p migwire -p migwire-interop || {
    say "NOT RUN: the command or its judge does not build"
    exit 3
}
exec "$target/release/migwire-interop" "$@"
