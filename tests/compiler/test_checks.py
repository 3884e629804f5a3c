"""What the compiler says of policies that are legal and had better be otherwise, and of what no hardware can hold."""

from __future__ import annotations

import datetime
from array import array
from collections.abc import Mapping
from dataclasses import replace

import pytest

from policyc.compiler.checks import CheckOptions
from policyc.compiler.pipeline import CompileResult, compile_policies
from policyc.diagnostics import Source
from policyc.guest.readers import build_profile
from policyc.plan.accesses import NEAR_ZONE
from policyc.plan.pages import page_runs
from policyc.plan.store import dump, load
from policyc.plan.tables import segments_of

SYSTEM_MAP = "\n".join(
    [
        "ffffffff81000000 T _text",
        "ffffffff81000000 T _stext",
        "ffffffff81000080 T entry_SYSCALL_64",
        "ffffffff81000a10 T asm_exc_divide_error",
        "ffffffff81000c60 T asm_exc_page_fault",
        "ffffffff81001000 T schedule",
        "ffffffff81001400 T page_of_its_own_before",
        "ffffffff81002000 T whole_page",
        "ffffffff81003000 T text_poke_memcpy",
        "ffffffff81003100 T __text_poke",
        "ffffffff81003200 T memcpy",
        "ffffffff81003300 T helper",
        "ffffffff81003400 t helper",
        "ffffffff81003500 T quiet_end",
        "ffffffff81004000 T _etext",
        "ffffffff81005000 R __start_rodata",
        "ffffffff81005100 R sys_call_table",
        "ffffffff81005200 R linux_banner",
        "ffffffff81006000 R __end_rodata",
        "ffffffff81006000 D _sdata",
        *(f"ffffffff81006{number:x}00 D busy_{number}" for number in range(1, 16)),
        "ffffffff81006808 D lonely",
        "ffffffff81006810 D beside_lonely",
        "ffffffff81007000 D quiet_page",
        "ffffffff81008000 D _edata",
        "ffffffff81008000 T __init_begin",
        "ffffffff81008010 T start_kernel",
        "ffffffff81008100 D boot_data",
        "ffffffff81009000 T __init_end",
        "ffffffff81009000 B __bss_start",
        "ffffffff8100a000 B __bss_stop",
        "ffffffff8100a000 B _end",
        "",
    ]
)
PROFILE = build_profile(SYSTEM_MAP.encode())
TODAY = datetime.date(2027, 3, 1)


def compiled(*texts: str, options: CheckOptions | None = None) -> CompileResult:
    sources = [Source(f"{number}.policy", text) for number, text in enumerate(texts)]
    return compile_policies(sources, PROFILE, options or CheckOptions(today=TODAY))


def said(result: CompileResult) -> list[tuple[str, str, str]]:
    return [(d.code, d.span.text if d.span else "", d.message) for d in result.diagnostics]


Case = tuple[str, str, str, str, "str | None"]

