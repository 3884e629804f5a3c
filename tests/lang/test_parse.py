"""Every form of statement, and the tree it gives."""

from __future__ import annotations

import datetime
import subprocess
import sys

import pytest

from policyc.lang import ast
from tests.support.lang_nodes import (
    NOWHERE,
    access_rule,
    clauses,
    effect,
    event_rule,
    named,
    number,
    parsed,
    parsed_one,
    section,
    symbol,
    text,
    word,
)

KERNEL_TEXT = section("kernel", ".text")


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("deny write to kernel .text", access_rule("write", KERNEL_TEXT)),
        ("deny write of kernel .text", access_rule("write", KERNEL_TEXT)),
        (
            "on hypercall 34/24 log",
            event_rule("hypercall", ast.Pair(number(34), number(24), NOWHERE), verdict=effect("log")),
        ),
        ("guard: deny write to kernel .text", access_rule("write", KERNEL_TEXT, label="guard")),
        ("deny: deny write to idt", access_rule("write", named("idt"), label="deny")),
        ("on cr3 deny", event_rule("cr3")),
        ("on msr lstar write deny", event_rule("msr", "lstar", "write")),
        ("on msr 0xc0000082 deny", event_rule("msr", number(0xC0000082))),
        ("on vcpu created log", event_rule("vcpu", "created", verdict=effect("log"))),
        ("odd-name: on xsetbv crash", event_rule("xsetbv", verdict=effect("crash"), label="odd-name")),
        ('import "base/kernel.policy"', ast.Import(text("base/kernel.policy"), NOWHERE)),
        ("let hooks = kernel:a, idt", ast.Let(word("hooks"), (symbol("a"), named("idt")), NOWHERE)),
        ("let size = kernel:test", ast.Let(word("size"), (symbol("test"),), NOWHERE)),
        ("let log = kernel:x", ast.Let(word("log"), (symbol("x"),), NOWHERE)),
        (
            "watch idt every 1s restore",
            ast.Watch(None, (named("idt"),), ast.Duration(1000, "1s", NOWHERE), word("restore"), clauses(), NOWHERE),
        ),
        (
            "creds: watch kernel:init_cred, gdt every 500ms severity high",
            ast.Watch(
                word("creds"),
                (symbol("init_cred"), named("gdt")),
                ast.Duration(500, "500ms", NOWHERE),
                None,
                clauses(severity=word("high")),
                NOWHERE,
            ),
        ),
        ('test "nothing" {}', ast.Test(text("nothing"), (), NOWHERE)),
    ],
)
def test_statement(source: str, wanted: ast.Statement) -> None:
    assert parsed_one(source) == wanted


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("deny write to nt .text", section("nt", ".text")),
        ("deny write to kernel .note.gnu.build-id", section("kernel", ".note.gnu.build-id")),
        ('deny write to nt "PAGE"', ast.SectionPlace(word("nt"), text("PAGE"), NOWHERE)),
        ("deny write to module ext4 .text", ast.ModulePlace(word("ext4"), word(".text"), NOWHERE)),
        ("deny write to module test .text", ast.ModulePlace(word("test"), word(".text"), NOWHERE)),
        ('deny write to module "win32k.sys" "INIT"', ast.ModulePlace(text("win32k.sys"), text("INIT"), NOWHERE)),
        ("deny write to kernel:x", symbol("x")),
        ("deny write to kernel:to", symbol("to")),
        ("deny write to kernel:x.constprop.0", symbol("x.constprop.0")),
        ("deny write to kernel:?f@@YAXXZ", symbol("?f@@YAXXZ")),
        ("deny write to kernel:ftrace_*", symbol("ftrace_*")),
        ("deny write to kernel:x + 16", symbol("x", 16)),
        ("deny write to kernel:x-0x10", symbol("x", -16)),
        ("deny write to kernel:x size 4K", symbol("x", None, 4096)),
        ("deny write to kernel:x + 16 size 8", symbol("x", 16, 8)),
        ("deny write to physical 0x1000..0x2000", ast.PhysicalPlace(number(0x1000), number(0x2000), None, NOWHERE)),
        ("deny write to physical 1M size 4_096", ast.PhysicalPlace(number(1 << 20), None, number(4096), NOWHERE)),
        (
            "deny write to virtual 0xffff_ffff_ffff_f000..0x10000000000000000",
            ast.VirtualPlace(number((1 << 64) - 4096), number(1 << 64), None, NOWHERE),
        ),
        ("deny write to virtual 1 size 2G", ast.VirtualPlace(number(1), None, number(2 << 30), NOWHERE)),
        ("deny write to 0xffffffffc0401000", ast.LiteralPlace(number(0xFFFFFFFFC0401000), NOWHERE)),
        ("deny write to idt", named("idt")),
    ],
)
def test_place(source: str, wanted: ast.Place) -> None:
    assert parsed_one(source) == access_rule("write", wanted)


