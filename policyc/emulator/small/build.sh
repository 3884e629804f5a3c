#!/bin/sh
# Build the small guest with binutils alone: kernel.bin, kernel.relocs, kernel.map and kernel.lst, into the folder
# given or next to this script. The same sources give the same bytes.
set -eu
export LC_ALL=C TZ=UTC
source=$(dirname "$0")
out=${1:-$source}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

(cd "$source" && as --64 --fatal-warnings -o "$work/kernel.o" defs.inc head.S entry.S kernel.S module.S user.S)
ld -m elf_x86_64 -T "$source/kernel.lds" --build-id=none --emit-relocs --no-warn-rwx-segments -z noexecstack \
    -z max-page-size=4096 -o "$work/kernel.elf" "$work/kernel.o"
objcopy -O binary "$work/kernel.elf" "$out/kernel.bin"
chmod a-x "$out/kernel.bin"

# System.map form; the module's and the user task's symbols come along, sorted by address like the rest.
nm -n "$work/kernel.elf" | grep -v ' [aAN] ' >"$out/kernel.map"

# Places that hold a 64-bit kernel address, which a slide moves: one hexadecimal link address a line. Addresses in the
# module area and in user space stay.
readelf -rW "$work/kernel.elf" |
    awk '$3 == "R_X86_64_64" && $4 >= "ffffffff81000000" && $4 < "ffffffffc0000000" { print $1 }' |
    sort >"$out/kernel.relocs"

# The listing: code disassembled, data as bytes; rows of zeros are left out.
{
    objdump -d -w -j .text -j .module.text -j .user.text "$work/kernel.elf"
    objdump -s -j .rodata -j .data -j .module.data "$work/kernel.elf"
} | grep -v -e 'file format' -e ' 00000000 00000000 00000000 00000000 ' | sed 's/[[:space:]]*$//' >"$out/kernel.lst"