FOUND: Mapping[str, Case] = {
    # --- conditions ---
    "contradiction": (
        "on cr4 when cpl == 0 and cpl == 3 deny",
        "P404",
        "cpl == 0 and cpl == 3",
        "`cpl == 0 and cpl == 3` is never true, so the rule never matches",
        "correct the condition, or remove the rule",
    ),
    "access that the rule isn't about": (
        "deny write to kernel .text when access == execute",
        "P404",
        "access == execute",
        "`access == execute` is never true, so the rule never matches",
        "correct the condition, or remove the rule",
    ),
    "leaf of another rule": (
        "on cpuid 0x40000000 when leaf == 0 log",
        "P404",
        "leaf == 0",
        "`leaf == 0` is never true, so the rule never matches",
        "correct the condition, or remove the rule",
    ),
    "a register that never stays": (
        "on cr4 when old == new deny",
        "P404",
        "old == new",
        "`old == new` is never true, so the rule never matches",
        "correct the condition, or remove the rule",
    ),
    "tautology": (
        "on cr4 when cpl < 4 deny",
        "P407",
        "cpl < 4",
        "`cpl < 4` is always true",
        "leave the condition out",
    ),
    "exception that is never true": (
        'deny write to kernel .text except when cpl == 4 because "x"',
        "P408",
        "cpl == 4",
        "`cpl == 4` is never true where the rule applies, so nothing is excepted",
        "correct the condition, or remove the exception",
    ),
    "exception apart from the rule's condition": (
        'on cr4 when cpl == 3 deny except when cpl == 0 because "x"',
        "P408",
        "cpl == 0",
        "`cpl == 0` is never true where the rule applies, so nothing is excepted",
        "correct the condition, or remove the exception",
    ),
    "exception that is the rule's condition": (
        'on cr4 when cpl == 3 deny except when cpl != 0 because "x"',
        "P409",
        "cpl != 0",
        "`cpl != 0` is always true where the rule applies, so the rule is never in force",
        "narrow the exception, or remove the rule",
    ),
    "exception whose condition says nothing": (
        'deny write to kernel .text except from kernel:memcpy when cpl < 4 because "x"',
        "P407",
        "cpl < 4",
        "`cpl < 4` is always true where the rule applies",
        "leave `when` out",
    ),
    "code in a condition": (
        'deny write to kernel .text except when rip in kernel:memcpy because "x"',
        "P414",
        "rip in kernel:memcpy",
        "`rip in …` lets through whatever runs at these addresses, without a look at the page tables",
        "write `from` and the place: it holds only while the code is the one that was bound",
    ),
    "code in the condition of an allow": (
        'deny write to kernel .text allow write to kernel:memcpy when cpl == 0 and rip in kernel .text because "x"',
        "P414",
        "cpl == 0 and rip in kernel .text",
        "`rip in …` lets through whatever runs at these addresses, without a look at the page tables",
        "write `from` and the place: it holds only while the code is the one that was bound",
    ),
    # --- code ---
    "exception from other code than the rule's": (
        "deny write to kernel:quiet_page from kernel:schedule "
        'except from kernel:whole_page because "x" deny write to kernel .text',
        "P408",
        'except from kernel:whole_page because "x"',
        "the rule is about other code than the exception, so nothing is excepted",
        "correct the code, or remove the exception",
    ),
    "exception from all of the rule's code": (
        "deny write to kernel:quiet_page from kernel:schedule "
        'except from kernel .text because "x" deny write to kernel .text',
        "P409",
        'except from kernel .text because "x"',
        "the exception is for all code that the rule is about, so the rule is never in force",
        "narrow the exception, or remove the rule",
    ),
    "code in physical memory": (
        "log write to kernel:quiet_page from physical 0..0x1000",
        "P302",
        "physical 0..0x1000",
        "code runs at virtual addresses, and `physical 0x0..0x1000` is physical memory",
        "name a symbol, a section or `virtual START..END`",
    ),
    "code in a table": (
        'log write to kernel:quiet_page except from idt because "x"',
        "P302",
        "idt",
        "no code runs in the idt",
        "name a symbol, a section or `virtual START..END`",
    ),
    "nobody's event": (
        "on unhook log from kernel:schedule",
        "P305",
        "kernel:schedule",
        "no code of the guest causes unhook, so `from` means nothing here",
        "leave `from` out",
    ),
    # --- exceptions ---
    "reason that says nothing": (
        'on cr4 deny except from kernel:memcpy because " " deny write to kernel .text',
        "P302",
        'except from kernel:memcpy because " "',
        "`because` says nothing",
        "write what a reader needs to know",
    ),
    "owner that says nothing": (
        'on cr4 deny except from kernel:memcpy because "x" owner "" deny write to kernel .text',
        "P302",
        'except from kernel:memcpy because "x" owner ""',
        "`owner` says nothing",
        "write what a reader needs to know",
    ),
    "past its end": (
        'on cr4 deny except when cpl == 0 because "x" owner "kernel team" until 2027-02-28',
        "P412",
        'except when cpl == 0 because "x" owner "kernel team" until 2027-02-28',
        "this exception was meant to end on 2027-02-28, and is in force, and kernel team answers for it",
        "remove it, or give it another date and say why",
    ),
    "last day": (
        'on cr4 deny except when cpl == 0 because "x" until 2027-03-01',
        "P413",
        'except when cpl == 0 because "x" until 2027-03-01',
        "this exception is meant to end on 2027-03-01, in less than a day",
        None,
    ),
    "near its end": (
        'on cr4 deny except when cpl == 0 because "x" until 2027-03-31',
        "P413",
        'except when cpl == 0 because "x" until 2027-03-31',
        "this exception is meant to end on 2027-03-31, in 30 days",
        None,
    ),
    "tag that says nothing": (
        'on cr4 deny tag ""',
        "P302",
        'on cr4 deny tag ""',
        "a tag says nothing",
        "write what a reader needs to know",
    ),
    "text that is too long": (
        f'on cr4 deny because "{"x" * 5000}"',
        "P302",
        f'on cr4 deny because "{"x" * 5000}"',
        "`because` has 5000 characters, and a plan holds 4096",
        "say it shorter",
    ),
    # --- overlap ---
    "covered by a stricter rule": (
        "deny write to kernel .text log write to kernel:schedule",
        "P410",
        "log write to kernel:schedule",
        "stricter rules decide everything that this rule is about",
        "remove it, or let it speak of what they don't",
    ),
    "covered by two": (
        "deny write to kernel .text crash read to kernel .text execute log read, write to kernel:schedule".replace(
            "crash read to kernel .text execute", "crash read, execute to kernel .text"
        ),
        "P410",
        "log read, write to kernel:schedule",
        "stricter rules decide everything that this rule is about",
        "remove it, or let it speak of what they don't",
    ),
    "covered event": (
        "on cr4 deny on cr4 when cpl == 3 log",
        "P410",
        "on cr4 when cpl == 3 log",
        "stricter rules decide everything that this rule is about",
        "remove it, or let it speak of what they don't",
    ),
    "covered, though only watched": (
        "deny write to kernel .text log write to kernel:schedule mode monitor",
        "P410",
        "log write to kernel:schedule mode monitor",
        "stricter rules decide everything that this rule is about",
        "remove it, or let it speak of what they don't",
    ),
    "allow of what nobody denies": (
        'allow write to kernel:quiet_page because "x" deny write to kernel .text',
        "P411",
        'allow write to kernel:quiet_page because "x"',
        "no rule of this policy is about what is allowed here, so nothing is set aside",
        'what no rule denies is allowed anyway; to reach another policy, write `overriding "its name"`',
    ),
    "allow of another access": (
        'allow read, write, execute to kernel:quiet_page from kernel .text because "x" deny write to kernel .text',
        "P411",
        'allow read, write, execute to kernel:quiet_page from kernel .text because "x"',
        "no rule of this policy is about what is allowed here, so nothing is set aside",
        'what no rule denies is allowed anyway; to reach another policy, write `overriding "its name"`',
    ),
    "allow of an event": (
        'on cr4 allow because "x" on cr0 deny',
        "P411",
        'on cr4 allow because "x"',
        "no rule of this policy is about what is allowed here, so nothing is set aside",
        'what no rule denies is allowed anyway; to reach another policy, write `overriding "its name"`',
    ),
    # --- pages ---
    "busy neighbours": (
        "deny write to kernel:lonely",
        "P415",
        "kernel:lonely",
        "`kernel:lonely` shares its pages with 4088 bytes of data that the kernel writes, such as `__end_rodata`, "
        f"`busy_1`, `busy_2` and 14 more, and {NEAR_ZONE} bytes are so near that the kernel's own stores there are "
        "denied too, since no rule guards the code that makes them",
        "if that is what is wanted, compile with `--accept-hot-pages`",
    ),
    "busy neighbours, and code whose stores can be measured": (
        "deny write to kernel .text\ndeny write to kernel:lonely",
        "P415",
        "kernel:lonely",
        "`kernel:lonely` shares its pages with 4088 bytes of data that the kernel writes, such as `__end_rodata`, "
        f"`busy_1`, `busy_2` and 14 more, and {NEAR_ZONE} bytes are so near that the instruction is decoded too",
        "if that is what is wanted, compile with `--accept-hot-pages`",
    ),
    "busy section": (
        "log write to kernel .bss",
        "P415",
        "kernel .bss",
        "the kernel writes to `kernel .bss` all the time: each write stops a vCPU",
        "if that is what is wanted, compile with `--accept-hot-pages`",
    ),
    "reads of constants": (
        "log read, write, execute to kernel:sys_call_table",
        "P415",
        "kernel:sys_call_table",
        "the kernel reads `kernel:sys_call_table` as it goes: each read of its pages stops a vCPU",
        "if that is what is wanted, compile with `--accept-hot-pages`",
    ),
    "foreign code": (
        "deny execute of kernel:schedule",
        "P503",
        "kernel:schedule",
        "`kernel:schedule` shares its pages with 3072 bytes of other code, such as `page_of_its_own_before`",
        "name whole pages, or compile with `--accept-hot-pages`: each call of that code then stops a vCPU",
    ),
    "foreign code in unknown memory": (
        "deny execute of physical 0x1000 size 16",
        "P503",
        "physical 0x1000 size 16",
        "`physical 0x1000..0x1010` shares its pages with 4080 bytes of other code",
        "name whole pages, or compile with `--accept-hot-pages`: each call of that code then stops a vCPU",
    ),
    "execute-only code": (
        "deny read, write to kernel:schedule",
        "P502",
        "deny read, write to kernel:schedule",
        "this would leave pages that can be executed and not read, which not every processor can hold",
        "deny `execute` too, or compile with `--cpu intel` if every host has EPT with execute-only pages",
    ),
    "execute-only memory that nobody knows": (
        "deny read of physical 0..0x1000",
        "P502",
        "deny read of physical 0..0x1000",
        "this would leave pages that can be executed and not read, which not every processor can hold",
        "deny `execute` too, or compile with `--cpu intel` if every host has EPT with execute-only pages",
    ),
    "freed memory": (
        "deny write to kernel:boot_data",
        "P416",
        "kernel:boot_data",
        "`kernel:boot_data` lies in memory that the kernel gives to others once it runs",
        "name what is still there after boot",
    ),
    "trusted code in freed memory": (
        'on cr4 deny except from kernel:start_kernel because "x"',
        "P416",
        "kernel:start_kernel",
        "`kernel:start_kernel` lies in memory that the kernel gives to others once it runs",
        "name what is still there after boot",
    ),
    # --- watches ---
    "restored code": (
        "watch kernel:schedule every 5s restore",
        "P310",
        "restore",
        "`kernel:schedule` holds code, and code that is being executed can't be restored from outside",
        "leave `restore` out, or `deny write` to it",
    ),
    "watch that looks too often": (
        "watch idt every 50ms",
        "P302",
        "50ms",
        "a watch looks every 100ms to 24h, not every 50ms",
        None,
    ),
    "watch that never looks": (
        "watch idt every 25h",
        "P302",
        "25h",
        "a watch looks every 100ms to 24h, not every 25h",
        None,
    ),
    "clause of a rule": (
        "watch idt every 5s from kernel:schedule",
        "P305",
        "kernel:schedule",
        "`from` means nothing in a watch",
        "leave it out: a watch compares bytes, and sees no access",
    ),
    "watch stands twice": (
        "watch idt every 5s\nwatch idt every 5s",
        "P405",
        "watch idt every 5s",
        "the same rule stands in this policy already",
        "remove one of them",
    ),
    # --- records ---
    "no records at all": (
        "log write to idt at most 0 per second",
        "P302",
        "0",
        "`0` records are not between 1 and 10000",
        "leave `at most` out to have every record",
    ),
    "unknown unit": (
        "log write to idt at most 5 per minut",
        "P209",
        "minut",
        "there is no unit of time `minut`",
        "did you mean `minute`?",
    ),
    # --- effects ---
    "pinned bit of another register": (
        "on cr0 pin wp | smep",
        "P308",
        "smep",
        "`smep` is a bit of cr4, not of cr0",
        "name a bit of cr0",
    ),
    "pinned bit of another register after retries": (
        "on msr efer retry 2 then pin wp",
        "P308",
        "wp",
        "`wp` is a bit of cr0, not of efer",
        "name a bit of efer",
    ),
    "deny by what can't": (
        "on cr4 deny by fault",
        "P304",
        "deny",
        "`deny by fault` can't be done to a register write",
        "it can be `allow`, `log`, `pin`, `deny` or `crash`",
    ),
}

