#!/bin/sh
# Runs libFuzzer on one fuzz target: scripts/fuzz.sh TARGET SECONDS [libFuzzer options]
#
# Needs a nightly toolchain (`rustup toolchain install nightly --profile minimal`) and a C++ compiler, as the sanitizer's and
# libFuzzer's halves are built by them; cargo-fuzz is not needed. New inputs are kept in target/fuzz/corpus/TARGET, findings
# in target/fuzz/findings/TARGET. To replay a finding on any toolchain:
#   cargo run -p migwire-fuzz --features targets --bin TARGET -- FILE
#
# Exit: 0 nothing found, 1 a finding, 2 usage, 3 something that it needs is missing.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
targets=$(cd "$root/fuzz/fuzz_targets" && ls | sed 's/\.rs$//' | tr '\n' ' ')

usage() {
    echo "usage: scripts/fuzz.sh TARGET SECONDS [libFuzzer options]" >&2
    echo "targets: $targets" >&2
    exit 2
}

[ $# -ge 2 ] || usage
target=$1 seconds=$2
shift 2
case " $targets " in *" $target "*) ;; *) usage ;; esac
case $seconds in '' | *[!0-9]*) usage ;; esac

missing() {
    echo "fuzz.sh: $1" >&2
    exit 3
}

# A toolchain that is nightly by itself (no rustup) will do as well.
if cargo +nightly --version >/dev/null 2>&1; then
    nightly=+nightly
elif rustc --version 2>/dev/null | grep -q nightly; then
    nightly=
else
    missing "no nightly toolchain; install one with: rustup toolchain install nightly --profile minimal"
fi
command -v c++ >/dev/null 2>&1 || missing "no C++ compiler (apt-get install g++)"

host=$(rustc $nightly -vV | sed -n 's/^host: //p')
build=$root/target/fuzz/build
found=$root/target/fuzz/findings/$target
kept=$root/target/fuzz/corpus/$target
mkdir -p "$found" "$kept"

# What cargo-fuzz passes: coverage counters and comparisons for libFuzzer to see, address sanitizer, checks on. The explicit
# --target keeps all that out of build scripts.
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address -Cdebug-assertions -Coverflow-checks \
-Ccodegen-units=1 ${RUSTFLAGS:-}" \
    cargo $nightly build --quiet --manifest-path "$root/Cargo.toml" -p migwire-fuzz --features targets --bin "$target" \
    --release --target "$host" --target-dir "$build" >&2

program=$build/$host/release/$target
# Rust programs ignore it; the main function of these is libFuzzer's.
trap '' PIPE
echo "fuzz.sh: $target for $seconds seconds" >&2
# A finding of any kind (panic, sanitizer, more than 1 GiB, more than 20 s for one input) ends the run with another status.
if "$program" -max_total_time="$seconds" -max_len=65536 -timeout=20 -rss_limit_mb=1024 -malloc_limit_mb=256 \
    -artifact_prefix="$found/" -print_final_stats=1 "$@" "$kept" "$root/fuzz/corpus/$target" >&2; then
    echo "fuzz.sh: $target: nothing found" >&2
else
    echo "fuzz.sh: $target: see $found" >&2
    exit 1
fi
