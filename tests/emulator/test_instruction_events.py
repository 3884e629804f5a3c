"""Every instruction that KVMI can report, in every form, run by a real guest: the event's data and what the guest gets.

The bytes are put where the guest never goes by itself and called through its mailbox: in the kernel's text, over the
end of a page, or in the page of 32-bit user code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from policyc.emulator.small_machine import SmallMachine
from policyc.kvmi import (
    V7,
    BreakpointData,
    ControlCr,
    ControlMsr,
    CpuidData,
    CpuMode,
    CrData,
    Descriptor,
    DescriptorData,
    Dialect,
    Event,
    EventData,
    EventKind,
    MsrData,
    NewValue,
    VcpuCommand,
    XsetbvData,
)
from tests.support.emulator_tool import ScriptedTool

RET = "c3"
INT80 = "cd80"
TEST_CODE = "kernel_power_off"
PAGE_END = "cpu_startup_entry"
"""Begins a page, and isn't returned to once the guest has booted; nothing but padding precedes it."""

EM, TS, AM, WP, SMEP, PWT = 1 << 2, 1 << 3, 1 << 18, 1 << 16, 1 << 20, 1 << 3
KERNEL_TSS = 0x40

Expected = Callable[[SmallMachine, Dialect], EventData | None]


def control(number: int, flipped: int) -> Expected:
    def data(machine: SmallMachine, _: Dialect) -> EventData:
        old = machine.vcpus[0].engine.get(f"cr{number}")
        return CrData(number, old, old ^ flipped)

    return data


def msr(index: int, flipped: int = 1) -> Expected:
    def data(machine: SmallMachine, _: Dialect) -> EventData:
        old = machine.vcpus[0].engine.msr_read(index)
        return MsrData(index, old, old ^ flipped)

    return data


def just(data: EventData | None) -> Expected:
    return lambda _machine, _dialect: data


@dataclass(frozen=True)
class Case:
    """Code that leads up to an instruction, the instruction, what has to be switched on, and the event's data.

    `earlier` events come from the code before.
    """

    before: str
    instruction: str
    kind: EventKind
    data: Expected
    also: VcpuCommand | None = None
    earlier: int = 0


def write_msr(index: int, flipped: int = 1) -> Case:
    before = f"b9{index.to_bytes(4, 'little').hex()} 0f32 83f0{flipped:02x}"
    return Case(before, "0f30", EventKind.MSR, msr(index, flipped), ControlMsr(0, index, True))


def descriptor(before: str, instruction: str, table: Descriptor, *, write: bool, earlier: int = 0) -> Case:
    return Case(before, instruction, EventKind.DESCRIPTOR, just(DescriptorData(table, write)), earlier=earlier)


CR0, CR3, CR4 = (ControlCr(0, number, True) for number in (0, 3, 4))

