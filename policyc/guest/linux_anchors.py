"""Which symbols a running Linux kernel's own registers lead to: the gates of its IDT, and LSTAR.

Gates: arch/x86/kernel/idt.c (early_idts, def_idts, apic_idts) and arch/x86/include/asm/irq_vectors.h of Linux 5.8 to
6.18; before 5.8 the handlers had other names and the system vectors moved about, so only the exceptions are used there.
A gate that a kernel fills or not as it boots (system calls of 32 bits, hypervisor callbacks, device interrupts) is no
anchor: its absence would say nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from policyc.addresses import Gva
from policyc.guest.linux_image import ENTRY_SYMBOLS
from policyc.guest.profile import Image, SymbolKind

__all__ = ["GATE_SIZE", "LSTAR", "Anchor", "anchors_of", "gate_target"]

GATE_SIZE = 16
"""Bytes of an IDT entry in long mode (Intel SDM volume 3A, 6.14.1)."""

GATE_PRESENT = 0x80
GATE_TYPE = 0x1F
GATE_TYPES = (0x0E, 0x0F)
"""Interrupt and trap gates of long mode, with the descriptor's S bit clear."""

LSTAR = "LSTAR"

MODERN_WITNESS = "asm_exc_page_fault"
"""The name that only kernels since 5.8 have (Linux, arch/x86/include/asm/idtentry.h)."""

# Vector, name since 5.8, names before. Under KVM a kernel before 5.8 puts async_page_fault in the place of page_fault
# (arch/x86/kernel/kvm.c, kvm_apf_trap_init).
VECTORS: tuple[tuple[int, str, tuple[str, ...]], ...] = (
    (0x00, "asm_exc_divide_error", ("divide_error",)),
    (0x01, "asm_exc_debug", ("debug",)),
    (0x02, "asm_exc_nmi", ("nmi",)),
    (0x03, "asm_exc_int3", ("int3",)),
    (0x04, "asm_exc_overflow", ("overflow",)),
    (0x05, "asm_exc_bounds", ("bounds",)),
    (0x06, "asm_exc_invalid_op", ("invalid_op",)),
    (0x07, "asm_exc_device_not_available", ("device_not_available",)),
    (0x08, "asm_exc_double_fault", ("double_fault",)),
    (0x09, "asm_exc_coproc_segment_overrun", ("coprocessor_segment_overrun",)),
    (0x0A, "asm_exc_invalid_tss", ("invalid_TSS",)),
    (0x0B, "asm_exc_segment_not_present", ("segment_not_present",)),
    (0x0C, "asm_exc_stack_segment", ("stack_segment",)),
    (0x0D, "asm_exc_general_protection", ("general_protection",)),
    (0x0E, "asm_exc_page_fault", ("page_fault", "async_page_fault", "trace_page_fault")),
    (0x0F, "asm_exc_spurious_interrupt_bug", ("spurious_interrupt_bug",)),
    (0x10, "asm_exc_coprocessor_error", ("coprocessor_error",)),
    (0x11, "asm_exc_alignment_check", ("alignment_check",)),
    (0x12, "asm_exc_machine_check", ("machine_check",)),
    (0x13, "asm_exc_simd_coprocessor_error", ("simd_coprocessor_error",)),
    (0x14, "asm_exc_virtualization_exception", ()),
    (0x15, "asm_exc_control_protection", ()),
    (0x1D, "asm_exc_vmm_communication", ()),
    (0xEC, "asm_sysvec_apic_timer_interrupt", ()),
    (0xF0, "asm_sysvec_kvm_posted_intr_nested_ipi", ()),
    (0xF1, "asm_sysvec_kvm_posted_intr_wakeup_ipi", ()),
    (0xF2, "asm_sysvec_kvm_posted_intr_ipi", ()),
    (0xF4, "asm_sysvec_deferred_error", ()),
    (0xF6, "asm_sysvec_irq_work", ()),
    (0xF7, "asm_sysvec_x86_platform_ipi", ()),
    (0xF8, "asm_sysvec_reboot", ()),
    (0xF9, "asm_sysvec_threshold", ()),
    (0xFA, "asm_sysvec_thermal", ()),
    (0xFB, "asm_sysvec_call_function_single", ()),
    (0xFC, "asm_sysvec_call_function", ()),
    (0xFD, "asm_sysvec_reschedule_ipi", ()),
    (0xFE, "asm_sysvec_error_interrupt", ()),
    (0xFF, "asm_sysvec_spurious_apic_interrupt", ()),
)


@dataclass(frozen=True, slots=True)
class Anchor:
    """A place in a vCPU's registers or IDT that must lead to a known symbol.

    Attributes:
        place: "vector 14" or "LSTAR".
        vector: the IDT entry, or None for LSTAR.
        names: the symbols it may lead to.
        gvas: where the profile has them.
    """

    place: str
    vector: int | None
    names: tuple[str, ...]
    gvas: frozenset[Gva]


def anchors_of(kernel: Image) -> tuple[Anchor, ...]:
    """The anchors whose symbols `kernel` has, LSTAR first."""
    return tuple(_anchors(kernel))


def gate_target(gate: bytes) -> Gva | None:
    """Where an IDT entry leads, or None if it is absent, cut short or no gate of long mode."""
    if len(gate) != GATE_SIZE or not gate[5] & GATE_PRESENT or gate[5] & GATE_TYPE not in GATE_TYPES:
        return None
    return Gva(int.from_bytes(gate[0:2] + gate[6:12], "little"))


def _anchors(kernel: Image) -> Iterator[Anchor]:
    modern = bool(kernel.symbol(MODERN_WITNESS))
    wanted: list[tuple[str, int | None, tuple[str, ...]]] = [
        (LSTAR, None, ENTRY_SYMBOLS),
        *((f"vector {vector}", vector, (name,) if modern else older) for vector, name, older in VECTORS),
    ]
    for place, vector, names in wanted:
        gvas = {
            name: [symbol.gva for symbol in kernel.symbol(name) if symbol.kind in (SymbolKind.CODE, SymbolKind.WEAK)]
            for name in names
        }
        known = tuple(name for name, places in gvas.items() if places)
        if known:
            yield Anchor(place, vector, known, frozenset(gva for places in gvas.values() for gva in places))
