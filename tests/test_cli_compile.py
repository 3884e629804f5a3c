"""`policyc check` and `policyc compile`: which files they read, what they say, what they write."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from policyc.plan.store import load
from tests.support.policyc_command import Ran, call_policyc
from tests.support.small_kernel import write_small_kernel

TEXT = 'policy "text"\nfor linux x86_64\n\nkernel-text: deny write to kernel .text\n'
CALLS = 'policy "calls"\n\nreport: on hypercall 34/24 log\n'
TYPO = 'policy "typo"\n\ndeny write to kernel .txt\non hypercall 34/24 deny\n'
WARNED = 'policy "warned"\n\ndeny write to kernel .rodata except from kernel:memcpy because "it copies"\n'

COMPILE = ("compile", "--profile", "kernel.profile", "-o", "plan.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a profile and some policies."""
    write_small_kernel(tmp_path)
    files = {"p/text.policy": TEXT, "p/sub/calls.policy": CALLS, "typo.policy": TYPO, "warned.policy": WARNED}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "p" / "notes.txt").write_text("not a policy")
    (tmp_path / "empty").mkdir()
    return tmp_path


def plan_of(folder: Path, *arguments: str) -> tuple[bytes, str]:
    """The bytes of the plan that `policyc compile` makes, and what it says."""
    ran = call_policyc(*COMPILE, *arguments, cwd=folder)
    assert (ran.code, ran.out) == (0, "")
    return (folder / "plan.json").read_bytes(), ran.err


# ---- check


def test_check__nothing_to_report(folder: Path) -> None:
    ran = call_policyc("check", "p", "--profile", "kernel.profile", cwd=folder)
    assert ran == Ran(0, "2 files checked: nothing to report\n", "")


def test_check__says_when_places_are_not_looked_up(folder: Path) -> None:
    ran = call_policyc("check", "p/text.policy", cwd=folder)
    assert ran == Ran(0, "1 file checked, without a profile to look places up in: nothing to report\n", "")


def test_check__draws_every_mistake_where_it_is(folder: Path) -> None:
    ran = call_policyc("check", "typo.policy", "--profile", "kernel.profile", cwd=folder)
    assert (ran.code, ran.err) == (1, "")
    assert " --> typo.policy:3:15\n  |\n3 | deny write to kernel .txt\n" in ran.out
    assert "did you mean `kernel .text`?" in ran.out