QUIET = CheckOptions(today=TODAY, target="kvmi-v7")


@pytest.mark.parametrize("name", FOUND)
def test_found(name: str) -> None:
    text, code, underlined, message, help = FOUND[name]
    result = compiled(text, options=QUIET)
    found = [d for d in result.diagnostics if d.code == code]
    assert len(found) == 1, said(result)
    assert found[0].span is not None
    assert (found[0].span.text, found[0].message, found[0].help) == (underlined, message, help)
    others = {d.code for d in result.diagnostics} - {code}
    assert others <= ACCOMPANIED.get(name, set()), said(result)


ACCOMPANIED: Mapping[str, set[str]] = {
    "trusted code in freed memory": {"P401"},
    "code in a table": {"P401"},
    "covered by two": {"P415"},
}
"""What else is said of an example, each for a reason of its own."""

SILENT = {
    "a whole section": "deny write to kernel .text",
    "constants": "deny write to kernel .rodata, kernel:sys_call_table + 8 size 8",
    "an object in a page that nobody else uses": "deny write to kernel:quiet_page",
    "code that jumps to a copy routine": (
        'deny write to kernel .text except from kernel:text_poke_memcpy because "it jumps to memcpy"'
    ),
    "code that a copy routine may be called from": (
        "deny write to kernel .text "
        'deny write to kernel:quiet_page from kernel:memcpy except from kernel:schedule because "its own copies"'
    ),
    "a whole page of code": "deny execute of kernel:whole_page",
    "an exception far from its end": 'on cr4 deny except when cpl == 0 because "x" until 2027-04-01',
    "a rule that is stricter where it stands": "log write to kernel .text deny write to kernel:schedule",
    "as strict": "deny write to kernel .text deny write to kernel:schedule severity critical",
    "a stricter rule that only watches": "deny write to kernel .text mode monitor log write to kernel:schedule",
    "a stricter rule under a condition": "deny write to kernel .text when cpl == 3 log write to kernel:schedule",
    "a stricter rule with an exception": (
        'deny write to kernel .text except from kernel:memcpy because "x" log write to kernel:schedule'
    ),
    "partly covered": "deny write to kernel:schedule log write to kernel .text",
    "one access covered": "deny write to kernel .text log write, execute to kernel .text",
    "allow with effect": 'deny write to kernel .text allow write to kernel:schedule because "x"',
    "a watch": "watch kernel:lonely every 5s restore severity high at most 1 per hour",
    "a watch of code": "watch kernel .text every 30s",
    "tables": "log read, write to idt",
}


