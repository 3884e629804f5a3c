"""The compiler end to end: policy text and a symbol table in, a whole plan or whole diagnostics out."""

from __future__ import annotations

import itertools

import pytest

from policyc.catalog import Access
from policyc.compiler.checks import CheckOptions
from policyc.compiler.pipeline import CompileResult, compile_policies
from policyc.diagnostics import Source
from policyc.guest.profile import Profile
from policyc.guest.readers import build_profile
from policyc.plan.model import Plan, Rate, Record
from policyc.plan.pages import page_runs
from policyc.plan.places import Base, Extent
from policyc.plan.store import core_bytes
from policyc.plan.tables import segments_of

SYSTEM_MAP = b"""\
ffffffff81000000 T _stext
ffffffff81000000 T _text
ffffffff81000080 T entry_SYSCALL_64
ffffffff81000a10 T asm_exc_divide_error
ffffffff81000c60 T asm_exc_page_fault
ffffffff81001000 T schedule
ffffffff81001100 t helper
ffffffff81001200 T text_poke_memcpy
ffffffff81001240 T __text_poke
ffffffff81001300 t helper
ffffffff81001400 T memcpy
ffffffff81001440 T after_memcpy
ffffffff81002345 T _etext
ffffffff81004000 R __start_rodata
ffffffff81004240 R sys_call_table
ffffffff81004440 R linux_banner
ffffffff81006000 R __end_rodata
ffffffff81006000 D _sdata
ffffffff81006104 D guarded_object
ffffffff81006114 D neighbour
ffffffff81007000 D _edata
ffffffff81008000 B _end
"""

TEXT_POLICY = """\
policy "text"
for linux x86_64

let patchers = kernel:text_poke_memcpy, kernel:__text_poke

kernel-text: deny write to kernel .text
    except from patchers because "the kernel patches itself"
    severity critical tag "attack.t1014"
"""


@pytest.fixture(scope="module")
def profile() -> Profile:
    return build_profile(SYSTEM_MAP)


def compile_text(profile: Profile | None, *texts: str, options: CheckOptions | None = None) -> CompileResult:
    sources = [Source(f"{number}.policy", text) for number, text in enumerate(texts)]
    return compile_policies(sources, profile, options)


def plan_of(profile: Profile, *texts: str) -> Plan:
    result = compile_text(profile, *texts)
    assert result.plan is not None, [d.message for d in result.diagnostics]
    return result.plan


def test_compile__the_two_sentences(profile: Profile) -> None:
    plan = plan_of(profile, "deny write to kernel .text", "on hypercall 34/24 log")
    (guard, call) = plan.rules
    assert (guard.access, plan.places[guard.places[0]].extents) == (Access.W, (Extent(Base.IMAGE, 0, 0x2345),))
    assert call.event is not None
    assert (call.event.word, call.event.numbers) == ("hypercall", (34, 24))
    (run,) = page_runs(segments_of(plan), plan.rules, plan.cpu)
    assert (run.base, run.start, run.end, run.allowed.rwx, run.collateral) == (Base.IMAGE, 0, 0x3000, "r-x", 0xCBB)


def test_compile__an_exception_carries_code_and_reason(profile: Profile) -> None:
    plan = plan_of(profile, TEXT_POLICY)
    (rule,) = plan.rules
    (exemption,) = rule.exemptions
    assert (rule.id, exemption.because, rule.record.severity) == (
        "kernel-text",
        "the kernel patches itself",
        "critical",
    )
    assert [str(plan.places[index].place) for index in exemption.code] == [
        "kernel:__text_poke",
        "kernel:text_poke_memcpy",
    ]
    assert plan.guest.copy_routines == (Extent(Base.IMAGE, 0x1400, 0x1440),)


def test_compile__order_of_rules_and_files_leaves_the_core_as_it_is(profile: Profile) -> None:
    rules = ["deny write to kernel .text", "log write to kernel:sys_call_table", "on hypercall 34/24 log"]
    one_file = {
        core_bytes(plan_of(profile, 'policy "p" ' + "\n".join(order))) for order in itertools.permutations(rules)
    }
    files = [f'policy "{number}" {text}' for number, text in enumerate(rules)]
    many_files = {core_bytes(plan_of(profile, *order)) for order in itertools.permutations(files)}
    assert (len(one_file), len(many_files)) == (1, 1)


