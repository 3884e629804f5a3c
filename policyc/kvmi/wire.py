"""Every struct that KVMI puts on the wire, one row each, with the kernel's own names and all padding spelled out.

Sources: `include/uapi/linux/kvmi.h` and `arch/x86/include/uapi/asm/kvmi.h` of KVM-VMI/kvm (branch kvmi-v7) and of the
v12 series (linux-kernel, October 2021), `include/linux/kvmi.h` of libkvmi branch kvmi-v6, `asm/kvm.h` for the x86
register blocks, and `include/sysemu/vmi-handshake.h` of KVM-VMI/qemu. A struct that is the same in several generations
stands in `SHARED` under its v7 and v12 name. Lower-case names without `kvm` are for what the headers leave unnamed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from policyc.kvmi.layout import parse_layouts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policyc.kvmi.layout import Layout

__all__ = ["HANDSHAKE", "SHARED", "V6_STRUCTS", "V7_STRUCTS", "V12_STRUCTS"]

SHARED: Final[Mapping[str, Layout]] = parse_layouts("""
    kvm_regs: u64 rax, u64 rbx, u64 rcx, u64 rdx, u64 rsi, u64 rdi, u64 rsp, u64 rbp, u64 r8, u64 r9, u64 r10, \
u64 r11, u64 r12, u64 r13, u64 r14, u64 r15, u64 rip, u64 rflags
    kvm_segment: u64 base, u32 limit, u16 selector, u8 type, u8 present, u8 dpl, u8 db, u8 s, u8 l, u8 g, u8 avl, \
u8 unusable, u8 padding
    kvm_dtable: u64 base, u16 limit, u16 padding[3]
    kvm_sregs: kvm_segment cs, kvm_segment ds, kvm_segment es, kvm_segment fs, kvm_segment gs, kvm_segment ss, \
kvm_segment tr, kvm_segment ldt, kvm_dtable gdt, kvm_dtable idt, u64 cr0, u64 cr2, u64 cr3, u64 cr4, u64 cr8, \
u64 efer, u64 apic_base, u64 interrupt_bitmap[4]
    kvm_msr_entry: u32 index, u32 reserved, u64 data
    kvm_msrs: u32 nmsrs, u32 pad, kvm_msr_entry entries[]
    kvm_xsave: u32 region[1024]
    set_registers: kvm_regs regs
    event_msrs: u64 sysenter_cs, u64 sysenter_esp, u64 sysenter_eip, u64 efer, u64 star, u64 lstar, u64 cstar, \
u64 pat, u64 shadow_gs

    kvmi_msg_hdr: u16 id, u16 size, u32 seq
    kvmi_error_code: s32 err, u32 padding
    kvmi_vcpu_hdr: u16 vcpu, u16 padding1, u32 padding2
    kvmi_event_reply: u8 action, u8 event, u16 padding1, u32 padding2

    kvmi_vm_check_command: u16 id, u16 padding1, u32 padding2
    kvmi_vm_check_event: u16 id, u16 padding1, u32 padding2
    read_physical_reply: u8 data[]
    kvmi_vm_get_info_reply: u32 vcpu_count, u32 padding[3]
    kvmi_vm_control_events: u16 event_id, u8 enable, u8 padding1, u32 padding2
    kvmi_vcpu_get_info_reply: u64 tsc_speed
    kvmi_vcpu_control_events: u16 event_id, u8 enable, u8 padding1, u32 padding2
    kvmi_vcpu_control_msr: u8 enable, u8 padding1, u16 padding2, u32 msr
    kvmi_vcpu_get_registers: u16 nmsrs, u16 padding1, u32 padding2, u32 msrs_idx[]
    kvmi_vcpu_get_registers_reply: u32 mode, u32 padding, kvm_regs regs, kvm_sregs sregs, kvm_msrs msrs
    kvmi_vcpu_get_cpuid: u32 function, u32 index
    kvmi_vcpu_get_cpuid_reply: u32 eax, u32 ebx, u32 ecx, u32 edx
    kvmi_vcpu_get_mtrr_type: u64 gpa
    kvmi_vcpu_get_mtrr_type_reply: u8 type, u8 padding[7]
    kvmi_vcpu_get_xsave_reply: kvm_xsave xsave

    kvmi_event_breakpoint: u64 gpa, u8 insn_len, u8 padding[7]
    kvmi_event_descriptor: u8 descriptor, u8 write, u8 padding[6]
    kvmi_event_msr: u32 msr, u32 padding, u64 old_value, u64 new_value
    kvmi_event_cr_reply: u64 new_val
    kvmi_event_msr_reply: u64 new_val
