"""Every word of the policy language that means something to a virtual machine, once.

Events, effects, accesses, registers, MSRs and control-register bits are rows here; the grammar knows none of them. The
legality table says which effect an event can carry and by which mechanism the enforcer brings it about on the wire.
Adding a word is adding a row (and its test case): the parser, the checks, the help texts and the runtime read them.

Sources: Intel SDM vol. 3A 2.5 (CR0, CR4) and vol. 4 (MSRs), AMD APM vol. 2 3.1 (EFER). Which reply each KVMI event
accepts: Documentation/virt/kvm/kvmi.rst of the v7 and v12 series and the behaviour of running kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum, IntFlag
from types import MappingProxyType

from policyc.addresses import PAGE_SIZE

__all__ = [
    "ACCESS_WORDS",
    "CONTROL_BITS",
    "EFFECTS",
    "EVENTS",
    "FIELDS",
    "HOST_LIMITS",
    "LEGALITY",
    "MAX_RATE",
    "MODES",
    "MSRS",
    "MSR_RANGES",
    "NOT_EVENTS",
    "PLAIN_EFFECT_WORDS",
    "RATE_SECONDS",
    "SEVERITIES",
    "TARGETS",
    "VECTORS",
    "Access",
    "AddressSpace",
    "Column",
    "EffectKind",
    "EffectSpec",
    "EventSpec",
    "FieldSpec",
    "HostLimit",
    "Mechanism",
    "Parameter",
    "Unknown",
    "carries",
    "column_of_access",
    "legal_effects",
]


class Access(IntFlag):
    """What is done to a page. The values are KVMI's own page-access bits."""

    R = 1
    W = 2
    X = 4

    NONE = 0

    @property
    def rwx(self) -> str:
        """The three-letter form, as in `r-x`."""
        return "".join(letter if self & bit else "-" for letter, bit in zip("rwx", Access, strict=True))


ACCESS_WORDS: Mapping[str, Access] = MappingProxyType({"read": Access.R, "write": Access.W, "execute": Access.X})


class EffectKind(IntEnum):
    """What an author asks for. The value is the rank: where rules overlap, the larger one wins."""

    ALLOW = 0
    LOG = 1
    PIN = 2
    SKIP = 3
    DENY = 4
    FAULT = 5
    INJECT = 6
    CRASH = 7


class Mechanism(Enum):
    """How the enforcer brings an effect about on the wire."""

    PASS = "CONTINUE"
    NEW_VALUE = "CONTINUE, the new value"
    OLD_VALUE = "CONTINUE, the old value"
    PINNED_VALUE = "CONTINUE, the new value with the pinned bits kept"
    SKIP_OR_FAULT = "skip where the write is the instruction's only effect, else #GP"
    SKIP = "SET_REGISTERS with RIP past the instruction, RETRY"
    FAULT = "INJECT_EXCEPTION, RETRY"
    FAULT_UNTIL_TRAP = "INJECT_EXCEPTION, CONTINUE, repeated until TRAP confirms"
    RETRY = "RETRY"
    CRASH = "CRASH"
    NO_REPLY = "no reply"


class Column(Enum):
    """The columns of the legality table: events that accept the same replies."""

    WRITE = "a write"
    READ_EXECUTE = "a read or execute"
    REGISTER = "a register write"
    DESCRIPTOR = "a descriptor-table access"
    BREAKPOINT = "a breakpoint"
    HYPERCALL = "a hypercall"
    XSETBV = "xsetbv"
    CPUID = "cpuid"
    CREATED = "the creation of a vCPU"
    UNHOOK = "unhook"


@dataclass(frozen=True, slots=True)
class EffectSpec:
    """One effect word. `argument` names what follows the word; None where nothing does."""

    word: str
    kind: EffectKind
    argument: str | None
    doc: str


