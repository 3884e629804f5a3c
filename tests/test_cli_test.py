"""`policyc test`: which tests are run, what is said about those that fail, coverage, mutation, and the forms of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.policyc_command import Ran, call_policyc
from tests.support.small_kernel import write_small_kernel

PASSING = """\
policy "kernel"

text: deny write to kernel .text
    except from kernel:text_poke_memcpy because "jump labels"
hole: allow write to kernel:schedule
call: on hypercall 34/24 log

test "a module may not patch the kernel" {
    write kernel:entry_SYSCALL_64 + 5 from 0xffffffffc0401000 => deny
    write kernel:entry_SYSCALL_64 + 5 from kernel:text_poke_memcpy => allow
}

test "Calls are logged" {
    on hypercall 34/24 => log
}
"""

FAILING = """\
policy "wrong"

text: deny write to kernel .text
    except from kernel:text_poke_memcpy because "jump labels"
hole: allow write to kernel:schedule
all: log read, write, execute to kernel:schedule mode monitor
flags: on cr4 when clears(smep) deny

test "the first" {
    write kernel:schedule => deny
    write kernel:memcpy from kernel:text_poke_memcpy => deny
}

test "the second" {
    execute kernel:schedule => allow
    on cr4 with old = smep, new = 0 => allow
    on cr4 with old = smep => deny
    write kernel .rodata => deny
    write kernel:memcpy + 8 => deny
}
"""

SAID = """\
error[P801]: test `the first` expects `deny`, but the policy says `allow`
  --> wrong.policy:10:11
   |
10 |     write kernel:schedule => deny
   |           ^^^^^^^^^^^^^^^
   = note: asked: write 1 byte at kernel:schedule (0xffffffff81001000)
   = note: this rule decides: `allow`
  --> wrong.policy:5:1
   |
 5 | hole: allow write to kernel:schedule
   | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
   = note: this rule is set aside by an `allow`
  --> wrong.policy:6:1
   |
 6 | all: log read, write, execute to kernel:schedule mode monitor
   | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
   = note: this rule is set aside by an `allow`
  --> wrong.policy:3:1
   |
 3 | text: deny write to kernel .text
   | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
 4 |     except from kernel:text_poke_memcpy because "jump labels"
   |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a profile and policies that have tests."""
    write_small_kernel(tmp_path)
    files = {
        "p/kernel.policy": PASSING,
        "wrong.policy": FAILING,
        "none.policy": "deny write to kernel .text\n",
        "typo.policy": 'deny write to kernel .txt test "t" { wirte idt => deny }\n',
        "warned.policy": 'let a = idt deny write to gdt test "t" { write gdt => deny }\n',
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def run(folder: Path, *arguments: str, input: str = "") -> Ran:
    return call_policyc("test", *arguments, "--profile", "kernel.profile", cwd=folder, input=input)


# ---- which tests


def test_passing(folder: Path) -> None:
    assert run(folder, "p") == Ran(0, "2 tests, 3 cases: all passed\n", "")


def test_standard_input(folder: Path) -> None:
    assert run(folder, "-", input=PASSING) == Ran(0, "2 tests, 3 cases: all passed\n", "")
    ran = run(folder, "-", input=FAILING)
    assert (ran.code, ran.err) == (1, "")
    assert "  --> <stdin>:10:11\n" in ran.out


def test_warnings__are_left_to_check(folder: Path) -> None:
    assert run(folder, "warned.policy") == Ran(0, "1 test, 1 case: all passed\n", "")


def test_errors__are_said_for_all_files_and_nothing_is_run(folder: Path) -> None:
    (folder / "bad.policy").write_bytes(b"\xff")
    ran = run(folder, "typo.policy", "wrong.policy", "bad.policy")
    assert (ran.code, ran.err) == (1, "")
    assert re.findall(r"^error\[(P\d+)\]", ran.out, re.MULTILINE) == ["P120", "P202", "P209"]
    assert ran.out.endswith("\n3 errors\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["none.policy"],
            'error: there is no test in these files\n  help: write one: `test "NAME" { write kernel .text => deny }`\n',
        ),
        (
            ["p", "--filter", "nothing"],
            "error: none of the 2 tests has a name that contains the text of --filter\n"
            "  help: the first one is called `a module may not patch the kernel`\n",
        ),
        (["missing.policy"], "error: `missing.policy`: no such file or directory\n"),
    ],
)
@pytest.mark.parametrize("format", ["text", "json", "junit"])
def test_no_tests__is_an_error(folder: Path, arguments: list[str], said: str, format: str) -> None:
    """A run that tests nothing must not look like one that passes, in any form."""
    assert run(folder, *arguments, "--format", format) == Ran(2, "", said)


@pytest.mark.parametrize(("text", "tests"), [("CALLS", 1), ("a", 2), ("module may", 1)])
def test_filter__part_of_a_name_in_any_case(folder: Path, text: str, tests: int) -> None:
    ran = run(folder, "p", "--filter", text, "--format", "json")
    assert (ran.code, len(json.loads(ran.out)["tests"])) == (0, tests)


def test_tests__are_about_their_own_file(folder: Path) -> None:
    """Beside another file, whose rules would decide otherwise, a test says what it says alone."""
    (folder / "strict.policy").write_text('crash write to kernel .text\ntest "s" { write kernel:memcpy => crash }\n')
    assert run(folder, "p", "strict.policy") == Ran(0, "3 tests, 4 cases: all passed\n", "")


SEPARATE = """\
import "kernel.policy"

