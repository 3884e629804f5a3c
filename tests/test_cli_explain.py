"""`policyc explain`: answers about a plan or about policy files, its pages and its rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from policyc.plan.model import BoundPlace
from policyc.plan.places import ModuleSection
from policyc.plan.store import dump
from tests.support.plans import make_plan, rule
from tests.support.policyc_command import Ran, call_policyc
from tests.support.small_kernel import SYSTEM_MAP, write_small_kernel

POLICY = """\
policy "kernel"

text: deny write to kernel .text
    except from kernel:text_poke_memcpy because "jump labels" owner "kernel team" until 2027-06-30
hole: allow write to kernel:schedule
table: deny write to kernel:sys_call_table by fault severity critical at most 10 per second
seen: log execute of kernel:sys_call_table mode monitor
flags: on cr4 when old == smep and new == 0 deny
leave: on idtr write retry 2 then inject gp
credentials: watch kernel:init_task every 5s restore
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a policy, its profile and its plan."""
    write_small_kernel(tmp_path)
    (tmp_path / "kernel.policy").write_text(POLICY)
    (tmp_path / "typo.policy").write_text("deny write to kernel .txt\n")
    ran = call_policyc("compile", "kernel.policy", "--profile", "kernel.profile", "-o", "plan.json", cwd=tmp_path)
    assert ran.code == 0, ran.err
    return tmp_path


def explain(folder: Path, *arguments: str, profile: bool = True) -> Ran:
    known = ["--profile", "kernel.profile"] if profile else []
    return call_policyc("explain", *arguments, "--plan", "plan.json", *known, cwd=folder)


# ---- questions

DENY = "skip where the write is the instruction's only effect, else #GP"

ANSWERS = {
    "write kernel:memcpy + 5 from 0xffffffffc0401000": f"""\
write 1 byte at kernel:memcpy + 0x5 (0xffffffff81001885)
  by code at 0xffffffffc0401000
verdict: deny
  kvmi-v7   {DENY}
  kvmi-v12  {DENY}
rules:
  decides  text  kernel.policy:3  deny write to kernel .text
""",
    "write kernel:memcpy + 5 from kernel:text_poke_memcpy": """\
write 1 byte at kernel:memcpy + 0x5 (0xffffffff81001885)
  by code at kernel:text_poke_memcpy (0xffffffff81001800)
verdict: allow
  kvmi-v7   CONTINUE
  kvmi-v12  CONTINUE
rules:
  excepted  text  kernel.policy:3  deny write to kernel .text: except from kernel:text_poke_memcpy because "jump labels"
""",
    "write kernel:schedule size 8 => deny": """\
write 8 bytes at kernel:schedule (0xffffffff81001000)
verdict: allow
  kvmi-v7   CONTINUE
  kvmi-v12  CONTINUE
rules:
  decides    hole  kernel.policy:5  allow write to kernel:schedule
  set aside  text  kernel.policy:3  deny write to kernel .text: by `hole`
""",
    "write kernel .rodata": """\
write anywhere in 0xffffffff81a00000..0xffffffff81a00180 (kernel:__start_rodata), \
0xffffffff81a01180..0xffffffff81b00000 (kernel:linux_banner)
verdict: allow
  no rule applies, but the page is guarded: the event comes, and is let through as collateral
  kvmi-v7   CONTINUE
  kvmi-v12  CONTINUE

write anywhere in 0xffffffff81a00180..0xffffffff81a01180 (kernel:sys_call_table)
verdict: deny by fault
  kvmi-v7   INJECT_EXCEPTION, RETRY, #GP
  kvmi-v12  INJECT_EXCEPTION, RETRY, #GP
rules:
  decides  table  kernel.policy:6  deny write to kernel:sys_call_table by fault
  no say   seen   kernel.policy:7  log execute of kernel:sys_call_table (monitor): it is about another kind of access
""",
    "execute kernel:sys_call_table + 8": """\
execute 1 byte at kernel:sys_call_table + 0x8 (0xffffffff81a00188)
verdict: log
  in monitor mode: the reply is allow
  kvmi-v7   CONTINUE
  kvmi-v12  CONTINUE