@pytest.mark.parametrize("name", SILENT)
def test_silent(name: str) -> None:
    result = compiled(SILENT[name])
    assert {d.code for d in result.diagnostics} <= {"P418"}, said(result)
    assert result.plan is not None


@pytest.mark.parametrize("name", [*SILENT, *FOUND])
def test_plan__of_whatever_compiles_can_be_read_again(name: str) -> None:
    result = compiled(SILENT.get(name) or FOUND[name][0], options=replace(QUIET, accept_hot_pages=True))
    assert result.plan is None or load(dump(result.plan).encode()) == result.plan


def test_policy__without_a_name() -> None:
    assert said(compiled('policy " " log write to idt')) == [("P302", "", "the policy's name says nothing")]


def test_overlap__another_policy_covers_too_unless_a_hole_may_set_it_aside() -> None:
    deny, log = 'policy "a" deny write to kernel .text', 'policy "b" log write to kernel:schedule'
    assert [code for code, _, _ in said(compiled(deny, log))] == ["P410"]
    hole = ' allow write to kernel:schedule from kernel .text because "x"'
    assert said(compiled(deny + hole, log)) == []
    assert [code for code, _, _ in said(compiled(deny + hole + " log write to kernel:schedule"))] == ["P410"]


def test_overlap__the_stricter_rule_is_shown() -> None:
    (found,) = compiled("deny write to kernel .text log write to kernel:schedule").diagnostics
    assert [(span.text, text) for span, text in found.notes if span] == [
        ("deny write to kernel .text", "this one is in force there")
    ]


