"""The symbols of a kernel just large enough to compile a policy against, as its System.map and as its profile."""

from __future__ import annotations

from pathlib import Path

from policyc.guest.readers import build_profile
from policyc.guest.store import encode

__all__ = ["BANNER", "SYSTEM_MAP", "write_small_kernel"]

SYSTEM_MAP = """\
ffffffff81000000 T _text
ffffffff81000000 T _stext
ffffffff81001000 T schedule
ffffffff81001800 T text_poke_memcpy
ffffffff81001880 T memcpy
ffffffff81002000 T entry_SYSCALL_64
ffffffff81003000 T asm_exc_divide_error
ffffffff81003100 T asm_exc_page_fault
ffffffff81800000 T _etext
ffffffff81a00000 R __start_rodata
ffffffff81a00180 R sys_call_table
ffffffff81a01180 R linux_banner
ffffffff81b00000 R __end_rodata
ffffffff82000000 D _sdata
ffffffff82001000 D init_task
ffffffff82100000 D _edata
ffffffff82100000 T __init_begin
ffffffff82180000 T __init_end
ffffffff82200000 B __bss_start
ffffffff82300000 B __bss_stop
ffffffff82400000 B _end
"""

BANNER = "Linux version 6.1.0-small (someone@somewhere) #1 SMP\n"


def write_small_kernel(folder: Path) -> None:
    """Put `System.map`, `version.txt` and `kernel.profile` into `folder`."""
    (folder / "System.map").write_text(SYSTEM_MAP)
    (folder / "version.txt").write_text(BANNER)
    (folder / "kernel.profile").write_bytes(encode(build_profile(SYSTEM_MAP.encode(), banner=BANNER)))
