"""Decoded instructions are kept where code can't change unseen, and nowhere else."""

from __future__ import annotations

from policyc.kvmi import (
    CpuMode,
)
from tests.support.scripted_kernel import IMAGE_BASE

TEXT = "text: deny write to kernel .text"
EXCEPTED = TEXT + ' except from kernel:__text_poke because "the kernel patches itself"'
OBJECT = "object: deny write to kernel:guarded_object"

SCHEDULE = IMAGE_BASE + 0x1000
TEXT_POKE = IMAGE_BASE + 0x1240
GUARDED = IMAGE_BASE + 0x6104
MODULE_GVA = 0xFFFFFFFFC0401000

STORE_8 = bytes.fromhex("488903")  # mov [rbx], rax
STORE_1 = bytes.fromhex("8803")  # mov [rbx], al

LONG = CpuMode.LONG