rules:
  decides  seen   kernel.policy:7  log execute of kernel:sys_call_table (monitor)
  no say   table  kernel.policy:6  deny write to kernel:sys_call_table by fault: it is about another kind of access
""",
    "read 0x1000": """\
read 1 byte at 0x1000
verdict: allow
  no rule applies, and the page isn't guarded against it: no event comes
""",
    "write physical 0x1000 size 8": """\
write 8 bytes at physical 0x1000
verdict: allow
  no rule applies, and the page isn't guarded against it: no event comes
  which frames the places of other rules lie on is known once the plan is armed, and isn't asked here
""",
    "write idt": """\
write anywhere in idt 0x0..0x1000
verdict: allow
  no rule applies, and the page isn't guarded against it: no event comes
  which frames the places of other rules lie on is known once the plan is armed, and isn't asked here
""",
    "on cr4 with old = smep, new = 0": """\
on cr4
verdict: deny
  kvmi-v7   CONTINUE, the old value
  kvmi-v12  CONTINUE, the old value
rules:
  decides  flags  kernel.policy:8  on cr4 when new == 0x0 and old == 0x100000 deny
""",
    "on cr4": """\
on cr4
verdict: deny
  it turns on `new` and `old`, which aren't given: at the mildest it is allow
  kvmi-v7   CONTINUE, the old value
  kvmi-v12  CONTINUE, the old value
rules:
  decides  flags  kernel.policy:8  on cr4 when new == 0x0 and old == 0x100000 deny
""",
    "on idtr write": """\
on idtr write
verdict: retry 2 then inject gp
  kvmi-v7   RETRY up to 2 times, then INJECT_EXCEPTION, RETRY, #GP
  kvmi-v12  RETRY up to 2 times, then INJECT_EXCEPTION, RETRY, #GP
rules:
  decides  leave  kernel.policy:9  on idtr write retry 2 then inject gp
""",
    "on cpuid 1": """\
on cpuid 0x1
verdict: allow
  no rule is about this event: it isn't asked for, and none comes
