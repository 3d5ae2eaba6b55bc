#!/bin/bash
# The one gate: all that must hold before a change is taken. CI calls only this.
#
#   scripts/test.sh                everything, from a clean clone in under a quarter of an hour on two cores
#   scripts/test.sh STEP..         only these: fmt clippy test doc deny interop
#
#   MIGWIRE_NO_INTEROP=1    do not run stock QEMU builds (a run without them fails otherwise: nothing is proven about peers)
#   MIGWIRE_NO_INSTALL=1    install no Debian packages (only root ever does)
#   MIGWIRE_QEMU_DIR        where the builds are (default: target/qemu; fetched when missing)
#
# Needs cargo 1.88 or later with rustfmt and clippy (rustup's default profile), and a C compiler to link with.
# Exit: 0 all green, 1 something failed, 2 usage, 3 something that it needs is missing.
set -uo pipefail
cd "$(dirname -- "$0")/.." || exit 3

STEPS=(fmt clippy test doc deny interop)
LOG=$(mktemp -d) || exit 3
trap 'rm -rf "$LOG"' EXIT
# A changed text fails; it is not written anew.
export INSTA_UPDATE=no CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-auto}

say() { printf 'test.sh: %s\n' "$*"; }

missing() {
    say "$*" >&2
    exit 3
}

# What the tests call and what links them. Tests that miss one of these say SKIPPED and what.
prepare() {
    local wanted=() tool package
    while read -r tool package; do
        command -v "$tool" >/dev/null 2>&1 || wanted+=("$package")
    done <<'TOOLS'
cc gcc
as binutils
tshark tshark
TOOLS
    [ ${#wanted[@]} -eq 0 ] && return
    if [ "$(id -u)" = 0 ] && [ -z "${MIGWIRE_NO_INSTALL:-}" ] && command -v apt-get >/dev/null; then
        say "installing ${wanted[*]}"
        (export DEBIAN_FRONTEND=noninteractive
            timeout 120 apt-get -qq update && timeout 300 apt-get -qq install --no-install-recommends "${wanted[@]}") \
            >"$LOG/apt" 2>&1 || say "could not install ${wanted[*]}: $(tail -n 1 "$LOG/apt")"
    else
        say "not installed, and not root or told not to install: ${wanted[*]}"
    fi
}

check_toolchain() {
    command -v cargo >/dev/null || missing "no cargo; see https://rustup.rs"
    local version
    version=$(cargo --version | sed 's/^cargo 1\.\([0-9]*\)\..*/\1/')
    case $version in
    '' | *[!0-9]*) missing "cannot tell the version of cargo from '$(cargo --version)'" ;;
    esac
    [ "$version" -ge 88 ] || missing "cargo 1.88 or later is needed, this is 1.$version"
    cargo fmt --version >/dev/null 2>&1 || missing "no rustfmt; rustup component add rustfmt"
    cargo clippy --version >/dev/null 2>&1 || missing "no clippy; rustup component add clippy"
    command -v cc >/dev/null || missing "no C compiler to link with; apt-get install gcc"
}

run_fmt() { cargo fmt --all --check; }

# The library is used without the command and with parts of it only, so that each part has to build alone.
run_clippy() {
    local feature
    cargo clippy --workspace --all-targets --all-features -- -D warnings &&
        cargo clippy -p migwire --lib --no-default-features -- -D warnings &&
        cargo clippy -p migwire --lib --no-default-features --profile test -- -D warnings || return
    for feature in json compress capture container transport endpoint; do
        cargo clippy --quiet -p migwire --lib --no-default-features --features "$feature" -- -D warnings || {
            say "the library does not build with feature $feature alone"
            return 1
        }
    done
}

# Includes smoke tests of the fuzz bodies (package migwire-fuzz), the rules of the house (tests/house.rs) and doc tests.
# What passing tests print is kept for the summary (they may say SKIPPED) and not shown.
run_test() {
    cargo test --workspace --no-fail-fast -- --show-output 2>&1 | tee "$LOG/tests" |
        awk '/^successes:$/ { hidden = 1 } /^failures:$|^test result:/ { hidden = 0 } !hidden { print; fflush() }'
}

run_doc() { RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps; }

# The list of advisories comes from the network; without it the rest is still checked, and the gap is said.
run_deny() {
    cargo deny --workspace check bans licenses sources || return
    if timeout 120 cargo deny --workspace fetch db; then
        cargo deny --workspace check advisories
    else
        say "deny: advisories NOT CHECKED, their list could not be fetched"
    fi
}

# The quick selection of the judge's cases, all four builds. Exit 3 of the judge: something could not be run.
run_interop() { scripts/interop.sh --short --jobs 2 --require-peers; }

# Seconds a step may take.
limit() {
    case $1 in
    test | interop) echo 1200 ;;
    *) echo 600 ;;
    esac
}

passed=() failed=() skipped=() times=()

step() {
    local name=$1 begin=$SECONDS code=0
    say "---- $name"
    # A new shell, so that a time limit covers all of the step; functions come along.
    timeout --foreground "$(limit "$name")" bash -c "set -uo pipefail; run_$name"
    code=$?
    times+=("$name $((SECONDS - begin)) s")
    if [ $code -eq 0 ]; then
        passed+=("$name")
    else
        [ $code -eq 124 ] && say "$name took longer than $(limit "$name") s"
        failed+=("$name")
    fi
    return $code
}

skip() {
    say "---- $1 NOT RUN: $2"
    skipped+=("$1: $2")
}

export LOG
export -f say run_fmt run_clippy run_test run_doc run_deny run_interop

selected=("$@")
[ $# -gt 0 ] || selected=("${STEPS[@]}")
for name in "${selected[@]}"; do
    case " ${STEPS[*]} " in
    *" $name "*) ;;
    *)
        say "no step $name; there are: ${STEPS[*]}" >&2
        exit 2
        ;;
    esac
done

prepare
check_toolchain

for name in "${selected[@]}"; do
    case $name in
    deny)
        if cargo deny --version >/dev/null 2>&1; then step deny; else skip deny "cargo-deny is not installed"; fi
        ;;
    interop)
        if [ -n "${MIGWIRE_NO_INTEROP:-}" ]; then
            skip interop "MIGWIRE_NO_INTEROP is set, NOTHING IS PROVEN ABOUT STOCK QEMU"
        elif ! step interop && [ ! -x "${MIGWIRE_QEMU_DIR:-target/qemu}/7.2/qemu-system-x86_64" ]; then
            say "INTEROP WAS NOT RUN: no stock QEMU builds, and none could be fetched. MIGWIRE_NO_INTEROP=1 leaves it out."
        fi
        ;;
    *) step "$name" ;;
    esac
done

say "---- summary"
printf 'test.sh:   %s\n' "${times[@]}"
[ ${#skipped[@]} -eq 0 ] || printf 'test.sh:   NOT RUN %s\n' "${skipped[@]}"
if [ -s "$LOG/tests" ]; then
    sed -n 's/.*SKIPPED/test.sh:   test SKIPPED/p' "$LOG/tests"
    awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
        END { printf "test.sh: tests: %d passed, %d failed, %d ignored\n", passed, failed, ignored }' "$LOG/tests"
fi
if [ ${#failed[@]} -gt 0 ]; then
    say "FAILED: ${failed[*]}"
    exit 1
fi
if [ ${#skipped[@]} -gt 0 ]; then
    say "green: ${passed[*]:-nothing}; not run: ${skipped[*]%%:*}"
else
    say "all green: ${passed[*]}"
fi