def test_symbol_place__only_a_star_makes_a_glob() -> None:
    assert symbol("ftrace_*").is_glob
    assert not symbol("?f@@YAXXZ").is_glob


def test_access_rule__lists() -> None:
    rule = parsed_one("deny read, write to kernel .rodata, kernel:x")
    assert rule == ast.AccessRule(
        None,
        effect("deny"),
        (word("read"), word("write")),
        (section("kernel", ".rodata"), symbol("x")),
        clauses(),
        NOWHERE,
    )


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("inject gp", ast.InjectEffect(word("inject"), word("gp"), NOWHERE)),
        ("inject 6", ast.InjectEffect(word("inject"), number(6), NOWHERE)),
        ("pin wp", ast.PinEffect(word("pin"), (word("wp"),), NOWHERE)),
        ("pin wp | pg", ast.PinEffect(word("pin"), (word("wp"), word("pg")), NOWHERE)),
        ("retry 3 then deny", ast.RetryEffect(word("retry"), number(3), effect("deny"), NOWHERE)),
        (
            "retry 3 then inject ud",
            ast.RetryEffect(word("retry"), number(3), ast.InjectEffect(word("inject"), word("ud"), NOWHERE), NOWHERE),
        ),
    ],
)
def test_effect__with_argument(source: str, wanted: ast.Effect) -> None:
    assert parsed_one(f"on cr0 {source}") == event_rule("cr0", verdict=wanted)
    rule = parsed_one(f"{source} write to idt")
    assert isinstance(rule, ast.AccessRule)
    assert rule.effect == wanted


def test_effect__words_come_from_the_caller() -> None:
    from policyc.diagnostics import Source
    from policyc.lang.parse import parse

    file, _ = parse(Source("p", "block write to idt"), ("block",))
    assert file is not None
    assert file.statements == (access_rule("write", named("idt"), verdict="block"),)
    assert parse(Source("p", "deny write to idt"), ("block",))[0] is None


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("from kernel:a, kernel .init.text", {"origin": (symbol("a"), section("kernel", ".init.text"))}),
        ("when cpl", {"guard": word("cpl")}),
        ("by fault", {"mechanism": word("fault")}),
        ("mode monitor", {"mode": word("monitor")}),
        ("severity low", {"severity": word("low")}),
        ('tag "a" tag "b"', {"tags": (text("a"), text("b"))}),
        ('because "it is"', {"reason": text("it is")}),
        ('owner "team"', {"owner": text("team")}),
        ("at most 10 per second", {"limit": ast.RateLimit(number(10), word("second"), NOWHERE)}),
        ('overriding "a" overriding "b"', {"overriding": (text("a"), text("b"))}),
        (
            'except from kernel:a because "p" owner "o" until 2027-06-30',
            {
                "exemptions": (
                    ast.Exemption(
                        (symbol("a"),),
                        None,
                        text("p"),
                        text("o"),
                        ast.Date(datetime.date(2027, 6, 30), NOWHERE),
                        NOWHERE,
                    ),
                )
            },
        ),
        (
            'except when cpl because "p" until 2027-06-30 owner "o"',
            {
                "exemptions": (
                    ast.Exemption(
                        (), word("cpl"), text("p"), text("o"), ast.Date(datetime.date(2027, 6, 30), NOWHERE), NOWHERE
                    ),
                )
            },
        ),
        (
            'except from x when cpl because "p" because "the rule\'s"',
            {
                "exemptions": (ast.Exemption((named("x"),), word("cpl"), text("p"), None, None, NOWHERE),),
                "reason": text("the rule's"),
            },
        ),
    ],
)
def test_clause(source: str, wanted: dict[str, object]) -> None:
    rule = parsed_one(f"deny write to idt {source}")
    assert isinstance(rule, ast.AccessRule)
    assert rule.clauses == clauses(**wanted)