""",
}


@pytest.mark.parametrize("question", ANSWERS)
def test_answer(folder: Path, question: str) -> None:
    assert explain(folder, question) == Ran(0, ANSWERS[question], "")


@pytest.mark.parametrize("question", ANSWERS)
def test_answer__the_same_from_policy_files(folder: Path, question: str) -> None:
    ran = call_policyc("explain", question, "kernel.policy", "--profile", "kernel.profile", cwd=folder)
    assert ran == Ran(0, ANSWERS[question], "")


def test_answer__many_ranges_are_counted(folder: Path) -> None:
    rules = "\n".join(f"log write to {address:#x}" for address in range(0x1000, 0x100C, 2))
    ran = call_policyc(
        "explain", "write virtual 0x1000..0x100c", "-", "--profile", "kernel.profile", cwd=folder, input=rules
    )
    assert ran.out.count("write anywhere in") == 7
    (gaps,) = (line for line in ran.out.splitlines() if " and " in line and line.startswith("write"))
    assert gaps == (
        "write anywhere in 0x1001..0x1002, 0x1003..0x1004, 0x1005..0x1006, 0x1007..0x1008 and 2 more ranges"
    )


def test_answer__without_profile_the_plan_knows_what_its_rules_name(folder: Path) -> None:
    ran = explain(folder, "write kernel:sys_call_table + 8 from 0x10", profile=False)
    assert (ran.code, ran.out.splitlines()[:3]) == (
        0,
        ["write 1 byte at 0xffffffff81a00188", "  by code at 0x10", "verdict: deny by fault"],
    )
    ran = explain(folder, "write kernel:memcpy", profile=False)
    assert (ran.code, ran.out, ran.err) == (
        1,
        "",
        "error[P203]: the plan doesn't say where `kernel:memcpy` lies: none of its rules names it as a whole\n"
        " --> <question>:1:7\n"
        "  |\n"
        "1 | write kernel:memcpy\n"
        "  |       ^^^^^^^^^^^^^\n"
        "  = help: give the profile too, or an address\n"
        "\n"
        "1 error\n",
    )


def test_answer__json(folder: Path) -> None:
    ran = explain(folder, "write kernel:schedule size 8", "--format", "json")
    (answer,) = json.loads(ran.out)["answers"]
    (hole, text) = answer.pop("rules")
    assert (ran.code, answer) == (
        0,
        {
            "event": None,
            "access": {
                "kind": "write",
                "base": "virtual",
                "start": "0xffffffff81001000",
                "size": 8,
                "name": "kernel:schedule (0xffffffff81001000)",
                "ranges": [
                    {
                        "start": "0xffffffff81001000",
                        "end": "0xffffffff81001008",
                        "name": "kernel:schedule (0xffffffff81001000)",
                    }
                ],
                "page_rights": "r-x",
                "collateral": False,
            },
            "rip": None,
            "effect": "allow",
            "would": "allow",
            "missing": [],
            "mildest": "allow",
            "wire": {"kvmi-v7": "CONTINUE", "kvmi-v12": "CONTINUE"},
        },
    )
    assert (hole["role"], hole["rule"], hole["line"]) == ("decides", "hole", 5)
    assert (text["role"], text["detail"], text["exceptions"]) == (
        "set aside",
        "by `hole`",
        [
            {
                "text": "except from kernel:text_poke_memcpy",
                "because": "jump labels",
                "owner": "kernel team",
                "until": "2027-06-30",
            }
        ],
    )


def test_answer__json_of_an_event(folder: Path) -> None:
    ran = explain(folder, "on cr4 with old = smep", "--format", "json")
    (answer,) = json.loads(ran.out)["answers"]
    assert (answer["event"], answer["access"], answer["missing"], answer["mildest"]) == ("cr4", None, ["new"], "allow")


def test_question__mistakes_are_drawn_and_nothing_else(folder: Path) -> None:
    ran = explain(folder, "write kernel:scheduel")
    assert ran == Ran(
        1,
        "",
        "error[P203]: there is no symbol `kernel:scheduel`\n"
        " --> <question>:1:7\n"
        "  |\n"
        "1 | write kernel:scheduel\n"
        "  |       ^^^^^^^^^^^^^^^\n"
        "  = help: did you mean `kernel:schedule`?\n"
        "\n"
        "1 error\n",
    )


def test_question__too_many_accesses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policyc.analysis.probes.MAX_PROBES", 1)
    assert explain(folder, "write kernel .rodata") == Ran(
        1, "", "error: the case comes to more than 1 accesses\n  help: ask about fewer places\n"
    )


def test_color__only_when_asked(folder: Path) -> None:
    out = explain(folder, "write kernel:memcpy + 5", "--color", "always").out
    assert "\x1b[31m\x1b[1mdeny\x1b[0m" in out
    assert "\x1b[32m\x1b[1mallow\x1b[0m" in explain(folder, "read 0x10", "--color", "always").out
    assert "\x1b[1m" in explain(folder, "--pages", "--color", "always").out
    assert "\x1b[1m" in explain(folder, "--rules", "--color", "always").out


# ---- pages and rules

HEAD = "pages                                         rights   guarded  collateral  rules\n"
TEXT = "0xffffffff81000000..0xffffffff81800000  2048  r-x     0x7ff800       0x800  hole, text\n"
TABLE = "0xffffffff81a00000..0xffffffff81a02000     2  r--       0x1000      0x1000  seen, table\n"
IN_TEXT = "    also there: kernel:schedule (0xffffffff81001000, 0x800 bytes)\n"
IN_TABLE = """\
    also there: kernel:__start_rodata (0xffffffff81a00000, 0x180 bytes)
    also there: kernel:linux_banner (0xffffffff81a01180, 0xfee80 bytes)