""")

_V7_AND_V12 = """
    kvmi_vcpu_inject_exception: u8 nr, u8 padding1, u16 padding2, u32 error_code, u64 address
    kvmi_vcpu_translate_gva: u64 gva
    kvmi_vcpu_translate_gva_reply: u64 gpa
    kvmi_vcpu_get_xcr: u8 xcr, u8 padding[7]
    kvmi_vcpu_get_xcr_reply: u64 value
    kvmi_vcpu_set_xsave: kvm_xsave xsave
    kvmi_vcpu_control_singlestep: u8 enable, u8 padding[7]
    kvmi_event_pf: u64 gva, u64 gpa, u8 access, u8 padding1, u16 padding2, u32 padding3
    kvmi_event_singlestep: u8 failed, u8 padding[7]
"""

_V6_AND_V7 = """
    kvmi_vm_read_physical: u64 gpa, u64 size
    kvmi_vm_write_physical: u64 gpa, u64 size, u8 data[]
    kvmi_vm_get_max_gfn_reply: u64 gfn
    kvmi_map_mem_token: u64 token[4]
    kvmi_vm_get_map_token_reply: kvmi_map_mem_token token
    kvmi_page_access_entry: u64 gpa, u8 access, u8 padding1, u16 padding2, u32 padding3
    kvmi_vm_set_page_access: u16 view, u16 count, u32 padding, kvmi_page_access_entry entries[]
    kvmi_page_write_bitmap_entry: u64 gpa, u32 bitmap, u32 padding
    kvmi_vm_control_spp: u8 enable, u8 padding1, u16 padding2, u32 padding3
    kvmi_vcpu_control_cr: u8 enable, u8 padding1, u16 padding2, u32 cr
    kvmi_vcpu_pause: u8 wait, u8 padding1, u16 padding2, u32 padding3
    kvmi_event_cr: u16 cr, u16 padding[3], u64 old_value, u64 new_value
"""

V6_STRUCTS: Final[Mapping[str, Layout]] = parse_layouts(
    _V6_AND_V7
    + """
    kvmi_get_version_reply: u32 version, u32 padding
    kvmi_control_cmd_response: u8 enable, u8 now, u16 padding1, u32 padding2
    kvmi_get_page_access: u16 view, u16 count, u32 padding, u64 gpa[]
    kvmi_get_page_access_reply: u8 access[]
    kvmi_get_page_write_bitmap: u16 view, u16 count, u32 padding, u64 gpa[]
    kvmi_get_page_write_bitmap_reply: u32 bitmap[]
    kvmi_set_page_write_bitmap: u16 view, u16 count, u32 padding, kvmi_page_write_bitmap_entry entries[]
    kvmi_inject_exception: u8 nr, u8 has_error, u16 padding, u32 error_code, u64 address
    kvmi_event_arch: u8 mode, u8 padding[7], kvm_regs regs, kvm_sregs sregs, event_msrs msrs
    kvmi_event: u16 size, u16 vcpu, u8 event, u8 padding[3], kvmi_event_arch arch
    kvmi_event_pf: u64 gva, u64 gpa, u8 access, u8 padding1, u16 view, u32 padding2
    kvmi_event_pf_reply: u64 ctx_addr, u32 ctx_size, u8 singlestep, u8 rep_complete, u16 padding, u8 ctx_data[256]
    kvmi_event_trap: u32 vector, u32 type, u32 error_code, u32 padding, u64 cr2
