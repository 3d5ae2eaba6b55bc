#!/bin/sh
# Fetches stock QEMU builds of four generations from Debian's archive, without
# root and without touching the system: apt runs on a private state folder,
# packages are unpacked with `dpkg-deb -x`, and every build runs with its own
# loader and libraries. What comes out, for each release:
#
#   DIR/RELEASE/qemu-system-x86_64   launcher, works from any folder
#   DIR/RELEASE/qemu-img             launcher
#   DIR/RELEASE/VERSION              what was fetched, from where
#   DIR/RELEASE/root/                the unpacked packages
#
# A release that is there and runs is left alone. A release that cannot be
# fetched leaves nothing behind under its name, and whatever was there stays.
#
# Exit codes: 0 everything asked for is there, 2 usage, 3 something is missing.
set -eu

SUPPORTED="5.2 7.2 10.0 11.1"
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
# The longest that one run of apt may take; a stalled mirror must not hang CI.
APT_LIMIT=600

usage() {
    cat <<TEXT
usage: fetch-qemu.sh [--dir DIR] [RELEASE...]

Fetches stock QEMU builds from Debian's archive. RELEASE: $SUPPORTED
(default: all). DIR: default \$MIGWIRE_QEMU_DIR, else target/qemu in the
repository.
TEXT
}

say() { printf 'fetch-qemu: %s\n' "$*" >&2; }

# The suites to list, newest preference last; the last one is the target.
suites_of() {
    case $1 in
    5.2) echo "bullseye" ;;
    7.2) echo "bookworm" ;;
    10.0) echo "trixie" ;;
    11.1) echo "trixie trixie-backports" ;;
    esac
}

main() {
    here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
    dir=${MIGWIRE_QEMU_DIR:-$here/../target/qemu}
    releases=
    while [ $# -gt 0 ]; do
        case $1 in
        --dir)
            [ $# -ge 2 ] || { usage >&2; exit 2; }
            dir=$2
            shift
            ;;
        --dir=*) dir=${1#--dir=} ;;
        -h | --help) usage; exit 0 ;;
        -*) say "unknown option $1"; usage >&2; exit 2 ;;
        *)
            [ -n "$(suites_of "$1")" ] || {
                say "unknown release $1; there are: $SUPPORTED"
                exit 2
            }
            releases="$releases $1"
            ;;
        esac
        shift
    done
    [ -n "$releases" ] || releases=$SUPPORTED

    mkdir -p -- "$dir" || { say "cannot make folder $dir"; exit 3; }
    dir=$(CDPATH='' cd -- "$dir" && pwd)

    wanted=
    for release in $releases; do
        if runs "$dir/$release"; then
            say "$release: there already ($(first_version "$dir/$release"))"
        else
            wanted="$wanted $release"
        fi
    done
    [ -n "$wanted" ] || exit 0

    check_tools "$wanted"
    # Two runs at once would delete each other's temporary folders.
    exec 9>"$dir/.lock"
    flock -w "$APT_LIMIT" 9 || { say "another fetch holds $dir/.lock"; exit 3; }
    rm -rf -- "$dir"/.fetch-*
    work=
    trap '[ -z "$work" ] || rm -rf -- "$work"' EXIT
    trap 'exit 3' HUP INT TERM

    missing=
    for release in $wanted; do
        # The release may have come while this run waited for the lock.
        runs "$dir/$release" && continue
        work=$(mktemp -d "$dir/.fetch-$release.XXXXXX")
        if fetch "$release" "$work" && install_build "$release" "$work"; then
            say "$release: fetched ($(first_version "$dir/$release"))"
        else
            missing="$missing $release"
        fi
        rm -rf -- "$work"
        work=
    done
    [ -z "$missing" ] || {
        say "missing:$missing (not in $dir; is there a network?)"
        exit 3
    }
}

# True when a folder holds a build that starts.
runs() {
    [ -x "$1/qemu-system-x86_64" ] && [ -f "$1/VERSION" ] &&
        timeout 60 "$1/qemu-system-x86_64" --version >/dev/null 2>&1
}

first_version() { sed -n 's/^version: //p' "$1/VERSION"; }

check_tools() {
    lacking=
    for tool in apt-get apt-config dpkg dpkg-deb flock timeout; do
        command -v "$tool" >/dev/null 2>&1 || lacking="$lacking $tool"
    done
    [ -r "$KEYRING" ] || lacking="$lacking $KEYRING (package debian-archive-keyring)"
    if [ -z "$lacking" ] && [ "$(dpkg --print-architecture)" != amd64 ]; then
        lacking=" an amd64 system (this one is $(dpkg --print-architecture))"
    fi
    [ -z "$lacking" ] || {
        say "cannot fetch$1: needs$lacking"
        exit 3
    }
}

