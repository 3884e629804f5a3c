#!/bin/sh
# Assemble guest.S with binutils alone and print it as guest.hex, to the file given or next to this script.
set -eu
source=$(dirname "$0")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
as --64 --fatal-warnings -o "$work/guest.o" "$source/guest.S"
ld -m elf_x86_64 -Ttext=0x100000 -e 0x100000 --build-id=none -o "$work/guest.elf" "$work/guest.o"
objcopy -O binary -j .text "$work/guest.elf" "$work/guest.bin"
od -An -v -tx1 -w32 "$work/guest.bin" | tr -d ' ' >"${1:-$source/guest.hex}"