def test_clauses__their_order_does_not_count() -> None:
    one = parsed_one('deny write to idt tag "a" severity low except from x because "y" from z by skip')
    other = parsed_one('deny write to idt by skip from z severity low tag "a" except from x because "y"')
    assert one == other


def test_event_rule__the_condition_stands_before_the_effect() -> None:
    assert parsed_one("on cr4 when cpl deny severity low") == event_rule("cr4", guard=word("cpl"), severity=word("low"))


def _bits(operator: str, *operands: ast.Expression) -> ast.BitOp:
    return ast.BitOp(operator, operands, NOWHERE)


def _compare(left: ast.Expression, operator: str, right: ast.Expression) -> ast.Compare:
    return ast.Compare(left, word(operator), right, NOWHERE)


A, B, C = word("a"), word("b"), word("c")


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("a", A),
        ("((a))", A),
        ("old != 0", _compare(word("old"), "!=", number(0))),
        ("a & b == c", _compare(_bits("&", A, B), "==", C)),
        ("a == b | c & a", _compare(A, "==", _bits("|", B, _bits("&", C, A)))),
        ("(a | b) & c", _bits("&", _bits("|", A, B), C)),
        ("a | b | c", _bits("|", A, B, C)),
        ("~a & b", _bits("&", ast.Complement(A, NOWHERE), B)),
        ("~(a | b)", ast.Complement(_bits("|", A, B), NOWHERE)),
        ("clears(a | b)", ast.Call(word("clears"), _bits("|", A, B), NOWHERE)),
        ("rip in kernel .text", ast.InPlace(word("rip"), KERNEL_TEXT, NOWHERE)),
        (
            "rip in kernel:x size 8 and size > 8",
            ast.And(
                (ast.InPlace(word("rip"), symbol("x", None, 8), NOWHERE), _compare(word("size"), ">", number(8))),
                NOWHERE,
            ),
        ),
        ("not a and b or c", ast.Or((ast.And((ast.Not(A, NOWHERE), B), NOWHERE), C), NOWHERE)),
        ("not (a or b)", ast.Not(ast.Or((A, B), NOWHERE), NOWHERE)),
        ("a and (b or c)", ast.And((A, ast.Or((B, C), NOWHERE)), NOWHERE)),
        ("a and b and c", ast.And((A, B, C), NOWHERE)),
        ("(a and b) and c", ast.And((ast.And((A, B), NOWHERE), C), NOWHERE)),
        ("not not a", ast.Not(ast.Not(A, NOWHERE), NOWHERE)),
        *((f"a {sign} b", _compare(A, sign, B)) for sign in ("==", "!=", "<", "<=", ">", ">=")),
    ],
)
def test_expression(source: str, wanted: ast.Expression) -> None:
    assert parsed_one(f"on cr4 when {source} deny") == event_rule("cr4", guard=wanted)