""",
    SHARED,
)

V7_STRUCTS: Final[Mapping[str, Layout]] = parse_layouts(
    _V6_AND_V7
    + _V7_AND_V12
    + """
    kvmi_features: u8 spp, u8 vmfunc, u8 eptp, u8 ve, u8 singlestep, u8 padding[3]
    kvmi_get_version_reply: u32 version, u32 padding, kvmi_features features
    kvmi_vm_control_cmd_response: u8 enable, u8 now, u8 flags, u8 padding1, u32 padding2
    kvmi_vm_set_page_write_bitmap: u16 padding1, u16 count, u32 padding2, kvmi_page_write_bitmap_entry entries[]
    kvmi_vm_set_page_sve: u16 view, u8 suppress, u8 padding1, u32 padding2, u64 gpa
    kvmi_vcpu_set_ve_info: u64 gpa, u8 trigger_vmexit, u8 padding1, u16 padding2, u32 padding3
    kvmi_vcpu_set_ept_view: u16 view, u16 padding1, u32 padding2
    kvmi_vcpu_get_ept_view_reply: u16 view, u16 padding1, u32 padding2
    kvmi_vcpu_control_ept_view: u16 view, u8 visible, u8 padding1, u32 padding2
    kvmi_vcpu_change_gfn: u64 old_gfn, u64 new_gfn
    kvmi_event_arch: u8 mode, u8 padding1, u16 view, u32 padding2, kvm_regs regs, kvm_sregs sregs, event_msrs msrs
    kvmi_event: u16 size, u16 vcpu, u8 event, u8 padding[3], kvmi_event_arch arch
    kvmi_event_pf_reply: u64 ctx_addr, u32 ctx_size, u8 padding1, u8 rep_complete, u16 padding2, u8 ctx_data[256]
    kvmi_event_trap: u8 vector, u8 padding1, u16 padding2, u32 error_code, u64 cr2
    kvmi_event_cmd_error: s32 err, u32 msg_seq, u16 msg_id, u16 padding[3]
    kvmi_event_cpuid: u32 function, u32 index, u8 insn_length, u8 padding1[3], u32 padding2
""",
    SHARED,
)

V12_STRUCTS: Final[Mapping[str, Layout]] = parse_layouts(
    _V7_AND_V12
    + """
    kvmi_features: u8 singlestep, u8 padding[7]
    kvmi_get_version_reply: u32 version, u32 max_msg_size, kvmi_features features
    kvmi_vm_read_physical: u64 gpa, u16 size, u16 padding1, u32 padding2
    kvmi_vm_write_physical: u64 gpa, u16 size, u16 padding1, u32 padding2, u8 data[]
    kvmi_page_access_entry: u64 gpa, u8 access, u8 padding[7]
    kvmi_vm_set_page_access: u16 count, u16 padding1, u32 padding2, kvmi_page_access_entry entries[]
    kvmi_vm_pause_vcpu: u16 vcpu, u8 wait, u8 padding1, u32 padding2
    kvmi_vm_control_cleanup: u8 enable, u8 padding[7]
    kvmi_vcpu_control_cr: u8 cr, u8 enable, u16 padding1, u32 padding2
    kvmi_event_hdr: u16 event, u16 padding[3]
    kvmi_vcpu_event_arch: u8 mode, u8 padding[7], kvm_regs regs, kvm_sregs sregs, event_msrs msrs
    kvmi_vcpu_event: u16 size, u16 vcpu, u32 padding, kvmi_vcpu_event_arch arch
    kvmi_event_cr: u8 cr, u8 padding[7], u64 old_value, u64 new_value
    kvmi_event_trap: u8 nr, u8 padding1, u16 padding2, u32 error_code, u64 address
    kvmi_event_xsetbv: u8 xcr, u8 padding[7], u64 old_value, u64 new_value
""",
    SHARED,
)

HANDSHAKE: Final[Mapping[str, Layout]] = parse_layouts("""
    introspector2qemu: u32 struct_size, u8 cookie_hash[20]
    hello_v7: u32 struct_size, u8 uuid[16], u32 padding, s64 start_time, char name[64]
    hello_v12: u32 struct_size, u8 uuid[16], u32 padding, s64 start_time, char name[64], u64 max_gpa
    e820_entry: u64 address, u64 length, u32 type, u32 padding
    hello_e820: u32 struct_size, u8 uuid[16], u8 cpu_type, u8 padding1[3], s64 start_time, char name[64], \
u8 e820_count, u8 padding2[3], u32 padding_hole, e820_entry e820_entries[]
""")