test "from another file" {
    write kernel:schedule => allow
    write kernel:memcpy => deny
}
"""


def test_imports__a_file_of_tests_is_about_what_it_imports(folder: Path) -> None:
    (folder / "p" / "kernel_test.policy").write_text(SEPARATE)
    assert run(folder, "p/kernel_test.policy") == Ran(0, "1 test, 2 cases: all passed\n", "")
    (folder / "p" / "kernel_test.policy").write_text(SEPARATE.replace("allow", "deny"))
    ran = run(folder, "p/kernel_test.policy")
    assert (ran.code, ran.err) == (1, "")
    assert " --> p/kernel_test.policy:4:11\n" in ran.out
    assert " --> p/kernel.policy:5:1\n" in ran.out


def test_imports__coverage_and_mutation_are_united(folder: Path) -> None:
    """The hole is exercised by one file and everything else by the other; nothing is counted twice."""
    (folder / "p" / "kernel_test.policy").write_text(SEPARATE)
    assert run(folder, "p", "--coverage", "--mutate") == Ran(
        0,
        "3 tests, 5 cases: all passed\n"
        "4 of 4 rules and exceptions exercised: 100 %\n"
        "take any rule or exception away, and a test fails\n",
        "",
    )


def test_imports__mistakes_in_what_several_files_import_are_said_once(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / f"{name}.policy").write_text(f'import "typo.policy" test "{name}" {{ write idt => allow }}')
    ran = run(folder, "a.policy", "b.policy")
    assert (ran.code, ran.out.count("error[P202]"), ran.out.endswith("\n2 errors\n")) == (1, 1, True)


def test_imports__leave_no_trace_of_tests_in_a_plan(folder: Path) -> None:
    (folder / "p" / "kernel_test.policy").write_text(SEPARATE)
    plans = []
    for names in (["p"], ["p/kernel.policy"], ["p/kernel_test.policy"]):
        ran = call_policyc("compile", *names, "--profile", "kernel.profile", "-o", "-", cwd=folder)
        assert ran.code == 0, ran.err
        plans.append(ran.out)
    assert plans[0] == plans[1] == plans[2]


def test_usage(folder: Path) -> None:
    ran = call_policyc("test", "p", cwd=folder)
    assert (ran.code, ran.out, ran.err.splitlines()[-1]) == (2, "", "Error: Missing option '--profile'.")
    both = call_policyc("test", "-", "--profile", "-", cwd=folder)
    assert both.err.splitlines()[-1] == "Error: standard input can't be both the policy and the profile"


# ---- failures


def test_failure__is_drawn_whole(folder: Path) -> None:
    ran = run(folder, "wrong.policy")
    first, *_ = ran.out.partition("\n\nerror[")
    assert (ran.code, ran.err, first + "\n") == (1, "", SAID)
    assert ran.out.endswith("\n\n6 errors\n2 tests, 7 cases: 6 failed\n")


def test_failure__each_kind(folder: Path) -> None:
    """What was expected, what is said, and which rules have to do with it."""
    ran = run(folder, "wrong.policy")
    blocks = [
        re.findall(r"^(?:error\[\w+\]|   = note|   = help): (.*)$", block, re.MULTILINE)
        for block in ran.out.split("\n\n")[1:-1]
    ]
    assert blocks == [
        [
            "test `the first` expects `deny`, but the policy says `allow`",
            "asked: write 1 byte at kernel:memcpy (0xffffffff81001880) "
            "by code at kernel:text_poke_memcpy (0xffffffff81001800)",
            "this rule makes an exception here, because `jump labels`",
        ],
        [
            "test `the second` expects `allow`, but the policy says `log`",
            "asked: execute 1 byte at kernel:schedule (0xffffffff81001000)",
            "this rule decides: `log`, in monitor mode, where the reply is `allow`",
            "this rule has no say: it is about another kind of access",
            "this rule has no say: it is about another kind of access",
        ],
        [
            "test `the second` expects `allow`, but the policy says `deny`",
            "this rule decides: `deny`",
        ],
        [
            "test `the second` expects `deny`, but the verdict turns on `new`",
            "this rule decides: `deny`",
            "say it in the case, before `=>`: `with new = …`",
        ],
        [
            "test `the second` expects `deny`, but the policy says `allow`",
            "asked: write 1 byte at kernel:__start_rodata (0xffffffff81a00000)",
            "no rule is about these bytes",
        ],
    ]


def test_failure__too_many_rules_are_counted(folder: Path) -> None:
    rules = "\n".join(f'r{number}: log write to idt severity low tag "{number}"' for number in range(12))
    ran = run(folder, "-", input=f'{rules}\ntest "t" {{ write idt => deny }}')
    assert len(re.findall("= note: this rule", ran.out)) == 8
    assert "= note: 4 more rules about it\n" in ran.out


def test_failure__too_many_accesses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("probes", "failures"):
        monkeypatch.setattr(f"policyc.analysis.{module}.MAX_PROBES", 1)
    ran = run(folder, "-", input='deny write to kernel:schedule test "t" { write kernel .text => allow }')
    assert (ran.code, ran.err) == (1, "")
    assert "error[P802]: test `t`: the case comes to more than 1 accesses\n" in ran.out


def test_failure__uses_the_names_that_were_typed(folder: Path) -> None:
    ran = call_policyc("test", "../wrong.policy", "--profile", "../kernel.profile", cwd=folder / "p")
    assert "  --> ../wrong.policy:10:11\n" in ran.out
    assert "  --> ../wrong.policy:6:1\n" in ran.out


def test_color__only_when_asked(folder: Path) -> None:
    ran = run(folder, "p", "--color", "always")
    assert ran == Ran(0, "2 tests, 3 cases: \x1b[32m\x1b[1mall passed\x1b[0m\n", "")
    assert "\x1b[31m\x1b[1m6 failed\x1b[0m" in run(folder, "wrong.policy", "--color", "always").out
    assert "\x1b" not in run(folder, "wrong.policy").out


def test_names__never_act_on_a_terminal(folder: Path) -> None:
    name = "\x1b[31m.policy"
    (folder / name).write_text(PASSING + 'test "bad" { write kernel:memcpy => allow }')
    for format in ("text", "junit", "json", "github"):
        ran = run(folder, name, "--coverage", "--format", format)
        assert ran.code == 1
        assert "\x1b" not in ran.out


# ---- coverage and mutation

NOT_COVERED = """\
2 tests, 3 cases: all passed
3 of 4 rules and exceptions exercised: 75 %
not exercised:
  p/kernel.policy:5:1  hole: allow write to kernel:schedule
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--coverage"], 0),
        (["--coverage-min", "75"], 0),
        (["--coverage-min", "76"], 1),
        (["--coverage", "--coverage-min", "100"], 1),
    ],
)
def test_coverage(folder: Path, arguments: list[str], code: int) -> None:
    assert run(folder, "p", *arguments) == Ran(code, NOT_COVERED, "")