EFFECTS: Mapping[str, EffectSpec] = MappingProxyType(
    {
        spec.word: spec
        for spec in (
            EffectSpec("allow", EffectKind.ALLOW, None, "Cut a hole into the other rules of the same policy."),
            EffectSpec("log", EffectKind.LOG, None, "Let it happen and record it."),
            EffectSpec(
                "pin", EffectKind.PIN, "bits", "Let the register be written, with these bits kept as they were."
            ),
            EffectSpec("skip", EffectKind.SKIP, None, "Step over the instruction as if it had done nothing."),
            EffectSpec(
                "deny", EffectKind.DENY, None, "Keep it from happening, in the way that disturbs the guest least."
            ),
            EffectSpec(
                "inject", EffectKind.INJECT, "vector", "Keep it from happening and raise this exception in the guest."
            ),
            EffectSpec("crash", EffectKind.CRASH, None, "Stop the virtual machine."),
        )
    }
)

PLAIN_EFFECT_WORDS: tuple[str, ...] = tuple(word for word, spec in EFFECTS.items() if spec.argument is None)
"""The effects that are one word: what the grammar's EFFECT terminal is filled with."""

_EVERYWHERE_LOG = dict.fromkeys(Column, Mechanism.PASS)
_FAULTABLE = {
    Column.WRITE: Mechanism.FAULT,
    Column.READ_EXECUTE: Mechanism.FAULT,
    Column.DESCRIPTOR: Mechanism.FAULT,
    Column.BREAKPOINT: Mechanism.FAULT,
    Column.HYPERCALL: Mechanism.FAULT_UNTIL_TRAP,
}

LEGALITY: Mapping[EffectKind, Mapping[Column, Mechanism]] = MappingProxyType(
    {
        EffectKind.ALLOW: MappingProxyType(
            _EVERYWHERE_LOG | {Column.REGISTER: Mechanism.NEW_VALUE, Column.UNHOOK: Mechanism.NO_REPLY}
        ),
        EffectKind.LOG: MappingProxyType(
            _EVERYWHERE_LOG | {Column.REGISTER: Mechanism.NEW_VALUE, Column.UNHOOK: Mechanism.NO_REPLY}
        ),
        EffectKind.PIN: MappingProxyType({Column.REGISTER: Mechanism.PINNED_VALUE}),
        EffectKind.SKIP: MappingProxyType({Column.WRITE: Mechanism.SKIP, Column.DESCRIPTOR: Mechanism.SKIP}),
        EffectKind.DENY: MappingProxyType(
            {
                Column.WRITE: Mechanism.SKIP_OR_FAULT,
                Column.READ_EXECUTE: Mechanism.FAULT,
                Column.REGISTER: Mechanism.OLD_VALUE,
                Column.DESCRIPTOR: Mechanism.SKIP,
            }
        ),
        EffectKind.FAULT: MappingProxyType(_FAULTABLE),
        EffectKind.INJECT: MappingProxyType(_FAULTABLE),
        EffectKind.CRASH: MappingProxyType(
            {column: Mechanism.CRASH for column in Column if column is not Column.UNHOOK}
        ),
    }
)
"""Effect x event -> mechanism. A pair that is absent can't be carried out and is refused at compile time."""

RETRYABLE: frozenset[Column] = frozenset({Column.WRITE, Column.READ_EXECUTE, Column.DESCRIPTOR, Column.BREAKPOINT})
"""Where `retry N then EFFECT` is legal: the events whose reply may be RETRY."""


class Parameter(Enum):
    """What follows an event's word in a rule."""

    NONE = "nothing"
    MSR = "an MSR name or number"
    READ_WRITE = "`read` or `write`"
    PAIR = "number/number"
    LEAF = "a CPUID leaf"
    CREATED = "`created`"


TARGETS: tuple[str, ...] = ("kvmi-v7", "kvmi-v12")
"""The deployed dialects a plan may be checked against. `any` means legal in all of them."""