def test_check__uses_the_names_that_were_typed(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    ran = call_policyc("check", "../typo.policy", "--profile", "../kernel.profile", cwd=folder / "elsewhere")
    assert " --> ../typo.policy:3:15\n" in ran.out
    absolute = call_policyc("check", folder / "typo.policy", "--profile", folder / "kernel.profile", cwd=Path("/"))
    assert f" --> {folder}/typo.policy:3:15\n" in absolute.out


def test_check__standard_input(folder: Path) -> None:
    ran = call_policyc("check", "-", "--profile", "kernel.profile", cwd=folder, input=TYPO)
    assert (ran.code, ran.err) == (1, "")
    assert " --> <stdin>:3:15\n" in ran.out


@pytest.mark.parametrize(
    ("arguments", "code"), [([], 0), (["--deny", "warnings"], 1)], ids=["warnings pass", "warnings fail"]
)
def test_check__warnings(folder: Path, arguments: list[str], code: int) -> None:
    ran = call_policyc("check", "warned.policy", "--profile", "kernel.profile", *arguments, cwd=folder)
    assert (ran.code, ran.err) == (code, "")
    assert ran.out.startswith("warning[P401]: ")
    assert ran.out.endswith("\n1 warning\n")


def test_check__formats_say_the_same(folder: Path) -> None:
    def output(format: str) -> str:
        ran = call_policyc("check", "typo.policy", "--profile", "kernel.profile", "--format", format, cwd=folder)
        assert (ran.code, ran.err) == (1, "")
        return ran.out

    listed = json.loads(output("json"))["diagnostics"]
    codes = [found["code"] for found in listed]
    lines = [found["span"]["line"] for found in listed]
    assert lines[0] == 3
    (run,) = json.loads(output("sarif"))["runs"]
    assert [result["ruleId"] for result in run["results"]] == codes
    assert [line.split("title=")[1][:4] for line in output("github").splitlines()] == codes
    assert output("text").count("error[") == len(codes)


def test_check__json_of_nothing_is_json(folder: Path) -> None:
    ran = call_policyc("check", "p", "--format", "json", cwd=folder)
    assert (ran.code, json.loads(ran.out), ran.err) == (0, {"version": 1, "diagnostics": []}, "")


def test_check__dialects_differ(folder: Path) -> None:
    """What one dialect alone has is fine for it and for no other."""
    source = "on cpuid 0x40000000 log\n"
    codes = {
        target: call_policyc("check", "-", "--target", target, cwd=folder, input=source).code
        for target in ("any", "kvmi-v7", "kvmi-v12")
    }
    assert codes == {"any": 1, "kvmi-v7": 0, "kvmi-v12": 1}


def test_check__pages_that_cost_a_lot_have_to_be_accepted(folder: Path) -> None:
    source = "deny execute of kernel:schedule\n"
    arguments = ("check", "-", "--profile", "kernel.profile")
    refused = call_policyc(*arguments, cwd=folder, input=source)
    accepted = call_policyc(*arguments, "--accept-hot-pages", cwd=folder, input=source)
    assert (refused.code, "error[P503]" in refused.out, "`--accept-hot-pages`" in refused.out) == (1, True, True)
    assert (accepted.code, "P503" in accepted.out) == (0, False)


def test_check__exceptions_expire(folder: Path) -> None:
    rule = 'deny write to kernel .text except from kernel:memcpy because "x" until {}\n'
    said = {
        day: call_policyc("check", "-", "--profile", "kernel.profile", cwd=folder, input=rule.format(day))
        for day in ("2000-02-29", "9999-12-31")
    }
    assert "2000-02-29" in said["2000-02-29"].out.replace(rule.format("2000-02-29"), "")
    assert said["9999-12-31"].out == "1 file checked: nothing to report\n"


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (b"\xff", "P120", "`bad.policy` isn't UTF-8: byte 0xff on line 1"),
        (b"deny\0", "P121", "`bad.policy` holds a NUL character at byte 4"),
        (b"", "P126", "the policy is empty"),
    ],
)
def test_check__files_that_are_no_text(folder: Path, content: bytes, code: str, said: str) -> None:
    """They are findings like others, and don't keep the rest from being read."""
    (folder / "bad.policy").write_bytes(content)
    ran = call_policyc("check", "bad.policy", "typo.policy", "--profile", "kernel.profile", cwd=folder)
    assert (ran.code, ran.err) == (1, "")
    assert f"error[{code}]: {said}\n" in ran.out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([""], 2, "error: an empty text names no file\n"),
        (["missing.policy"], 2, "error: `missing.policy`: no such file or directory\n"),
        (
            ["empty"],
            2,
            "error: `empty` has no file called *.policy\n  help: files of another name can be given one by one\n",
        ),
        (["p", "--profile", "missing"], 2, "error: `missing`: no such file or directory\n"),
        (
            ["p", "--profile", "System.map"],
            3,
            "error: `System.map`: this file isn't a profile, or only a part of one: it isn't whole JSON\n"
            "  help: make one with `policyc profile build SYSTEM.MAP`\n",
        ),
    ],
)
@pytest.mark.parametrize("command", [["check"], ["compile", "-o", "plan.json"]], ids=["check", "compile"])
def test_input_that_is_not_there(folder: Path, command: list[str], arguments: list[str], code: int, said: str) -> None:
    profile = [] if command == ["check"] or "--profile" in arguments else ["--profile", "kernel.profile"]
    assert call_policyc(*command, *arguments, *profile, cwd=folder) == Ran(code, "", said)
    assert not (folder / "plan.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check"], "Error: Missing argument 'FILE...'.\n"),
        (["compile", "p", "-o", "plan.json"], "Error: Missing option '--profile'.\n"),
        (["compile", "p", "--profile", "kernel.profile"], "Error: Missing option '-o' / '--output'.\n"),
        (
            ["check", "-", "--profile", "-"],
            "Error: standard input can't be both the policy and the profile\n",
        ),
    ],
)
def test_usage(folder: Path, arguments: list[str], said: str) -> None:
    ran = call_policyc(*arguments, cwd=folder)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.endswith(said)


# ---- compile


def test_compile__writes_a_plan_that_loads(folder: Path) -> None:
    content, said = plan_of(folder, "p")
    plan = load(content)
    rules = [(plan.policies[rule.policy].name, rule.id) for rule in plan.rules]
    assert rules == [("calls", "report"), ("text", "kernel-text")]
    digest = json.loads(content)["core_digest"]
    assert said == f"plan.json: 2 rules, core {digest}\n"


def test_compile__to_standard_output(folder: Path) -> None:
    content, _ = plan_of(folder, "p")
    ran = call_policyc("compile", "p", "--profile", "kernel.profile", "-o", "-", cwd=folder)
    assert ran == Ran(0, content.decode(), "")


def test_compile__is_the_same_from_everywhere(folder: Path) -> None:
    """Neither the folder one stands in, nor how a file is named, nor that it is named twice, is in a plan."""
    content, _ = plan_of(folder, "p")
    assert plan_of(folder, f"{folder}/p")[0] == content
    assert plan_of(folder, "p", "p/text.policy", "p/../p/sub")[0] == content
    call_policyc("compile", ".", "--profile", "../kernel.profile", "-o", "plan.json", cwd=folder / "p")
    assert (folder / "p" / "plan.json").read_bytes() == content