def test_coverage__counts_files_without_tests(folder: Path) -> None:
    ran = run(folder, "p", "none.policy", "--coverage")
    assert "3 of 5 rules and exceptions exercised: 60 %\n" in ran.out
    assert re.search(r"^  none\.policy:1:1      rule-\w+: deny write to kernel \.text$", ran.out, re.MULTILINE)


@pytest.mark.parametrize("percent", ["-1", "101", "x"])
def test_coverage_min__is_a_percentage(folder: Path, percent: str) -> None:
    assert run(folder, "p", "--coverage-min", percent).code == 2


def test_mutate__says_what_no_test_misses(folder: Path) -> None:
    assert run(folder, "p", "--mutate") == Ran(
        1,
        "2 tests, 3 cases: all passed\ntake away one of these, and no test fails:\n"
        "  p/kernel.policy:5:1  hole: allow write to kernel:schedule\n",
        "",
    )


def test_mutate__finds_the_exception_that_no_test_misses(folder: Path) -> None:
    source = PASSING.replace("    write kernel:entry_SYSCALL_64 + 5 from kernel:text_poke_memcpy => allow\n", "")
    ran = run(folder, "-", "--mutate", input=source.replace("hole: allow write to kernel:schedule\n", ""))
    assert ran.out == (
        "2 tests, 2 cases: all passed\ntake away one of these, and no test fails:\n"
        "  <stdin>:3:1  text: except from kernel:text_poke_memcpy\n"
    )