CASES = {
    "mov cr0, rbx": Case("0f20c3 480fbaf310", "0f22c3", EventKind.CR, control(0, WP), CR0),
    "mov cr0, rbp": Case("0f20c5 480fbafd12", "0f22c5", EventKind.CR, control(0, AM), CR0),
    "mov cr0, r9": Case("410f20c1 490fbaf910", "410f22c1", EventKind.CR, control(0, WP), CR0),
    "lmsw ax": Case("660f01e0 3404", "0f01f0", EventKind.CR, control(0, EM), CR0),
    "lmsw [rsp-8]": Case("0f016424f8 807424f804", "0f017424f8", EventKind.CR, control(0, EM), CR0),
    "mov cr3, r12": Case("410f20dc 4983cc08", "410f22dc", EventKind.CR, control(3, PWT), CR3),
    "mov cr4, r15": Case("410f20e7 490fbaff14", "410f22e7", EventKind.CR, control(4, SMEP), CR4),
    **{
        f"wrmsr {index:#x}": write_msr(index, flipped)
        for index, flipped in (
            *((0x174, 1), (0x175, 1), (0x176, 1), (0x277, 1)),
            *((0xC000_0080, 1), (0xC000_0081, 1), (0xC000_0082, 1), (0xC000_0083, 1), (0xC000_0084, 1)),
            *((0xC000_0100, 8), (0xC000_0102, 8)),
        )
    },
    "sidt": descriptor("", "0f014c24f0", Descriptor.IDTR, write=False),
    "lidt": descriptor("0f014c24f0", "0f015c24f0", Descriptor.IDTR, write=True, earlier=1),
    "sgdt": descriptor("", "0f014424f0", Descriptor.GDTR, write=False),
    "lgdt": descriptor("0f014424f0", "0f015424f0", Descriptor.GDTR, write=True, earlier=1),
    "sldt eax": descriptor("", "0f00c0", Descriptor.LDTR, write=False),
    "lldt ax": descriptor("31c0", "0f00d0", Descriptor.LDTR, write=True),
    "str [rsp-8]": descriptor("", "0f004c24f8", Descriptor.TR, write=False),
    "ltr ax": descriptor("b840000000", "0f00d8", Descriptor.TR, write=True),
    "vmcall": Case("b822000000 bf18000000 31f6", "0f01c1", EventKind.HYPERCALL, just(None)),
    "vmmcall": Case("b822000000 bf18000000 31f6", "0f01d9", EventKind.HYPERCALL, just(None)),
    "xsetbv": Case(
        "31c9 31d2 b803000000",
        "0f01d1",
        EventKind.XSETBV,
        lambda _machine, dialect: None if dialect is V7 else XsetbvData(0, 1, 3),
    ),
}
ON_V7 = {
    "cpuid": Case("b807000000 31c9", "0fa2", EventKind.CPUID, just(CpuidData(7, 0, 2))),
    "cpuid with a prefix": Case("b800000040 31c9", "660fa2", EventKind.CPUID, just(CpuidData(0x4000_0000, 0, 3))),
}


def code(*parts: str) -> bytes:
    return bytes.fromhex("".join(parts))


def place(tool: ScriptedTool, at: int, content: bytes) -> int:
    """Put code at an address and have the guest call it."""
    machine = tool.machine
    machine.memory.write(machine.gpa(at), content)
    machine.write_int("routine_request", at)
    machine.kick(0)
    return at


def expect(tool: ScriptedTool, case: Case, at: int) -> Event:
    """The one event that comes, held against the case."""
    data = case.data(tool.machine, tool.dialect)
    event = tool.event()
    for _ in range(case.earlier):
        (following,) = tool.reply(event)
        assert isinstance(following, Event)
        event = following
    assert (event.kind, event.data) == (case.kind, data)
    assert event.mode is CpuMode.LONG
    after = len(code(case.instruction)) if case.kind is EventKind.XSETBV else 0
    assert event.rip == at + len(code(case.before)) + after
    return event


def answer(tool: ScriptedTool, event: Event) -> None:
    """Let it happen; the guest is through with the code then, and hasn't noticed anything."""
    data = event.data
    assert tool.reply(event, data=NewValue(data.new) if isinstance(data, CrData | MsrData) else None) == []
    assert tool.machine.read_int("routine_request") == 0
    assert tool.machine.read_int("routine_fault") == (1 << 64) - 1


def switched_on(dialect: Dialect, case: Case) -> ScriptedTool:
    tool = ScriptedTool(dialect)
    engine = tool.machine.vcpus[0].engine
    base, _ = engine.table("gdtr")
    busy = tool.machine.gpa(base + KERNEL_TSS + 5)
    tool.machine.memory.write(busy, b"\x89")  # the task is available, as LTR wants it
    if case.also is not None:
        tool.ask(case.also)
    tool.enable(case.kind)
    return tool