def test_compile__the_order_of_files_does_not_matter(folder: Path) -> None:
    core = json.loads(plan_of(folder, "p/text.policy", "p/sub/calls.policy")[0])["core"]
    assert json.loads(plan_of(folder, "p/sub/calls.policy", "p/text.policy")[0])["core"] == core


@pytest.mark.parametrize("arguments", [["typo.policy"], ["warned.policy", "--deny", "warnings"], ["p", "typo.policy"]])
def test_compile__findings_leave_the_old_plan_alone(folder: Path, arguments: list[str]) -> None:
    (folder / "plan.json").write_text("old")
    ran = call_policyc(*COMPILE, *arguments, cwd=folder)
    assert (ran.code, ran.out, (folder / "plan.json").read_text()) == (1, "", "old")
    assert "[P" in ran.err


def test_compile__warnings_are_said_and_the_plan_is_written(folder: Path) -> None:
    _, said = plan_of(folder, "warned.policy")
    assert said.startswith("warning[P401]: ")


@pytest.mark.parametrize(
    ("output", "reason"),
    [("missing/plan.json", "no such file or directory"), ("empty", "is a directory")],
)
def test_compile__unwritable_output(folder: Path, output: str, reason: str) -> None:
    before = sorted(folder.rglob("*"))
    ran = call_policyc("compile", "p", "--profile", "kernel.profile", "-o", output, cwd=folder)
    assert ran == Ran(2, "", f"error: `{output}`: {reason}\n")
    assert sorted(folder.rglob("*")) == before


def test_compile__a_full_disk_leaves_nothing(folder: Path) -> None:
    ran = call_policyc("compile", "p", "--profile", "kernel.profile", "-o", "/dev/full", cwd=folder)
    assert ran == Ran(74, "", "error: `/dev/full`: no space left on device\n")


def test_compile__the_plan_has_the_permissions_of_a_new_file(folder: Path) -> None:
    plan_of(folder, "p")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((folder / "plan.json").stat().st_mode) == 0o666 & ~mask


def test_compile__a_name_that_is_no_text_is_shown_escaped(folder: Path) -> None:
    name = b"\x1b[31m\xff.policy".decode(errors="surrogateescape")
    (folder / name).write_text(TYPO)
    ran = call_policyc("check", name, "--profile", "kernel.profile", cwd=folder)
    assert ran.code == 1
    assert "\x1b" not in ran.out
    assert " --> <U+001B>[31m\ufffd.policy:3:15\n" in ran.out


# ---- imports


def test_imports__are_read_from_the_folder_of_the_file_that_imports(folder: Path) -> None:
    (folder / "p" / "sub" / "all.policy").write_text('import "../text.policy"\nimport "calls.policy"\n')
    content, _ = plan_of(folder, "p/sub/all.policy")
    plan = load(content)
    assert [policy.name for policy in plan.policies] == ["calls", "text"]
    assert [file.path for file in plan.sources] == ["../text.policy", "calls.policy"]


def test_imports__of_what_is_named_too_are_one_file(folder: Path) -> None:
    before, _ = plan_of(folder, "p")
    (folder / "p" / "all.policy").write_text('import "text.policy"\nimport "sub/../sub/calls.policy"\n')
    ran = call_policyc("compile", "p", "--profile", "kernel.profile", "-o", "-", cwd=folder)
    assert json.loads(ran.out)["core"]["rules"] == json.loads(before)["core"]["rules"]


def test_imports__mistakes_are_shown_under_the_names_that_lead_there(folder: Path) -> None:
    (folder / "p" / "sub" / "bad.policy").write_text('import "../../typo.policy"\nimport "missing.policy"\n')
    ran = call_policyc("check", "sub/bad.policy", "--profile", "../kernel.profile", cwd=folder / "p")
    assert ran.code == 1
    assert " --> sub/bad.policy:2:8\n" in ran.out
    assert "`missing.policy` can't be imported: there is no such file" in ran.out
    (folder / "p" / "sub" / "bad.policy").write_text('import "../../typo.policy"\n')
    ran = call_policyc("check", "sub/bad.policy", "--profile", "../kernel.profile", cwd=folder / "p")
    assert " --> ../typo.policy:3:15\n" in ran.out


def test_imports__of_standard_input_are_read_from_the_current_folder(folder: Path) -> None:
    ran = call_policyc(
        "check",
        "sub/calls.policy",
        "-",
        "--profile",
        "../kernel.profile",
        cwd=folder / "p",
        input='import "text.policy"',
    )
    assert (ran.code, ran.out) == (0, "2 files checked: nothing to report\n")


def test_imports__of_what_is_no_text(folder: Path) -> None:
    (folder / "binary.policy").write_bytes(b"\0")
    ran = call_policyc("check", "-", "--profile", "kernel.profile", cwd=folder, input='import "binary.policy"')
    assert (ran.code, ran.err) == (1, "")
    assert ran.out.startswith("error[P121]: `binary.policy` holds a NUL character at byte 0\n")