def test_compile__order_leaves_the_core_as_it_is_with_conditions_and_watches_too(profile: Profile) -> None:
    rules = [
        "on cr4 when rip in kernel:schedule or old == 1 log",
        "log write to kernel:sys_call_table when not (gva in kernel:guarded_object) at most 3 per hour",
        "watch kernel:guarded_object, idt every 5s restore",
        'on cr0 log except when cpl == 0 because "a" except from kernel:memcpy when cpl == 3 because "b"',
    ]
    one_file = {
        core_bytes(plan_of(profile, 'policy "p" ' + "\n".join(order))) for order in itertools.permutations(rules)
    }
    clauses = rules[3].replace(
        'except when cpl == 0 because "a" except from kernel:memcpy when cpl == 3 because "b"',
        'except from kernel:memcpy when 3 == cpl because "b" except when not (cpl != 0) because "a"',
    )
    other_words = [
        "on cr4 when 1 == old or (rip in kernel:schedule) log",
        "log write to kernel:sys_call_table at most 3 per hour when not gva in kernel:guarded_object",
        "let what = idt, kernel:guarded_object watch what every 5000ms restore",
        clauses,
    ]
    one_file.add(core_bytes(plan_of(profile, 'policy "p" ' + "\n".join(other_words))))
    assert len(one_file) == 1


def test_compile__a_watch_is_in_the_plan(profile: Profile) -> None:
    plan = plan_of(
        profile,
        'policy "p" mode monitor tables: watch idt, kernel:guarded_object every 1m restore '
        'severity high because "x" tag "t" at most 2 per hour mode enforce\nwatch gdt every 500ms',
    )
    named, other = plan.watches
    if named.id != "tables":
        named, other = other, named
    assert [str(plan.places[index].place) for index in named.places] == ["idt", "kernel:guarded_object"]
    assert (named.id, named.period, named.restore, named.enforce) == ("tables", 60_000, True, True)
    assert named.record == Record("high", "x", ("t",), Rate(2, "hour"))
    assert (other.period, other.restore, other.enforce, other.record) == (500, False, False, Record())
    assert other.id.startswith("watch-")
    assert [(span.line, span.file) for span in plan.watch_spans] == [(1, 0), (2, 0)]


def test_compile__names_of_lets_and_layout_leave_the_core_as_it_is(profile: Profile) -> None:
    renamed = TEXT_POLICY.replace("patchers", "those_who_may").replace("\n    ", " ")
    assert core_bytes(plan_of(profile, renamed)) == core_bytes(plan_of(profile, TEXT_POLICY))


def test_compile__without_profile_there_are_diagnostics_and_no_plan() -> None:
    result = compile_text(None, TEXT_POLICY)
    assert (result.plan, result.diagnostics) == (None, ())


def test_compile__a_misspelt_section_needs_no_profile_to_be_found() -> None:
    text = "deny write to kernel .text, kernel .rodta\ndeny write to kernel .percpu\n"
    result = compile_policies([Source("p.policy", text)], None)
    assert [(d.code, d.span.text if d.span else None, d.message, d.help) for d in result.diagnostics] == [
        ("P202", "kernel .rodta", "there is no section `kernel .rodta`", "did you mean `kernel .rodata`?"),
        (
            "P202",
            "kernel .percpu",
            "there is no section `kernel .percpu`",
            "known sections: `kernel .text`, `kernel .rodata`, `kernel .data`, `kernel .bss`, `kernel .init`",
        ),
    ]