@pytest.mark.parametrize("name", CASES)
def test_instruction__is_reported_and_then_carried_out(dialect: Dialect, name: str) -> None:
    case = CASES[name]
    tool = switched_on(dialect, case)
    at = place(tool, tool.machine.symbol(TEST_CODE), code(case.before, case.instruction, RET))
    event = expect(tool, case, at)
    answer(tool, event)
    if isinstance(event.data, CrData):
        assert tool.machine.vcpus[0].engine.get(f"cr{event.data.cr}") == event.data.new
    if isinstance(event.data, MsrData):
        assert tool.machine.vcpus[0].engine.msr_read(event.data.msr) == event.data.new


@pytest.mark.parametrize("name", ON_V7)
def test_cpuid__is_reported_in_v7(name: str) -> None:
    case = ON_V7[name]
    tool = switched_on(V7, case)
    at = place(tool, tool.machine.symbol(TEST_CODE), code("53", case.before, case.instruction, "5b", RET))
    event = expect(tool, case, at + 1)
    answer(tool, event)


SPLITS = [(name, split) for name, case in {**CASES, **ON_V7}.items() for split in range(1, len(code(case.instruction)))]


@pytest.mark.parametrize(("name", "split"), SPLITS, ids=[f"{name}+{split}" for name, split in SPLITS])
def test_instruction_over_a_page_end__is_reported(name: str, split: int) -> None:
    """The first `split` bytes lie on one page, the rest on the next."""
    case = {**CASES, **ON_V7}[name]
    tool = switched_on(V7, case)
    lead = code("53", case.before)
    start = tool.machine.symbol(PAGE_END) - split - len(lead)
    assert tool.machine.symbol(PAGE_END) % 4096 == 0
    place(tool, start, lead + code(case.instruction, "5b", RET))
    answer(tool, expect(tool, case, start + 1))


LEFT_TO_THE_GUEST = {
    "TS by mov, cleared by clts": ("0f20c0 83c808 0f22c0 0f06", "intel"),
    "TS by lmsw, cleared by clts": ("660f01e0 0c08 0f01f0 0f06", "intel"),
    "TS on AMD": ("0f20c0 83c808 0f22c0 0f06", "amd"),
    "MP on AMD": ("660f01e0 3402 0f01f0", "amd"),
    "PGE by mov to cr4": ("0f20e0 483580000000 0f22e0", "intel"),
    "PCE by mov to cr4": ("0f20e0 483500010000 0f22e0", "intel"),
}


@pytest.mark.parametrize("name", LEFT_TO_THE_GUEST)
def test_bits_that_kvm_leaves_to_the_guest__change_without_an_event(dialect: Dialect, name: str) -> None:
    instructions, cpu = LEFT_TO_THE_GUEST[name]
    tool = ScriptedTool(dialect, cpu=cpu)
    for command in (CR0, CR4):
        tool.ask(command)
    tool.enable(EventKind.CR)
    place(tool, tool.machine.symbol(TEST_CODE), code(instructions, RET))
    assert tool.pump() == []
    assert tool.machine.read_int("routine_request") == 0
    assert tool.machine.read_int("routine_fault") == (1 << 64) - 1


def test_a_write_that_changes_other_bits_too__is_reported_whole(dialect: Dialect) -> None:
    """TS and EM at once; on AMD every bit of CR4 is KVM's."""
    for cpu, instructions, number, flipped in (
        ("intel", "0f20c0 83f00c 0f22c0", 0, EM | TS),
        ("amd", "0f20e0 483580000000 0f22e0", 4, 1 << 7),
    ):
        tool = ScriptedTool(dialect, cpu=cpu)
        tool.ask(ControlCr(0, number, True))
        tool.enable(EventKind.CR)
        old = tool.machine.vcpus[0].engine.get(f"cr{number}")
        place(tool, tool.machine.symbol(TEST_CODE), code(instructions, RET))
        event = tool.event()
        assert event.data == CrData(number, old, old ^ flipped)
        answer(tool, event)