def test_mutate__of_what_is_tested_whole(folder: Path) -> None:
    source = PASSING + 'test "hole" { write kernel:schedule => allow }'
    assert run(folder, "-", "--mutate", input=source) == Ran(
        0,
        "3 tests, 4 cases: all passed\ntake any rule or exception away, and a test fails\n",
        "",
    )


def test_mutate__waits_until_the_tests_pass(folder: Path) -> None:
    ran = run(folder, "wrong.policy", "--mutate", "--format", "json")
    assert (ran.code, ran.err) == (1, "--mutate takes nothing away while a case fails anyway\n")
    assert json.loads(ran.out)["unnoticed"] is None


# ---- forms


def test_json__holds_everything(folder: Path) -> None:
    ran = run(folder, "p", "--filter", "patch", "--coverage", "--format", "json")
    document = json.loads(ran.out)
    (test,) = document.pop("tests")
    (first, second) = test.pop("cases")
    assert (ran.code, document.pop("coverage")["percent"]) == (0, 50)
    assert document == {"version": 1, "diagnostics": [], "unnoticed": None}
    assert (test["name"], test["passed"], test["span"]["file"], test["span"]["line"]) == (
        "a module may not patch the kernel",
        True,
        "p/kernel.policy",
        8,
    )
    del first["span"]
    assert first == {
        "case": "write kernel:entry_SYSCALL_64 + 5 from 0xffffffffc0401000 => deny",
        "passed": True,
        "expected": "deny",
        "failure": None,
        "got": "deny",
        "reply": "deny",
        "rules": [{"policy": "kernel", "rule": "text"}],
        "set_aside": [],
        "exempted": [],
    }
    assert (second["got"], second["rules"], second["exempted"]) == (
        "allow",
        [],
        [{"policy": "kernel", "rule": "text"}],
    )


def test_json__of_failures_and_errors(folder: Path) -> None:
    cases = [
        case
        for test in json.loads(run(folder, "wrong.policy", "--format", "json").out)["tests"]
        for case in test["cases"]
    ]
    assert [(case["passed"], case["failure"] and case["failure"]["code"]) for case in cases] == [
        (False, "P801"),
        (False, "P801"),
        (False, "P801"),
        (False, "P801"),
        (False, "P802"),
        (False, "P801"),
        (True, None),
    ]
    assert (cases[0]["got"], cases[0]["set_aside"]) == (
        "allow",
        [{"policy": "wrong", "rule": "all"}, {"policy": "wrong", "rule": "text"}],
    )
    assert (cases[2]["got"], cases[2]["reply"]) == ("log", "allow")
    errors = json.loads(run(folder, "typo.policy", "--format", "json").out)
    assert ([found["code"] for found in errors["diagnostics"]], errors["tests"]) == (["P202", "P209"], [])


def test_junit__one_testcase_a_case(folder: Path) -> None:
    ran = run(folder, "p", "wrong.policy", "--format", "junit")
    assert ran.code == 1
    suites = ElementTree.fromstring(ran.out)
    assert [dict(suite.attrib) for suite in suites] == [
        {"name": "p/kernel.policy", "tests": "3", "failures": "0", "errors": "0", "skipped": "0"},
        {"name": "wrong.policy", "tests": "7", "failures": "6", "errors": "0", "skipped": "0"},
    ]
    assert all(len(suite) == int(suite.attrib["tests"]) for suite in suites)
    assert dict(suites[1][0].attrib) == {
        "classname": "the first",
        "name": "write kernel:schedule => deny",
        "file": "wrong.policy",
        "line": "10",
    }
    (failure,) = suites[1][0]
    assert (failure.tag, dict(failure.attrib)) == (
        "failure",
        {"message": "test `the first` expects `deny`, but the policy says `allow`", "type": "P801"},
    )
    assert failure.text == SAID + "\n1 error\n"
    assert list(suites[1][6]) == []


def test_junit__errors_are_no_silence(folder: Path) -> None:
    ran = run(folder, "typo.policy", "--format", "junit")
    suites = ElementTree.fromstring(ran.out)
    assert (ran.code, [suite.attrib["errors"] for suite in suites]) == (1, ["1"])
    (error,) = suites[0][0]
    assert error.tag == "error"
    assert "error[P202]" in (error.text or "")


@pytest.mark.parametrize("format", ["sarif", "github"])
def test_other_forms__are_those_of_findings(folder: Path, format: str) -> None:
    ran = run(folder, "wrong.policy", "--format", format)
    assert (ran.code, ran.out.count("P801") >= 5, "P802" in ran.out) == (1, True, True)
    passing = run(folder, "p", "--format", format)
    assert (passing.code, "P801" in passing.out) == (0, False)