def test_allow__has_effect_in_the_policies_that_it_overrides() -> None:
    deny = 'policy "a" deny write to kernel .text'
    allow = 'policy "b" allow write to kernel:schedule because "x" overriding "a"'
    assert said(compiled(deny, allow)) == []
    assert [code for code, _, _ in said(compiled(deny, allow.replace(' overriding "a"', "")))] == ["P411"]


def test_hot_pages__can_be_accepted() -> None:
    accepting = CheckOptions(accept_hot_pages=True)
    for name in ("busy neighbours", "busy section", "foreign code", "foreign code in unknown memory"):
        result = compiled(FOUND[name][0], options=accepting)
        assert said(result) == []
        assert result.plan is not None


def test_rights__reads_of_data_are_held_by_taking_execution_too() -> None:
    result = compiled("deny read of kernel:quiet_page", options=CheckOptions(accept_hot_pages=True))
    assert said(result) == [
        (
            "P418",
            "deny read of kernel:quiet_page",
            "no page can be kept from being read and still be written: writes to these pages stop the vCPU too",
        )
    ]
    assert result.plan is not None
    runs = page_runs(segments_of(result.plan), result.plan.rules, "any", result.plan.guest.code)
    assert [(run.start, run.end, run.allowed.rwx) for run in runs] == [(0x7000, 0x8000, "---")]