def test_lmsw__can_set_protection_and_not_clear_it(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect)
    tool.ask(CR0)
    tool.enable(EventKind.CR)
    cr0 = tool.machine.vcpus[0].engine.get("cr0")
    place(tool, tool.machine.symbol(TEST_CODE), code("31c0 0f01f0", RET))
    event = tool.event()
    assert event.data == CrData(0, cr0, cr0 & ~0xE)
    answer(tool, event)
    assert tool.machine.vcpus[0].engine.get("cr0") == cr0 & ~0xE


def test_lmsw__keeps_the_bits_that_the_tool_keeps(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect)
    tool.ask(CR0)
    tool.enable(EventKind.CR)
    cr0 = tool.machine.vcpus[0].engine.get("cr0")
    place(tool, tool.machine.symbol(TEST_CODE), code("660f01e0 3404 0f01f0", RET))
    event = tool.event()
    assert tool.reply(event, data=NewValue(cr0)) == []
    assert tool.machine.vcpus[0].engine.get("cr0") == cr0
    assert tool.machine.read_int("routine_request") == 0


def test_smsw__is_no_event(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect)
    tool.ask(CR0)
    tool.enable(EventKind.CR, EventKind.DESCRIPTOR)
    place(tool, tool.machine.symbol(TEST_CODE), code("0f01e0", RET))
    assert tool.pump() == []
    assert tool.machine.read_int("routine_result") & 0xFFFF == tool.machine.vcpus[0].engine.get("cr0") & 0xFFFF


@pytest.mark.parametrize(("instruction", "size"), [("cc", 1), ("cd03", 2), ("66cc", 1)])
def test_breakpoint__goes_to_the_guest_with_rip_behind_it(dialect: Dialect, instruction: str, size: int) -> None:
    tool = ScriptedTool(dialect)
    tool.enable(EventKind.BREAKPOINT)
    machine = tool.machine
    at = place(tool, machine.symbol(TEST_CODE), code("90", instruction, RET))
    event = tool.event()
    rip = at + 1 + len(code(instruction)) - size
    assert (event.rip, event.data) == (rip, BreakpointData(machine.gpa(rip), size))
    answer(tool, event)
    assert machine.read_int("fault_count", offset=3 * 8) == 1
    assert machine.read_int("last_fault_rip") == rip + size


def in_user_mode(tool: ScriptedTool, *parts: str) -> int:
    """Have 32-bit user code run; its address."""
    machine = tool.machine
    at = machine.symbol("user32_hypercall")
    machine.memory.write(machine.gpa(at), code(*parts, INT80))
    tool.start("hypercall-32")
    return at


def test_hypercall__from_32_bit_code_has_registers_of_its_own(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect)
    tool.enable(EventKind.HYPERCALL)
    run, event = tool.caught("hypercall-32")
    assert (event.kind, event.mode) == (EventKind.HYPERCALL, CpuMode.PROTECTED)
    cs = event.sregs.cs
    assert (cs.selector, cs.l, cs.db, cs.dpl) == (0x23, 0, 1, 3)
    assert (event.regs.rax, event.regs.rbx, event.regs.rcx) == (34, 24, 0)
    assert tool.reply(event) == []
    result = tool.finish(run)
    assert (result.value, result.fault) == (0, None)


CONVENTIONS_64 = "b822000000 bf18000000 31f6 0f01c1"


def test_hypercall__by_the_registers_of_64_bit_code_is_none_of_32_bit_code(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect)
    tool.enable(EventKind.HYPERCALL)
    in_user_mode(tool, "31db 31c9", CONVENTIONS_64)
    assert tool.pump() == []
    assert tool.machine.read_int("routine_result") == -1000 & (1 << 64) - 1