@dataclass(frozen=True, slots=True)
class EventSpec:
    """One event word.

    Attributes:
        kvmi: the KVMI event that carries it.
        parameter: what follows the word.
        register: the control register it is about, for `cr0`, `cr3`, `cr4`.
        dialects: where it exists.
    """

    word: str
    kvmi: str
    column: Column
    parameter: Parameter
    doc: str
    register: int | None = None
    dialects: tuple[str, ...] = TARGETS


EVENTS: Mapping[str, EventSpec] = MappingProxyType(
    {
        spec.word: spec
        for spec in (
            EventSpec("cr0", "CR", Column.REGISTER, Parameter.NONE, "A write that changes CR0.", register=0),
            EventSpec(
                "cr3",
                "CR",
                Column.REGISTER,
                Parameter.NONE,
                "A write that changes CR3: every address-space switch.",
                register=3,
            ),
            EventSpec("cr4", "CR", Column.REGISTER, Parameter.NONE, "A write that changes CR4.", register=4),
            EventSpec(
                "msr", "MSR", Column.REGISTER, Parameter.MSR, "A write that changes this model-specific register."
            ),
            EventSpec("xsetbv", "XSETBV", Column.XSETBV, Parameter.NONE, "XCR0 has been given a new value."),
            EventSpec("idtr", "DESCRIPTOR", Column.DESCRIPTOR, Parameter.READ_WRITE, "LIDT or SIDT."),
            EventSpec("gdtr", "DESCRIPTOR", Column.DESCRIPTOR, Parameter.READ_WRITE, "LGDT or SGDT."),
            EventSpec("ldtr", "DESCRIPTOR", Column.DESCRIPTOR, Parameter.READ_WRITE, "LLDT or SLDT."),
            EventSpec("tr", "DESCRIPTOR", Column.DESCRIPTOR, Parameter.READ_WRITE, "LTR or STR."),
            EventSpec(
                "hypercall",
                "HYPERCALL",
                Column.HYPERCALL,
                Parameter.PAIR,
                "The guest called the tool: number/sub-function.",
            ),
            EventSpec("breakpoint", "BREAKPOINT", Column.BREAKPOINT, Parameter.NONE, "INT3 was executed."),
            EventSpec(
                "cpuid",
                "CPUID",
                Column.CPUID,
                Parameter.LEAF,
                "CPUID was executed for this leaf.",
                dialects=("kvmi-v7",),
            ),
            EventSpec(
                "vcpu",
                "CREATE_VCPU",
                Column.CREATED,
                Parameter.CREATED,
                "A vCPU came into being.",
                dialects=("kvmi-v7",),
            ),
            EventSpec(
                "unhook", "UNHOOK", Column.UNHOOK, Parameter.NONE, "The VMM asks the tool to let go of the guest."
            ),
        )
    }
)

NOT_EVENTS: Mapping[str, str] = MappingProxyType(
    {
        "trap": "the kernel sends TRAP only to confirm an injected exception, and a trap can't be retried",
        "pause": "the kernel sends PAUSE only because the tool asked for it",
        "singlestep": "the kernel sends SINGLESTEP only while the tool steps an instruction",
    }
)
"""KVMI events that are no words of the language, and why."""

DELIVERED_HYPERCALL = (34, 24)
"""The one pair KVMI delivers: __HYPERVISOR_hvm_op with HVMOP_guest_request_vm_event (Xen public headers)."""

MSRS: Mapping[str, int] = MappingProxyType(
    {
        "tsc": 0x10,
        "apic_base": 0x1B,
        "feature_control": 0x3A,
        "spec_ctrl": 0x48,
        "sysenter_cs": 0x174,
        "sysenter_esp": 0x175,
        "sysenter_eip": 0x176,
        "misc_enable": 0x1A0,
        "debugctl": 0x1D9,
        "pat": 0x277,
        "u_cet": 0x6A0,
        "s_cet": 0x6A2,
        "pl0_ssp": 0x6A4,
        "xss": 0xDA0,
        "efer": 0xC0000080,
        "star": 0xC0000081,
        "lstar": 0xC0000082,
        "cstar": 0xC0000083,
        "sfmask": 0xC0000084,
        "fs_base": 0xC0000100,
        "gs_base": 0xC0000101,
        "kernel_gs_base": 0xC0000102,
        "tsc_aux": 0xC0000103,
    }
)