CASES = {
    "unknown symbol": (
        "deny write to kernel:sys_call_tabel",
        "P203",
        "kernel:sys_call_tabel",
        "there is no symbol `kernel:sys_call_tabel`",
        "did you mean `kernel:sys_call_table`?",
    ),
    "unknown section": (
        "deny write to kernel .rodta",
        "P202",
        "kernel .rodta",
        "there is no section `kernel .rodta`",
        "did you mean `kernel .rodata`?",
    ),
    "unknown image": ("deny write to ext4:ext4_read", "P203", "ext4:ext4_read", None, None),
    "module": ("deny write to module ext4 .text", "P203", "module ext4 .text", None, None),
    "unknown name": (
        "let patchers = kernel:memcpy\ndeny write to patcher\nlog write to patchers",
        "P204",
        "patcher",
        "there is no place called `patcher`",
        "did you mean `patchers`?",
    ),
    "name given twice": (
        "let a = kernel:memcpy\nlet a = kernel:schedule\nlog write to a",
        "P205",
        "a",
        "the name `a` is given twice",
        "give the second one another name",
    ),
    "label given twice": ("a: log write to idt\na: log write to gdt", "P205", "a", "two rules are called `a`", None),
    "name defined by itself": ("let a = a\nlog write to a", "P208", "a", "`a` is defined by itself", None),
    "empty range": (
        "log write to physical 0x2000..0x2000",
        "P207",
        "physical 0x2000..0x2000",
        "`physical 0x2000..0x2000` covers no bytes",
        "ranges are half-open: start..end",
    ),
    "offset beyond the symbol": ("log write to kernel:memcpy + 0x40", "P203", "kernel:memcpy + 0x40", None, None),
    "unknown access": ("log wirte to idt", "P209", "wirte", "there is no access `wirte`", "did you mean `write`?"),
    "unknown severity": (
        "log write to idt severity hihg",
        "P209",
        "hihg",
        "there is no severity `hihg`",
        "did you mean `high`?",
    ),
    "unknown mode": ("log write to idt mode montor", "P209", "montor", None, "did you mean `monitor`?"),
    "unknown event": ("on hypercal 34/24 log", "P210", "hypercal", None, "did you mean `hypercall`?"),
    "trap": (
        "on trap log",
        "P210",
        "trap",
        "`trap` is no event that a rule can be about",
        "the kernel sends TRAP only to confirm an injected exception, and a trap can't be retried",
    ),
    "unknown platform": (
        'policy "p" for plan9 mips log write to idt',
        "P211",
        "for plan9 mips",
        "there are no profiles of plan9 mips guests",
        "write `for linux x86_64`",
    ),
    "hypercall without numbers": (
        "on hypercall log",
        "P301",
        "hypercall",
        "`hypercall` is followed by number/number",
        "write `on hypercall 34/24 …`",
    ),
    "vector that can't be injected": ("inject pf write to idt", "P302", "pf", None, None),
    "MSR out of reach": ("on msr 0x4000 log", "P303", "0x4000", None, None),
    "unknown MSR": ("on msr lstr log", "P209", "lstr", None, "did you mean `lstar`?"),
    "deny on a hypercall": (
        "on hypercall 34/24 deny",
        "P304",
        "deny",
        "`deny` can't be done to a hypercall",
        "it can be `allow`, `log`, `inject` or `crash`",
    ),
    "pin on cr3": ("on cr3 pin wp", "P304", "pin wp", None, "bits can be pinned in cr0, cr4 and msr efer"),
    "retry on a register": ("on cr4 retry 3 then deny", "P304", "retry 3 then deny", None, None),
    "by on a log": ("log write to idt by skip", "P305", "skip", None, None),
    "mode on allow": ('allow write to idt because "x" mode monitor', "P305", "monitor", None, None),
    "cpuid in every dialect": (
        "on cpuid 0x40000000 log",
        "P306",
        "cpuid 0x40000000",
        "`cpuid 0x40000000` doesn't exist in kvmi-v12",
        "compile with `--target kvmi-v7` if every guest runs it",
    ),
    "execute-only": ("deny read, write to kernel .text", "P502", "deny read, write to kernel .text", None, None),
    "ambiguous code": (
        'deny write to kernel .text except from kernel:helper because "x"',
        "P214",
        "kernel:helper",
        "`kernel:helper` stands for 2 functions",
        None,
    ),
    "code that nobody guards": (
        'deny write to kernel:sys_call_table except from kernel:memcpy because "x"',
        "P401",
        "kernel:memcpy",
        "`kernel:memcpy` is excepted, and nothing keeps it from being rewritten",
        "add `deny write to kernel:memcpy`, or guard the section it lies in",
    ),
    "hypercall that never comes": (
        "on hypercall 35/1 log",
        "P404",
        "35/1",
        "the hypercall 35/1 never reaches the tool, so this rule can never match",
        "the kernel delivers 34/24 alone",
    ),
    "rule stands twice": ("log write to idt\nlog write to idt", "P405", "log write to idt", None, "remove one of them"),
    "unused name": ("let a = idt\nlog write to gdt", "P206", "a", "nothing uses the name `a`", None),
}


@pytest.mark.parametrize("name", CASES)
def test_diagnostic(profile: Profile, name: str) -> None:
    text, code, underlined, message, help = CASES[name]
    result = compile_text(profile, text)
    found = [d for d in result.diagnostics if d.code == code]
    assert [d.code for d in result.diagnostics] == [code] * len(found)
    assert len(found) == 1
    assert found[0].span is not None
    assert found[0].span.text == underlined
    assert message is None or found[0].message == message
    assert help is None or found[0].help == help


def test_diagnostic__two_files_of_one_name(profile: Profile) -> None:
    result = compile_text(profile, 'policy "p" log write to idt', 'policy "p" log write to gdt')
    assert [(d.code, d.message) for d in result.diagnostics] == [
        ("P212", "`1.policy` and `0.policy` are both policy `p`")
    ]


def test_diagnostics__all_mistakes_of_a_stage_are_reported(profile: Profile) -> None:
    result = compile_text(profile, "deny write to kernel .txt\non hypercal 1/2 log\nlog wirte to idt")
    assert [d.code for d in result.diagnostics] == ["P202", "P210", "P209"]


def test_diagnostics__a_syntax_error_is_the_last_stage(profile: Profile) -> None:
    result = compile_text(profile, "deny write to kernel .txt", "deny write kernel .text")
    assert {d.code[:2] for d in result.diagnostics} == {"P1"}


def test_compile__v7_only_events_compile_for_v7(profile: Profile) -> None:
    options = CheckOptions(target="kvmi-v7")
    assert compile_text(profile, "on cpuid 0x40000000 log", options=options).plan is not None


def test_compile__execute_only_pages_compile_for_intel(profile: Profile) -> None:
    result = compile_text(profile, "deny read, write to kernel .text", options=CheckOptions(cpu="intel"))
    assert result.plan is not None
    (run,) = page_runs(segments_of(result.plan), result.plan.rules, result.plan.cpu)
    assert run.allowed.rwx == "--x"
