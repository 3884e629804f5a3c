#!/bin/sh
# Build the small guest with binutils and Python: kernel.bin, kernel.relocs, kernel.map and kernel.lst, into the folder
# given or next to this script. The same sources give the same bytes.
set -eu
export LC_ALL=C TZ=UTC
source=$(dirname "$0")
out=${1:-$source}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

(cd "$source" && as --64 --fatal-warnings -o "$work/kernel.o" \
    defs.inc head.S entry.S kernel.S acts.S module.S user.S)

# The kernel's own symbol tables move what lies behind them, so the link is repeated until they are what they say: once
# without them, once to know how large they are, once for the addresses (scripts/link-vmlinux.sh does the same).
: >"$work/symbols"
for pass in 1 2 3 4; do
    "${PYTHON:-python3}" "$source/kallsyms.py" <"$work/symbols" >"$work/kallsyms.S"
    as --64 --fatal-warnings -o "$work/kallsyms.o" "$work/kallsyms.S"
    ld -m elf_x86_64 -T "$source/kernel.lds" --build-id=none --emit-relocs --no-warn-rwx-segments -z noexecstack \
        -z max-page-size=4096 -o "$work/kernel.elf" "$work/kernel.o" "$work/kallsyms.o"
    nm -n "$work/kernel.elf" >"$work/linked"
    if cmp -s "$work/linked" "$work/symbols"; then
        break
    fi
    [ "$pass" -lt 4 ] || { echo "the symbol tables don't settle" >&2; exit 1; }
    mv "$work/linked" "$work/symbols"
done

objcopy -O binary "$work/kernel.elf" "$out/kernel.bin"
chmod a-x "$out/kernel.bin"

# System.map form; the module's and the user task's symbols come along, sorted by address like the rest.
grep -v ' [aAN] ' "$work/symbols" >"$out/kernel.map"

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