MSR_RANGES: Mapping[str, tuple[range, ...]] = MappingProxyType(
    {
        # The v7 kernel compares off by one and refuses three of the four boundary values.
        "kvmi-v7": (range(0x1FFF), range(0xC0000001, 0xC0001FFF)),
        "kvmi-v12": (range(0x2000), range(0xC0000000, 0xC0002000)),
    }
)
"""The MSRs whose writes each dialect can intercept."""


@dataclass(frozen=True, slots=True)
class HostLimit:
    """Hosts on which a KVMI event that the dialect has doesn't come.

    Attributes:
        dialect, cpu: which hosts.
        kvmi: the event.
        fact: what happens there, after "on AMD hosts, ".
        help: what becomes of rules about it.
    """

    dialect: str
    cpu: str
    kvmi: str
    fact: str
    help: str


HOST_LIMITS: tuple[HostLimit, ...] = (
    HostLimit(
        "kvmi-v12",
        "amd",
        "MSR",
        "kernels of kvmi-v12 report no write to an MSR",
        "the runtime compares the values once a second: a change is recorded there, and never stopped",
    ),
    HostLimit(
        "kvmi-v7",
        "amd",
        "DESCRIPTOR",
        "kernels of kvmi-v7 report no access to a descriptor table",
        "the plan is refused there: leave the rule out of what is compiled for these hosts",
    ),
)
"""As seen on running kernels: the v12 series inverts the intercept bit of MSRs on AMD, and v7 answers EOPNOTSUPP."""


def _bits(**positions: int) -> Mapping[str, int]:
    return MappingProxyType({name: 1 << position for name, position in positions.items()})


CONTROL_BITS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "cr0": _bits(pe=0, mp=1, em=2, ts=3, et=4, ne=5, wp=16, am=18, nw=29, cd=30, pg=31),
        "cr4": _bits(
            vme=0,
            pvi=1,
            tsd=2,
            de=3,
            pse=4,
            pae=5,
            mce=6,
            pge=7,
            pce=8,
            osfxsr=9,
            osxmmexcpt=10,
            umip=11,
            la57=12,
            vmxe=13,
            smxe=14,
            fsgsbase=16,
            pcide=17,
            osxsave=18,
            kl=19,
            smep=20,
            smap=21,
            pke=22,
            cet=23,
            pks=24,
        ),
        "efer": _bits(sce=0, lme=8, lma=10, nxe=11, svme=12, lmsle=13, ffxsr=14, tce=15),
    }
)
"""Register -> bit word -> mask. No word stands in two registers, so a word alone names its register."""

VECTORS: Mapping[str, int] = MappingProxyType({"de": 0, "ud": 6, "ss": 12, "gp": 13, "ac": 17})
"""The exceptions that may be injected. Others stop the vCPU, loop, or need facts that the event may not carry."""


class Unknown(Enum):
    """When a field may have no value at run time."""

    NEVER = "never"
    ALL_ONES = "when it is all ones"


class AddressSpace(Enum):
    """What an address leads through."""

    VIRTUAL = "virtual"
    PHYSICAL = "physical"


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """A field that conditions may read.

    Attributes:
        columns: the events that carry it; empty where every event of a vCPU does.
        bits_of: the register whose named bits its value has.
        values: what it can be.
        space: what its value is an address of; None where it is no address.
        dialects: where not every dialect carries it in an event, those that do.
    """

    word: str
    columns: frozenset[Column]
    doc: str
    unknown: Unknown = Unknown.NEVER
    bits_of: str | None = None
    values: Sequence[int] = range(1 << 64)
    space: AddressSpace | None = None
    dialects: Mapping[Column, tuple[str, ...]] = field(default_factory=dict)


