"""What the computed vectors say, as values: one for each label of `vectors/computed.txt`."""

from __future__ import annotations

from policyc.addresses import Gfn, Gpa, Gva
from policyc.kvmi import (
    DONE,
    Action,
    BreakpointData,
    ChangeGfn,
    CheckCommand,
    CmdErrorData,
    ControlCleanup,
    ControlCmdResponse,
    ControlCr,
    ControlEvents,
    ControlMsr,
    ControlSinglestep,
    ControlVmEvents,
    CrData,
    EventKind,
    Features,
    GetInfo,
    GetInfoReply,
    GetRegisters,
    GetVersion,
    GetVersionReply,
    InjectException,
    NewValue,
    PageAccess,
    PageRun,
    PauseVcpu,
    PfData,
    PfReply,
    ReadPhysical,
    ReadPhysicalReply,
    Registers,
    SetPageAccess,
    SetRegisters,
    TranslateGva,
    TranslateGvaReply,
    TrapData,
    WritePhysical,
    set_pages,
)
from tests.support.kvmi_wire import Answer, EventAnswer, Item, Request, VcpuEvent, VmEvent

GVA = Gva(0xFFFF_8880_0000_7010)
(TWO_PAGES,) = set_pages([PageRun(Gfn(7), 1, PageAccess.RX), PageRun(Gfn(8), 1, PageAccess.R)])
UNMAPPED = Gpa(0xFFFF_FFFF_FFFF_FFFF)
READ = ReadPhysical(Gpa(0x7000), 8)
PF = VcpuEvent(EventKind.PF, PfData(GVA, Gpa(0x7010), PageAccess.W))
CR3 = VcpuEvent(EventKind.CR, CrData(3, 0x2A0_A000, 0x2B0_B000))
TRAP = VcpuEvent(EventKind.TRAP, TrapData(14, 6, 0xDEAD_B000))

ITEMS: dict[str, Item] = {
    "GET_VERSION request": Request(GetVersion()),
    "GET_VERSION reply": Answer(GetVersion(), GetVersionReply()),
    "GET_VERSION reply (features: singlestep only)": Answer(
        GetVersion(), GetVersionReply(features=Features(singlestep=True))
    ),
    "GET_VERSION reply (max_msg_size 8184, singlestep)": Answer(
        GetVersion(), GetVersionReply(max_message_size=8184, features=Features(singlestep=True))
    ),
    "CHECK_COMMAND of SET_PAGE_ACCESS": Request(CheckCommand(SetPageAccess)),
    "CHECK_COMMAND reply, success": Answer(CheckCommand(SetPageAccess), DONE),
    "CHECK_COMMAND reply, not allowed (-1)": Answer(CheckCommand(SetPageAccess), -1),
    "GET_GUEST_INFO request": Request(GetInfo()),
    "GET_GUEST_INFO reply, 2 vCPUs": Answer(GetInfo(), GetInfoReply(2)),
    "GET_INFO request": Request(GetInfo()),
    "GET_INFO reply, 2 vCPUs": Answer(GetInfo(), GetInfoReply(2)),
    "READ_PHYSICAL request gpa 0x7000 size 8": Request(READ),
    "READ_PHYSICAL reply, 8 bytes 01..08": Answer(READ, ReadPhysicalReply(bytes(range(1, 9)))),
    "WRITE_PHYSICAL request gpa 0x7ffc, 4 bytes deadbeef": Request(
        WritePhysical(Gpa(0x7FFC), bytes.fromhex("deadbeef"))
    ),
    "PAUSE_VCPU request vcpu 1 wait 1": Request(PauseVcpu(1, wait=True)),
    "CONTROL_EVENTS (vCPU 0) enable PF": Request(ControlEvents(0, EventKind.PF, True)),
    "CONTROL_VM_EVENTS enable UNHOOK": Request(ControlVmEvents(EventKind.UNHOOK, True)),
    "CONTROL_CR (vCPU 0) enable CR3": Request(ControlCr(0, 3, True)),
    "CONTROL_MSR (vCPU 0) enable 0xc0000082": Request(ControlMsr(0, 0xC000_0082, True)),
    "SET_PAGE_ACCESS 2 entries: 0x7000 r-x, 0x8000 r--": Request(TWO_PAGES),
    "GET_REGISTERS (vCPU 0), 1 MSR 0xc0000082": Request(GetRegisters(0, (0xC000_0082,))),
    "INJECT_EXCEPTION (vCPU 0) #PF code 6 address 0xdeadb000": Request(InjectException(0, 14, 6, 0xDEAD_B000)),
    "CONTROL_SINGLESTEP (vCPU 0) enable": Request(ControlSinglestep(0, True)),
    "TRANSLATE_GVA (vCPU 0) 0xffffffff81000000": Request(TranslateGva(0, Gva(0xFFFF_FFFF_8100_0000))),
    "TRANSLATE_GVA reply, unmapped": Answer(TranslateGva(0, Gva(0)), TranslateGvaReply(UNMAPPED)),
    "CONTROL_CMD_RESPONSE batch prefix (enable 0, now 1) - no reply": Request(ControlCmdResponse(False, True)),
    "CONTROL_CMD_RESPONSE batch suffix (enable 1, now 1) - replied": Request(ControlCmdResponse(True, True)),
    "CHANGE_GFN (vCPU 0) 0x100 -> 0x200": Request(ChangeGfn(0, Gfn(0x100), Gfn(0x200))),
    "VM_CONTROL_CLEANUP enable": Request(ControlCleanup(True)),
    "SET_REGISTERS (vCPU 0) rip 0xffffffff81000003 rflags 2, others 0": Request(
        SetRegisters(0, Registers(rip=0xFFFF_FFFF_8100_0003, rflags=2))
    ),
    "UNHOOK event (first event on the connection)": VmEvent(EventKind.UNHOOK),
    "PAUSE event, vCPU 0, 64-bit": VcpuEvent(EventKind.PAUSE),
    "PAUSE event reply CONTINUE": EventAnswer(EventKind.PAUSE, Action.CONTINUE),
    "PF event: gva 0xffff888000007010 gpa 0x7010 write": PF,
    "PF event reply CONTINUE, minimal form": EventAnswer(EventKind.PF, Action.CONTINUE),
    "PF event reply RETRY, minimal form": EventAnswer(EventKind.PF, Action.RETRY),
    "PF event reply CONTINUE with substitute read data: ctx_addr 0xffff888000007010 (a GVA), 4 bytes 11223344": (
        EventAnswer(EventKind.PF, Action.CONTINUE, PfReply(GVA, bytes.fromhex("11223344")))
    ),
    "BREAKPOINT event, gpa 0x1000, insn_len 1": VcpuEvent(EventKind.BREAKPOINT, BreakpointData(Gpa(0x1000), 1)),
    "BREAKPOINT event reply RETRY": EventAnswer(EventKind.BREAKPOINT, Action.RETRY),
    "CR event: CR3 0x2a0a000 -> 0x2b0b000": CR3,
    "CR event reply CONTINUE new_val 0x2b0b000": EventAnswer(EventKind.CR, Action.CONTINUE, NewValue(0x2B0_B000)),
    "CMD_ERROR event: command 21 seq 11 failed with -22": VmEvent(EventKind.CMD_ERROR, CmdErrorData(-22, 11, 21)),
    "TRAP event: #PF code 6 cr2 0xdeadb000": TRAP,
    "TRAP event: #PF code 6 address 0xdeadb000": TRAP,
}