def test_test__cases_of_both_kinds() -> None:
    block = parsed_one(
        """test "t" {
            write kernel:x + 8 size 8 from 0x1000 with cpl = 3, size = 8 => deny
            execute idt => inject gp
            on cr4 with old = smep | smap, new = 0 => allow
        }"""
    )
    old = ast.Setting(word("old"), _bits("|", word("smep"), word("smap")), NOWHERE)
    assert block == ast.Test(
        text("t"),
        (
            ast.AccessCase(
                word("write"),
                symbol("x", 8, 8),
                ast.LiteralPlace(number(0x1000), NOWHERE),
                (ast.Setting(word("cpl"), number(3), NOWHERE), ast.Setting(word("size"), number(8), NOWHERE)),
                effect("deny"),
                NOWHERE,
            ),
            ast.AccessCase(
                word("execute"), named("idt"), None, (), ast.InjectEffect(word("inject"), word("gp"), NOWHERE), NOWHERE
            ),
            ast.EventCase(
                ast.EventPattern(word("cr4"), (), NOWHERE),
                (old, ast.Setting(word("new"), number(0), NOWHERE)),
                effect("allow"),
                NOWHERE,
            ),
        ),
        NOWHERE,
    )


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ('policy "p"', ast.Header(text("p"), None, None, None, NOWHERE)),
        (
            'policy "p" version 2\nfor linux x86_64 mode monitor',
            ast.Header(
                text("p"), number(2), ast.Platform(word("linux"), word("x86_64"), NOWHERE), word("monitor"), NOWHERE
            ),
        ),
        ('policy "p" mode enforce version 1', ast.Header(text("p"), number(1), None, word("enforce"), NOWHERE)),
    ],
)
def test_header(source: str, wanted: ast.Header) -> None:
    file = parsed(f"{source}\non cr0 log")
    assert file.header == wanted
    assert file.statements == (event_rule("cr0", verdict=effect("log")),)


def test_file__statements_by_kind() -> None:
    file = parsed('import "a" let x = idt deny write to x on cr0 log watch x every 1h test "t" { }')
    assert [type(s).__name__ for s in file.statements] == ["Import", "Let", "AccessRule", "EventRule", "Watch", "Test"]
    assert (len(file.imports), len(file.lets), len(file.rules), len(file.watches), len(file.tests)) == (1, 1, 2, 1, 1)
    assert file.span.text == file.source.text


def test_layout__is_free() -> None:
    apart = "deny # why\n\twrite\r\n\r\n   to\nkernel\n.text\n  severity\nhigh # end"
    assert parsed(apart).statements == parsed("deny write to kernel .text severity high").statements


def test_layout__a_statement_may_go_on_with_a_word_that_begins_one() -> None:
    source = "on cr4\ndeny\nretry 2 then\nlog write to idt\nlet x =\nlog,\ndeny\non\non\nlog"
    wanted = "on cr4 deny retry 2 then log write to idt let x = log, deny on on log"
    assert parsed(source).statements == parsed(wanted).statements
    assert len(parsed(source).statements) == 4


def test_span__of_each_part() -> None:
    source = "# first\nguard: deny write to kernel:x + 8 size 4\n  when (new & wp) == wp and cpl\n"
    rule = parsed_one(source)
    assert isinstance(rule, ast.AccessRule)
    assert rule.span.text == source[8:-1]
    assert rule.label
    assert rule.label.span.text == "guard"
    assert rule.effect.span.text == rule.effect.word.span.text == "deny"
    (place,) = rule.places
    assert isinstance(place, ast.SymbolPlace)
    assert place.span.text == "kernel:x + 8 size 4"
    assert (place.image.span.text, place.symbol.span.text) == ("kernel", "x")
    assert place.offset
    assert (place.offset.span.text, place.offset.text) == ("+ 8", "8")
    assert rule.clauses.span.text == "when (new & wp) == wp and cpl"
    guard = rule.clauses.guard
    assert isinstance(guard, ast.And)
    assert [operand.span.text for operand in guard.operands] == ["(new & wp) == wp", "cpl"]


def test_span__of_clauses_that_are_not_there() -> None:
    rule = parsed_one("deny write to idt # none\n")
    assert isinstance(rule, ast.AccessRule)
    assert (rule.clauses.span.start, rule.clauses.span.end) == (17, 17)
    watch = parsed_one("watch idt every 5s restore ")
    assert isinstance(watch, ast.Watch)
    assert (watch.clauses.span.start, watch.clauses.span.end) == (26, 26)


def test_import__does_not_load_the_parser_library() -> None:
    program = "import sys, policyc.lang, policyc.lang.parse; print('lark' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
