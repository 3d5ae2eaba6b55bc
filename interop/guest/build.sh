#!/bin/sh
# Assembles the boot sector with binutils (as, ld, objcopy).
#
#   build.sh           writes dirty.bin beside this script
#   build.sh --check   compares the committed dirty.bin with a fresh build;
#                      exit 1 when they differ, 3 when binutils is missing
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
case ${1-} in
'' | --check) ;;
*) echo "usage: build.sh [--check]" >&2; exit 2 ;;
esac
for tool in as ld objcopy; do
    command -v "$tool" >/dev/null 2>&1 || {
        echo "build.sh: needs $tool (package binutils)" >&2
        exit 3
    }
done

work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
as --32 -o "$work/dirty.o" "$here/dirty.S"
ld -m elf_i386 -Ttext 0x7c00 -e _start -o "$work/dirty.elf" "$work/dirty.o"
objcopy -O binary -j .text "$work/dirty.elf" "$work/dirty.bin"
size=$(wc -c <"$work/dirty.bin")
[ "$size" -eq 512 ] || {
    echo "build.sh: $size bytes, a boot sector has 512" >&2
    exit 1
}

if [ "${1-}" = --check ]; then
    cmp "$work/dirty.bin" "$here/dirty.bin" || {
        echo "build.sh: dirty.bin is not what dirty.S assembles to" >&2
        exit 1
    }
    echo "build.sh: dirty.bin is what dirty.S assembles to" >&2
else
    cp -- "$work/dirty.bin" "$here/dirty.bin"
fi