"""
TOTAL = "2050 pages: 8390656 bytes guarded, 6144 bytes collateral\n"
PAGES = HEAD + TEXT + IN_TEXT + TABLE + IN_TABLE + TOTAL


def test_pages(folder: Path) -> None:
    assert explain(folder, "--pages", profile=False) == Ran(0, HEAD + TEXT + TABLE + TOTAL, "")
    assert explain(folder, "--pages") == Ran(0, PAGES, "")


def test_pages__of_policy_files(folder: Path) -> None:
    ran = call_policyc("explain", "--pages", "kernel.policy", "--profile", "kernel.profile", cwd=folder)
    assert ran == Ran(0, PAGES, "")


def test_pages__many_neighbours_are_counted(folder: Path) -> None:
    crowd = "".join(f"ffffffff8200{0x2000 + 16 * number:x} d object_{number}\n" for number in range(20))
    (folder / "System.map").write_text(SYSTEM_MAP + crowd)
    built = call_policyc("profile", "build", "System.map", "-o", "crowded.profile", cwd=folder)
    assert built.code == 0, built.err
    rule = "deny write to kernel:object_3"
    ran = call_policyc("explain", "--pages", "-", "--profile", "crowded.profile", cwd=folder, input=rule)
    assert ran.out.count("also there") == 8
    assert "\n    and 11 more symbols\n" in ran.out


def test_pages__none(folder: Path) -> None:
    ran = call_policyc("explain", "--pages", "-", "--profile", "kernel.profile", cwd=folder, input="on cr4 deny")
    assert ran == Ran(0, "no page is guarded\n", "")


def test_pages__json(folder: Path) -> None:
    ran = explain(folder, "--pages", "--format", "json")
    (text, table) = json.loads(ran.out)["pages"]
    assert (ran.code, [rule["rule"] for rule in text["rules"]]) == (0, ["hole", "text"])
    del table["rules"]
    assert table == {
        "base": "virtual",
        "start": "0xffffffff81a00000",
        "end": "0xffffffff81a02000",
        "pages": 2,
        "rights": "r--",
        "guarded": 0x1000,
        "collateral": 0x1000,
        "neighbours": [
            {"name": "kernel:__start_rodata", "start": "0xffffffff81a00000", "size": 0x180},
            {"name": "kernel:linux_banner", "start": "0xffffffff81a01180", "size": 0xFEE80},
        ],
        "more_neighbours": 0,
    }


RULES = """\
policy "kernel": 6 rules, 1 watch

  flags  (kernel.policy:8)
    on cr4 when new == 0x0 and old == 0x100000 deny
    severity medium

  hole  (kernel.policy:5)
    allow write to kernel:schedule
    2048 bytes, severity medium

  leave  (kernel.policy:9)
    on idtr write retry 2 then inject gp
    severity medium

  seen  (kernel.policy:7)
    log execute of kernel:sys_call_table
    4096 bytes, severity medium, mode monitor

  table  (kernel.policy:6)
    deny write to kernel:sys_call_table by fault
    4096 bytes, severity critical, at most 10 records per second

  text  (kernel.policy:3)
    deny write to kernel .text
    except from kernel:text_poke_memcpy because "jump labels" owner "kernel team" until 2027-06-30
    8388608 bytes, severity medium

  credentials  (kernel.policy:10)
    watch kernel:init_task every 5s restore
    1044480 bytes, severity medium
"""


def test_rules(folder: Path) -> None:
    assert explain(folder, "--rules") == Ran(0, RULES, "")


def test_rules__of_several_policies(folder: Path) -> None:
    (folder / "watch.policy").write_text('policy "beside" mode monitor call: on hypercall 34/24 log\n')
    files = ("watch.policy", "kernel.policy")
    ran = call_policyc("explain", "--rules", *files, "--profile", "kernel.profile", cwd=folder)
    beside = """\
policy "beside", in monitor mode: 1 rule

  call  (watch.policy:1)
    on hypercall 34/24 log
    severity medium, mode monitor

