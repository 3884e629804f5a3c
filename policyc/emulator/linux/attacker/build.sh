#!/bin/sh
# Build the attacker's page with binutils alone: attacker.bin, attacker.map and attacker.lst, into the folder given or
# next to this script. The same source gives the same bytes.
set -eu
export LC_ALL=C TZ=UTC
source=$(dirname "$0")
out=${1:-$source}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

as --64 --fatal-warnings -o "$work/attacker.o" "$source/attacker.S"
objcopy -O binary -j .text "$work/attacker.o" "$out/attacker.bin"
chmod a-x "$out/attacker.bin"

# Offsets of the routines, one a line.
nm --defined-only --extern-only --numeric-sort "$work/attacker.o" | cut -d' ' -f1,3 >"$out/attacker.map"

objdump -d -w "$work/attacker.o" | grep -v 'file format' | sed 's/[[:space:]]*$//' >"$out/attacker.lst"
