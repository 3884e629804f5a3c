"""Mistakes in the text of a policy: the codes P1xx."""

from __future__ import annotations

from tests.support.reference_codes import CodeExample

__all__ = ["TEXT_EXAMPLES"]

TEXT_EXAMPLES = (
    CodeExample(
        "P100",
        "Look at the path and at the file's permissions. The commands of policyc end with exit code 2 and the system's "
        "own reason; programs that read policies through `policyc.lang.read` get this code.",
    ),
    CodeExample(
        "P101",
        "Write what is expected there. Where the mistake is a common one, the help says what to type.",
        "deny write kernel .text\n",
        "deny write to kernel .text\n",
    ),
    CodeExample(
        "P102",
        "Complete the statement, or take its beginning out.",
        "let tables =\n",
        "let tables = kernel:sys_call_table\nlog write to tables\n",
    ),
    CodeExample(
        "P103",
        "Take the character out. Statements end where the next one begins; nothing stands between them.",
        "deny write to kernel .text;\n",
        "deny write to kernel .text\n",
    ),
    CodeExample(
        "P104",
        "Close the text on the line that it begins on. There are no escapes: a text can't hold a `\"`.",
        'log write to idt because "we want to know\n',
        'log write to idt because "we want to know"\n',
    ),
    CodeExample(
        "P105",
        "Add the bracket that is missing, or take the other one out.",
        "on cr4 when (clears(smep) or clears(smap) deny\n",
        "on cr4 when (clears(smep) or clears(smap)) deny\n",
    ),
    CodeExample(
        "P106",
        "Begin the statement with an effect, or with `on`, `let`, `watch`, `test` or `import`.",
        "dney write to kernel .text\n",
        "deny write to kernel .text\n",
    ),
    CodeExample(
        "P107",
        "Put the words in the order that the help shows.",
        "log on hypercall 34/24\n",
        "on hypercall 34/24 log\n",
    ),
    CodeExample(
        "P108",
        "Say why the code may do what the rule forbids. Whoever reviews the policy later has nothing else to go by.",
        "deny write to kernel .text\n    except from kernel:__text_poke\n",
        'deny write to kernel .text\n    except from kernel:__text_poke because "the kernel patches itself"\n',
    ),
    CodeExample(
        "P109",
        "Keep one of the two. `tag`, `overriding` and `except` may stand several times, every other clause once.",
        "deny write to kernel .text severity low severity high\n",
        "deny write to kernel .text severity high\n",
    ),
    CodeExample(
        "P110",
        "Put a blank between the image and its section.",
        "deny write to kernel.text\n",
        "deny write to kernel .text\n",
    ),
    CodeExample(
        "P111",
        "Move the header to the top of the file, and keep one of two.",
        'deny write to kernel .text\npolicy "kernel code"\n',
        'policy "kernel code"\n\ndeny write to kernel .text\n',
    ),
    CodeExample(
        "P112",
        "Give a number that fits: addresses have 64 bits, and a range may end at 2**64.",
        "log write to virtual 0x1ffffffff81000000 size 8\n",
        "log write to virtual 0xffffffff81000000 size 8\n",
    ),
    CodeExample(
        "P113",
        "Write numbers as `4096`, `0x1000` or `4K`, times as `500ms` or `5s`, dates as `2027-06-30`.",
        "log write to physical 0x100000 size 4KB\n",
        "log write to physical 0x100000 size 4K\n",
    ),
    CodeExample(
        "P114",
        "Name a day that exists.",
        'deny write to kernel .text\n    except from kernel:__text_poke because "a tracer" until 2027-02-30\n',
        'deny write to kernel .text\n    except from kernel:__text_poke because "a tracer" until 2027-02-28\n',
    ),
    CodeExample(
        "P115",
        "Take the character out. What can't be seen, or turns the direction of writing, makes a policy read otherwise "
        "than it says; it is refused in comments too.",
        'on hypercall 34/24 log because "the\u200bagent calls"\n',
        'on hypercall 34/24 log because "the agent calls"\n',
    ),
    CodeExample(
        "P120",
        "Save the file as UTF-8.",
        b'on hypercall 34/24 log because "caf\xe9"\n',
        'on hypercall 34/24 log because "café"\n',
    ),
    CodeExample(
        "P121",
        "Name policy files only. Where it is one, take the NUL out.",
        b"on hypercall 34/24 log\n\0",
        "on hypercall 34/24 log\n",
    ),
    CodeExample(
        "P122",
        "Split the policy into several files.",
        "# a long comment\n" * (4 * 1024 * 1024 // 17 + 1),
        instead="a file of more than 4 MiB",
    ),
    CodeExample(
        "P123",
        "Break the line: a line break is a blank like any other.",
        f"log write to {', '.join(['idt'] * 2500)}\n",
        instead="a statement of more than 10,000 characters on one line",
    ),
    CodeExample(
        "P124",
        "Give parts of it names with `let`, or make several rules of it.",
        f"on cr3 when {'not ' * 65}cpl == 0 log\n",
        "on cr3 when cpl != 0 log\n",
        instead="a condition with 65 times `not`",
    ),
    CodeExample(
        "P125",
        "Split the policy into several files. One file has 250,000 statements at most.",
    ),
    CodeExample(
        "P126",
        "Write a rule, or don't name the file.",
        'policy "later"\n\n# rules to come\n',
        'policy "now"\n\ndeny write to kernel .text\n',
    ),
    CodeExample(
        "P127",
        "Mend the errors that are shown and check again.",
        "dney write to kernel .text\n" * 101,
        instead="a file with 101 mistakes",
    ),
    CodeExample(
        "P128",
        "Make several statements of it.",
        "let tables =\n" + ",\n".join(["    kernel:sys_call_table"] * 22_000) + "\n",
        instead="a statement of more than 512 KiB",
    ),
)