"""
    assert ran == Ran(0, beside + RULES, "")


def test_rules__json(folder: Path) -> None:
    document = json.loads(explain(folder, "--rules", "--format", "json").out)
    assert [rule["rule"] for rule in document["rules"]] == ["flags", "hole", "leave", "seen", "table", "text"]
    assert document["rules"][4] == {
        "policy": "kernel",
        "rule": "table",
        "text": "deny write to kernel:sys_call_table by fault",
        "mode": "enforce",
        "severity": "critical",
        "limit": {"count": 10, "per": "second"},
        "bytes": 4096,
        "file": "kernel.policy",
        "line": 6,
        "exceptions": [],
    }
    assert [(watch["watch"], watch["bytes"]) for watch in document["watches"]] == [("credentials", 1044480)]


# ---- input

ANOTHER = "was compiled for another kernel than `other.profile` describes"


def test_input__the_profile_of_another_kernel_is_refused(folder: Path) -> None:
    (folder / "System.map").write_text(SYSTEM_MAP.replace("ffffffff81001000 T schedule", "ffffffff81001010 T schedule"))
    assert call_policyc("profile", "build", "System.map", "-o", "other.profile", cwd=folder).code == 0
    ran = call_policyc("explain", "--rules", "--plan", "plan.json", "--profile", "other.profile", cwd=folder)
    assert ran == Ran(
        3, "", f"error: `plan.json` {ANOTHER}\n  help: give the profile that the plan was compiled with\n"
    )


def test_input__a_plan_with_places_that_only_a_guest_knows(folder: Path) -> None:
    nowhere = BoundPlace(ModuleSection("ext4", ".text"), None)
    (folder / "plan.json").write_text(dump(make_plan([nowhere], [rule(places=(0,))])))
    ran = explain(folder, "write 0x10", profile=False)
    assert ran == Ran(3, "", "error: `module ext4 .text` has no extents before it is bound\n")


def test_input__policies_with_errors(folder: Path) -> None:
    ran = call_policyc("explain", "--rules", "typo.policy", "--profile", "kernel.profile", cwd=folder)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("error[P202]: there is no section `kernel .txt`\n --> typo.policy:1:15\n")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--rules", "--plan", "kernel.profile"], 3, "error: `kernel.profile`: this is not a policyc plan"),
        (["--rules", "--plan", "missing"], 2, "error: `missing`: no such file or directory"),
        (["--rules", "missing", "--profile", "kernel.profile"], 2, "error: `missing`: no such file or directory"),
        ([], 2, "Error: say what is to be explained: a QUESTION, --pages or --rules"),
        (["write idt"], 2, "Error: say of what: policy FILEs behind the QUESTION, or --plan"),
        (["--rules"], 2, "Error: say of what: policy FILEs behind the QUESTION, or --plan"),
        (["--rules", "kernel.policy"], 2, "Error: policy files need --profile, which says where their places lie"),
        (["--rules", "--pages", "x"], 2, "Error: --pages and --rules are two questions: ask one at a time"),
        (
            ["write", "idt", "--plan", "plan.json"],
            2,
            "Error: give policy files or --plan, not both (a QUESTION is one argument, in quotes)",
        ),
        (
            ["--rules", "--plan", "-", "--profile", "-"],
            2,
            "Error: standard input can't be both the plan and the profile",
        ),
        (
            ["--rules", "-", "--profile", "-"],
            2,
            "Error: standard input can't be both the policy and the profile",
        ),
    ],
)
def test_input__that_is_not_there(folder: Path, arguments: list[str], code: int, said: str) -> None:
    ran = call_policyc("explain", *arguments, cwd=folder)
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err.splitlines()


@pytest.mark.parametrize("which", ["plan", "profile"])
def test_input__from_standard_input(folder: Path, which: str) -> None:
    files = {"plan": "plan.json", "profile": "kernel.profile"}
    content = (folder / files[which]).read_bytes()
    files[which] = "-"
    arguments = ("--plan", files["plan"], "--profile", files["profile"])
    ran = call_policyc("explain", "--rules", *arguments, cwd=folder, input=content)
    assert ran == Ran(0, RULES, "")


def test_input__a_profile_from_standard_input_for_policy_files(folder: Path) -> None:
    content = (folder / "kernel.profile").read_bytes()
    ran = call_policyc("explain", "--rules", "kernel.policy", "--profile", "-", cwd=folder, input=content)
    assert ran == Ran(0, RULES, "")