def test_rights__execute_only_code_is_for_intel() -> None:
    result = compiled("deny read, write to kernel:schedule", options=CheckOptions(cpu="intel"))
    assert result.plan is not None
    runs = page_runs(segments_of(result.plan), result.plan.rules, "intel", result.plan.guest.code)
    assert [run.allowed.rwx for run in runs] == ["--x"]


@pytest.mark.parametrize(
    ("text", "target", "cpu", "found"),
    [
        ("on msr lstar deny", "kvmi-v12", "amd", ["on AMD hosts, kernels of kvmi-v12 report no write to an MSR"]),
        ("on msr lstar deny", "any", "amd", ["on AMD hosts, kernels of kvmi-v12 report no write to an MSR"]),
        ("on msr lstar deny", "kvmi-v7", "amd", []),
        ("on msr lstar deny", "kvmi-v12", "any", []),
        ("on msr lstar deny", "kvmi-v12", "intel", []),
        (
            "on idtr write deny",
            "kvmi-v7",
            "amd",
            ["on AMD hosts, kernels of kvmi-v7 report no access to a descriptor table"],
        ),
        ("on idtr write deny", "kvmi-v12", "amd", []),
        ("on cr4 deny", "any", "amd", []),
    ],
)
def test_host__that_doesnt_report_the_event_is_named(text: str, target: str, cpu: str, found: list[str]) -> None:
    result = compiled(text, options=CheckOptions(target=target, cpu=cpu))
    assert [message for code, _, message in said(result) if code == "P419"] == found


@pytest.mark.parametrize(
    ("text", "underlined"),
    [
        ("deny write to virtual 0xffffffffc0401000 size 4K", ["virtual 0xffffffffc0401000 size 4K"]),
        ("deny write to kernel:schedule, virtual 0x1000 size 8", ["virtual 0x1000 size 8"]),
        ("deny write to virtual 0x1000 size 8 mode monitor", []),
        ("log write to virtual 0x1000 size 8", []),
        ("deny write to physical 0x1000 size 8", []),
        ("deny write to kernel:quiet_page", []),
    ],
)
def test_denial__at_an_address_that_the_guest_can_map_elsewhere(text: str, underlined: list[str]) -> None:
    result = compiled(text, options=CheckOptions(accept_hot_pages=True))
    assert [text for code, text, _ in said(result) if code == "P420"] == underlined


def test_rights__of_several_rules_on_one_page_are_looked_at_together() -> None:
    """Neither rule alone leaves an execute-only page: a page is what all rules on it need."""
    result = compiled("log read, execute to kernel:schedule log read, write to kernel:schedule + 8 size 8")
    assert "P502" not in {d.code for d in result.diagnostics}
    result = compiled("deny read, write to kernel:schedule log write to kernel:page_of_its_own_before")
    assert [(code, text) for code, text, _ in said(result) if code == "P502"] == [
        ("P502", "deny read, write to kernel:schedule")
    ]


def test_expiry__is_nobodys_business_without_a_date() -> None:
    text = 'on cr4 deny except when cpl == 0 because "x" until 2020-01-01'
    assert said(compiled(text, options=CheckOptions())) == []


def test_expiry__changes_no_plan() -> None:
    text = 'on cr4 deny except when cpl == 0 because "x" until 2027-03-05'
    days = [datetime.date(2020, 1, 1), TODAY, datetime.date(2030, 1, 1)]
    first, *others = (compiled(text, options=CheckOptions(today=day)).plan for day in days)
    assert first is not None
    assert others == [first, first]


def test_sizes__are_remarked_where_others_are_known() -> None:
    image = PROFILE.kernel
    assert image.symbols.sizes is None
    known = array("Q", (0 if name in ("schedule", "memcpy") else 8 for name in image.symbols.names))
    kernel = replace(image, symbols=replace(image.symbols, sizes=known))
    profile = replace(PROFILE, images={"kernel": kernel})
    text = "log write to kernel:schedule, kernel:memcpy, kernel:helper deny write to kernel:whole_page"
    result = compile_policies([Source("a", text)], profile)
    fact = "the 0x400 bytes of `kernel:schedule` reach to the next symbol: its own size isn't known, and 1 more like it"
    assert said(result) == [("P417", "kernel:schedule", fact)]


def test_plan__too_large_for_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policyc.compiler.plan_checks.MAX_RULES", 2)
    text = "log write to idt log write to gdt on cr4 log"
    assert said(compiled(text)) == [("P504", "", "there are 3 rules, and a plan holds 2")]