# The mirrors to try, one a line: those that the system uses for Debian itself,
# then the public one, then the archive of suites that were retired.
mirrors() {
    {
        cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
            awk '$1 == "deb" { for (i = 2; i <= NF; i++) if ($i ~ /:\//) print $i }'
        cat /etc/apt/sources.list.d/*.sources 2>/dev/null |
            awk 'tolower($1) == "uris:" { for (i = 2; i <= NF; i++) print $i }'
    } | sed 's:/*$::' | grep -E '^(https?|file|mirror\+[a-z]+)://?.*/debian$' || true
    echo http://deb.debian.org/debian
    echo http://archive.debian.org/debian
}

# Downloads and unpacks one release: fetch RELEASE WORK.
fetch() {
    suites=$(suites_of "$1")
    log=$2/apt.log
    for mirror in $(mirrors | awk '!seen[$0]++'); do
        say "$1: fetching ${suites##* } from $mirror"
        rm -rf -- "$2/apt" "$2/root"
        apt_state "$2/apt" "$mirror" "$suites"
        # Only the update decides whether the mirror is good for this suite: a
        # retired suite is gone from the ordinary mirrors altogether.
        if ! private_apt "$2/apt" update >"$log" 2>&1 || grep -q '^[EW]: Failed' "$log"; then
            grep -E '^(E|W|Err)' "$log" | head -n 4 >&2 || true
            continue
        fi
        if private_apt "$2/apt" install -y --download-only \
            --no-install-recommends -t "${suites##* }" \
            qemu-system-x86 qemu-utils >"$log" 2>&1; then
            unpack "$1" "$2" "$mirror"
            return
        fi
        grep -E '^(E|W|Err)' "$log" | head -n 4 >&2 || true
    done
    say "$1: no mirror gave ${suites##* }"
    return 1
}

# Writes a private apt state: nothing of the system's sources, pins, hooks,
# lists, locks or package database is read or written. How to reach the
# network (proxies, certificates, date checks) is taken over from the system.
apt_state() {
    mkdir -p "$1/lists/partial" "$1/archives/partial" "$1/none"
    : >"$1/status"
    for suite in $3; do
        echo "deb [arch=amd64 signed-by=$KEYRING] $2 $suite main"
    done >"$1/sources.list"
    {
        apt-config dump | grep '^Acquire::' | grep -v '^Acquire::IndexTargets' || true
        cat <<CONF
#clear Acquire::Languages;
Acquire::Languages "none";
// bullseye is no longer updated, so its date of validity has passed.
Acquire::Check-Valid-Until "false";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Sandbox::User "";
Dir::Etc::main "/dev/null";
Dir::Etc::parts "$1/none";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "$1/none";
Dir::Etc::sourcelist "$1/sources.list";
Dir::Etc::sourceparts "$1/none";
Dir::State "$1";
Dir::State::status "$1/status";
Dir::State::Lists "$1/lists";
Dir::Cache "$1";
Dir::Cache::archives "$1/archives";
Dir::Log "$1";
CONF
    } >"$1/apt.conf"
}

private_apt() {
    conf=$1/apt.conf
    shift
    LC_ALL=C APT_CONFIG=$conf DEBIAN_FRONTEND=noninteractive \
        timeout "$APT_LIMIT" apt-get -q "$@" </dev/null
}

# unpack RELEASE WORK MIRROR
unpack() {
    mkdir "$2/root"
    for deb in "$2"/apt/archives/*.deb; do
        dpkg-deb -x "$deb" "$2/root" >>"$2/apt.log" 2>&1 || {
            say "$1: cannot unpack ${deb##*/}"
            return 1
        }
    done
    launcher "$2" qemu-system-x86_64
    launcher "$2" qemu-img
    version=$(timeout 60 "$2/qemu-system-x86_64" --version 2>&1 | head -n 1)
    case $version in
    "QEMU emulator version $1".*) ;;
    "QEMU emulator version"*) say "$1: note: the archive has moved on to: $version" ;;
    *)
        say "$1: the unpacked build does not start: $version"
        return 1
        ;;
    esac
    {
        echo "release: $1"
        echo "version: $version"
        echo "suite: ${suites##* }"
        echo "mirror: $3"
        for package in qemu-system-x86 qemu-utils seabios ipxe-qemu; do
            for deb in "$2/apt/archives/$package"_*.deb; do
                [ -f "$deb" ] || continue
                echo "package: $package $(dpkg-deb -f "$deb" Version)"
            done
        done
    } >"$2/VERSION"
}

# Writes a launcher: launcher FOLDER PROGRAM. It finds its folder by itself, so
# the folder may be moved; bullseye keeps libraries in lib, later suites in
# usr/lib, so both are looked at.
launcher() {
    cat >"$1/$2" <<'LAUNCHER'
#!/bin/sh
here=$(dirname -- "$(readlink -f -- "$0")")
root=$here/root
for loader in "$root/lib64/ld-linux-x86-64.so.2" \
    "$root/usr/lib64/ld-linux-x86-64.so.2" \
    "$root/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" \
    "$root/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"; do
    [ -x "$loader" ] && break
done
libraries=$root/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu
export QEMU_MODULE_DIR="$root/usr/lib/x86_64-linux-gnu/qemu"
LAUNCHER
    case $2 in
    qemu-system-*)
        cat >>"$1/$2" <<LAUNCHER
exec "\$loader" --library-path "\$libraries" "\$root/usr/bin/$2" \\
    -L "\$root/usr/share/qemu" -L "\$root/usr/share/seabios" \\
    -L "\$root/usr/lib/ipxe/qemu" "\$@"
LAUNCHER
        ;;
    *)
        cat >>"$1/$2" <<LAUNCHER
exec "\$loader" --library-path "\$libraries" "\$root/usr/bin/$2" "\$@"
LAUNCHER
        ;;
    esac
    chmod 755 "$1/$2"
}

# Puts a finished build under its name; a broken one that was there goes.
install_build() {
    rm -rf -- "$2/apt" "$2/apt.log"
    if [ -e "$dir/$1" ]; then
        mv -- "$dir/$1" "$dir/.fetch-$1.old" || return 1
        rm -rf -- "$dir/.fetch-$1.old"
    fi
    chmod 755 "$2" && mv -- "$2" "$dir/$1"
}

main "$@"