def test_events_of_32_bit_user_code(dialect: Dialect) -> None:
    """sidt, sldt, str, int3 in both forms, each with the mode that says how to read the code."""
    tool = ScriptedTool(dialect)
    tool.enable(EventKind.DESCRIPTOR, EventKind.BREAKPOINT)
    at = in_user_mode(tool, "0f014c24f8 0f00c0 0f00c8 cc cd03")
    gpa = tool.machine.gpa
    expected: Sequence[tuple[int, EventData]] = [
        (0, DescriptorData(Descriptor.IDTR, False)),
        (5, DescriptorData(Descriptor.LDTR, False)),
        (8, DescriptorData(Descriptor.TR, False)),
        (11, BreakpointData(gpa(at + 11), 1)),
        (12, BreakpointData(gpa(at + 12), 2)),
    ]
    event = tool.event()
    for number, (offset, data) in enumerate(expected):
        assert (event.rip, event.mode, event.data) == (at + offset, CpuMode.PROTECTED, data)
        heard = tool.reply(event)
        if number + 1 < len(expected):
            (heard_event,) = heard
            assert isinstance(heard_event, Event)
            event = heard_event
    assert tool.machine.read_int("fault_count", offset=3 * 8) == 2


def test_cpuid_of_32_bit_user_code() -> None:
    tool = ScriptedTool(V7)
    tool.enable(EventKind.CPUID)
    in_user_mode(tool, "b801000000 31c9 0fa2")
    event = tool.event()
    assert (event.mode, event.data) == (CpuMode.PROTECTED, CpuidData(1, 0, 2))
    assert tool.reply(event) == []
    assert tool.machine.read_int("routine_request") == 0


@pytest.mark.parametrize("instruction", ["0f22c0", "0f30", "0f01f0", "0f06", "0f0138", "0f01d1", "f4"])
def test_privileged_instruction_of_user_code__is_a_fault_and_no_event(dialect: Dialect, instruction: str) -> None:
    tool = ScriptedTool(dialect)
    for command in (CR0, ControlMsr(0, 0x174, True)):
        tool.ask(command)
    tool.enable(EventKind.CR, EventKind.MSR, EventKind.XSETBV)
    in_user_mode(tool, "b974010000", instruction)
    assert tool.pump() == []
    assert tool.machine.read_int("routine_fault") == 13
    assert tool.machine.panicked is None


def test_the_same_code_over_a_page_end_in_user_mode(dialect: Dialect) -> None:
    """The next page of user code isn't executable: the fetch of the instruction's rest is a fault of the guest."""
    tool = ScriptedTool(dialect)
    tool.enable(EventKind.HYPERCALL)
    machine = tool.machine
    end = 0x40_1000
    machine.memory.write(machine.gpa(end - 2), code("0f01"))
    in_user_mode(tool, "b9fe0f4000 ffe1")
    assert tool.pump() == []
    assert (machine.read_int("routine_fault"), machine.read_int("last_fault_cr2")) == (14, end)


@pytest.mark.parametrize(("cpu", "vector"), [("intel", 13), ("amd", 6)])
def test_sysenter__without_an_entry_is_a_fault(cpu: str, vector: int) -> None:
    tool = ScriptedTool(V7, cpu=cpu)
    in_user_mode(tool, "0f34")
    assert tool.pump() == []
    assert tool.machine.read_int("routine_fault") == vector


def test_invlpg__is_no_event_and_drops_a_large_page(dialect: Dialect) -> None:
    """The direct map's first page is read, its entry cleared, and another byte of it named: the next read faults."""
    tool = ScriptedTool(dialect)
    machine = tool.machine
    entry = machine.symbol("level2_direct_pgt")
    tool.enable(EventKind.PF, EventKind.DESCRIPTOR)
    alias = 0xFFFF_8880_0000_0000
    read, clear, invalidate = "488b0e", "48c70000000000", "0f01be00100000"
    lead = f"48b8{entry.to_bytes(8, 'little').hex()} 48be{alias.to_bytes(8, 'little').hex()}"
    at = place(tool, machine.symbol(TEST_CODE), code(lead, read, clear, invalidate, read, RET))
    assert tool.pump() == []
    assert (machine.read_int("routine_fault"), machine.read_int("last_fault_cr2")) == (14, alias)
    assert machine.read_int("last_fault_rip") == at + len(code(lead, read, clear, invalidate))