_PAGE_FAULT = frozenset({Column.WRITE, Column.READ_EXECUTE})
_REGISTER_WRITE = frozenset({Column.REGISTER, Column.XSETBV})
_XCR0_VALUES = MappingProxyType({Column.XSETBV: ("kvmi-v12",)})
"""The XSETBV event of v7 has no data."""
_GENERAL_REGISTERS = (
    "rax",
    "rbx",
    "rcx",
    "rdx",
    "rsi",
    "rdi",
    "rsp",
    "rbp",
    *(f"r{number}" for number in range(8, 16)),
    "rip",
)

FIELDS: Mapping[str, FieldSpec] = MappingProxyType(
    {
        spec.word: spec
        for spec in (
            *(
                FieldSpec(word, frozenset(), f"The register {word.upper()}.", space=AddressSpace.VIRTUAL)
                for word in _GENERAL_REGISTERS
            ),
            FieldSpec("cr0", frozenset(), "The register CR0.", bits_of="cr0"),
            FieldSpec("cr3", frozenset(), "The register CR3.", space=AddressSpace.PHYSICAL),
            FieldSpec("cr4", frozenset(), "The register CR4.", bits_of="cr4"),
            FieldSpec("efer", frozenset(), "The register EFER.", bits_of="efer"),
            FieldSpec("cpl", frozenset(), "The privilege level, 0 to 3.", values=range(4)),
            FieldSpec("bits", frozenset(), "The width of the running code: 16, 32 or 64.", values=(16, 32, 64)),
            FieldSpec("vcpu", frozenset(), "The index of the vCPU.", values=range(1 << 16)),
            FieldSpec(
                "gva",
                _PAGE_FAULT,
                "The guest virtual address of the access.",
                unknown=Unknown.ALL_ONES,
                space=AddressSpace.VIRTUAL,
            ),
            FieldSpec(
                "gpa",
                _PAGE_FAULT,
                "The guest physical address of the access.",
                values=range(1 << 52),
                space=AddressSpace.PHYSICAL,
            ),
            FieldSpec("size", _PAGE_FAULT, "Bytes accessed.", values=range(1, PAGE_SIZE + 1)),
            FieldSpec("access", _PAGE_FAULT, "`read`, `write` or `execute`.", values=(1, 2, 4)),
            FieldSpec("old", _REGISTER_WRITE, "The value before the write.", dialects=_XCR0_VALUES),
            FieldSpec("new", _REGISTER_WRITE, "The value being written.", dialects=_XCR0_VALUES),
            FieldSpec("leaf", frozenset({Column.CPUID}), "The CPUID leaf asked for.", values=range(1 << 32)),
        )
    }
)

SEVERITIES: tuple[str, ...] = ("info", "low", "medium", "high", "critical")
RATE_SECONDS: Mapping[str, int] = MappingProxyType({"second": 1, "minute": 60, "hour": 3600})
MAX_RATE = 10_000
"""Records that `at most N per …` may let through: a rule that writes more isn't thinned."""

MODES: tuple[str, ...] = ("monitor", "enforce")
MECHANISM_WORDS: Mapping[str, EffectKind] = MappingProxyType({"skip": EffectKind.SKIP, "fault": EffectKind.FAULT})
"""`by skip` and `by fault`: what they turn a `deny` into."""


def column_of_access(access: Access) -> frozenset[Column]:
    """The columns that an access rule for these accesses falls into."""
    columns = set()
    if access & Access.W:
        columns.add(Column.WRITE)
    if access & (Access.R | Access.X):
        columns.add(Column.READ_EXECUTE)
    return frozenset(columns)


def carries(column: Column, field: FieldSpec) -> bool:
    """Whether an event of this column has the field in some dialect; UNHOOK is no event of a vCPU and has none."""
    return column is not Column.UNHOOK and (not field.columns or column in field.columns)


def legal_effects(column: Column) -> tuple[str, ...]:
    """The effect words that an event of this column can carry, weakest first, for help texts."""
    return tuple(spec.word for spec in EFFECTS.values() if column in LEGALITY[spec.kind])
