"""Mistakes in what a policy means: the codes P2xx to P8xx."""

from __future__ import annotations

from tests.support.reference_codes import CodeExample

__all__ = ["MEANING_EXAMPLES"]

_PATCHER = 'except from kernel:__text_poke because "the kernel patches itself"'

NAME_EXAMPLES = (
    CodeExample(
        "P202",
        "Name a section that the profile has: `kernel` has `.text`, `.rodata`, `.data`, `.bss` and `.init` where its "
        "symbols say so.",
        "deny write to kernel .txt\n",
        "deny write to kernel .text\n",
    ),
    CodeExample(
        "P203",
        "Correct the name, or build the profile from a source that has the symbol: `/proc/kallsyms` may lack data.",
        "deny write to kernel:sys_call_tabel\n",
        "deny write to kernel:sys_call_table\n",
    ),
    CodeExample(
        "P204",
        "Correct the name, or define it with `let`. A name is known in its own file only.",
        "let constants = kernel .rodata\ndeny write to constant\n",
        "let constants = kernel .rodata\ndeny write to constants\n",
    ),
    CodeExample(
        "P205",
        "Give one of the two another name.",
        "guard: deny write to kernel .text\nguard: deny write to kernel .rodata\n",
        "code: deny write to kernel .text\nconstants: deny write to kernel .rodata\n",
    ),
    CodeExample(
        "P206",
        "Use the name, or remove it.",
        "let tables = kernel:sys_call_table\n\ndeny write to kernel .rodata\n",
        "let tables = kernel:sys_call_table\n\ndeny write to tables\n",
    ),
    CodeExample(
        "P207",
        "Ranges are half-open: `START..END` ends before END.",
        "log write to physical 0x200000..0x100000\n",
        "log write to physical 0x100000..0x200000\n",
    ),
    CodeExample(
        "P208",
        "Take the name out of its own definition.",
        "let tables = kernel:sys_call_table, tables\nlog write to tables\n",
        "let tables = kernel:sys_call_table\nlog write to tables\n",
    ),
    CodeExample(
        "P209",
        "Use one of the words that [the reference](words.md) lists.",
        "deny wirte to kernel .text\n",
        "deny write to kernel .text\n",
    ),
    CodeExample(
        "P210",
        "Use one of [the events](words.md#events).",
        "on hypercal 34/24 log\n",
        "on hypercall 34/24 log\n",
    ),
    CodeExample(
        "P211",
        "Write `for linux x86_64`.",
        'policy "kernel code"\nfor windows x86_64\n\ndeny write to kernel .text\n',
        'policy "kernel code"\nfor linux x86_64\n\ndeny write to kernel .text\n',
    ),
    CodeExample(
        "P212",
        "Give one of them another name. Two files never make one policy, since an `allow` reaches its whole policy.",
        {
            "code.policy": 'policy "kernel"\n\ndeny write to kernel .text\n',
            "data.policy": 'policy "kernel"\n\ndeny write to kernel .rodata\n',
        },
        {
            "code.policy": 'policy "kernel code"\n\ndeny write to kernel .text\n',
            "data.policy": 'policy "kernel constants"\n\ndeny write to kernel .rodata\n',
        },
    ),
    CodeExample(
        "P213",
        "Name the policy as its header does, and give its file to the command too.",
        {
            "code.policy": 'policy "kernel code"\n\ndeny write to kernel .text\n',
            "tracing.policy": 'allow write to kernel:jump_label_site from kernel:memcpy overriding "kernel cod"\n',
        },
        {
            "code.policy": 'policy "kernel code"\n\ndeny write to kernel .text\n',
            "tracing.policy": 'allow write to kernel:jump_label_site from kernel:memcpy overriding "kernel code"\n',
        },
    ),
    CodeExample(
        "P214",
        "Say which of them is meant: by a symbol that stands alone, and the distance to it.",
        'deny write to kernel .text\n    except from kernel:helper because "it patches"\n',
        'deny write to kernel .text\n    except from kernel:_stext + 0x30a0 size 16 because "it patches"\n',
        symbols="ffffffff810030a0 t helper\nffffffff810030b0 t after_helper\nffffffff810030c0 t helper\n",
        instead="a kernel with two functions called `helper`",
    ),
    CodeExample(
        "P215",
        "Write the path from the folder of the file that imports, without a leading `/`.",
        {"host.policy": 'import "kernel.polcy"\n', "kernel.policy": "deny write to kernel .text\n"},
        {"host.policy": 'import "kernel.policy"\n', "kernel.policy": "deny write to kernel .text\n"},
        named=("host.policy",),
    ),
    CodeExample(
        "P216",
        "Leave one of the imports out. What a file imports is in force wherever it is imported.",
        {
            "code.policy": 'import "data.policy"\ndeny write to kernel .text\n',
            "data.policy": 'import "code.policy"\ndeny write to kernel .rodata\n',
        },
        {
            "code.policy": 'import "data.policy"\ndeny write to kernel .text\n',
            "data.policy": "deny write to kernel .rodata\n",
        },
        named=("code.policy",),
    ),
    CodeExample(
        "P217",
        "Name the files on the command line, or put small ones together.",
        {f"{number}.policy": f'import "{number + 1}.policy"\nlog write to idt\n' for number in range(34)},
        named=("0.policy",),
        instead="34 files, each of which imports the next",
    ),
)

LEGALITY_EXAMPLES = (
    CodeExample(
        "P301",
        "Write behind the event's word what [its row](words.md#events) says.",
        "on hypercall log\n",
        "on hypercall 34/24 log\n",
    ),
    CodeExample(
        "P302",
        "Use a value that is allowed.",
        "inject pf write to kernel .rodata\n",
        "inject gp write to kernel .rodata\n",
    ),
    CodeExample(
        "P303",
        "Only these MSRs can be intercepted: [their numbers](words.md#msrs). Others can't be guarded by KVMI.",
        "on msr 0x4000 deny\n",
        "on msr lstar deny\n",
    ),
    CodeExample(
        "P304",
        "Choose an effect that [the event can carry](words.md#which-effect-on-what).",
        "on hypercall 34/24 deny\n",
        "on hypercall 34/24 log\n",
    ),
    CodeExample(
        "P305",
        "Leave the clause out, or move it to the rule that it belongs to.",
        "log write to kernel .text by fault\n",
        "deny write to kernel .text by fault\n",
    ),
    CodeExample(
        "P306",
        "Compile with `--target` for the dialect that every guest's kernel speaks, or leave the rule out.",
        "on cpuid 0x40000000 log\n",
        "on cpuid 0x40000000 log\n",
        right_options="--target kvmi-v7",
    ),
    CodeExample(
        "P307",
        "Ask for a field that [the event carries](words.md#fields).",
        "on breakpoint when gva in kernel .text log\n",
        "on breakpoint when rip in kernel .text log\n",
    ),
    CodeExample(
        "P308",
        "Compare like with like: bits with their own register, virtual addresses with places in virtual memory, "
        "`access` with `read`, `write` or `execute`.",
        "on cr4 when new & wp deny\n",
        "on cr0 when new & wp == 0 deny\n",
    ),
    CodeExample(
        "P309",
        "Make several rules of it, or name a range in the place of many numbers.",
        f"on cr3 when {' or '.join(f'rax == {number}' for number in range(700))} log\n",
        "on cr3 when rax < 700 log\n",
        instead="a condition with 700 comparisons",
    ),
    CodeExample(
        "P310",
        "Leave `restore` out, or keep the code from being changed at all.",
        "watch kernel .text every 10s restore\n",
        "deny write to kernel .text\n",
    ),
)

JUDGEMENT_EXAMPLES = (
    CodeExample(
        "P401",
        "Guard the code that is excepted, or the section that it lies in. Else whoever rewrites it may do what is "
        "forbidden.",
        f"deny write to kernel .rodata\n    {_PATCHER}\n",
        f"deny write to kernel .text\n\ndeny write to kernel .rodata\n    {_PATCHER}\n",
    ),
    CodeExample(
        "P404",
        "Correct the rule, or leave it out: it guards nothing.",
        "on hypercall 34/25 log\n",
        "on hypercall 34/24 log\n",
    ),
    CodeExample(
        "P405",
        "Remove one of the two.",
        "deny write to kernel .text\ndeny write to kernel .text\n",
        "deny write to kernel .text\n",
    ),
    CodeExample(
        "P406",
        "Write at least one case.",
        'deny write to kernel .text\n\ntest "nobody writes to code" {\n}\n',
        'deny write to kernel .text\n\ntest "nobody writes to code" {\n    write kernel .text => deny\n}\n',
    ),
    CodeExample(
        "P407",
        "Leave the condition out, or write the one that was meant.",
        "on cr3 when cpl <= 3 log\n",
        "on cr3 when cpl == 3 log\n",
    ),
    CodeExample(
        "P408",
        "Correct the exception, or remove it: it never lifts the rule.",
        'deny write to kernel .text when cpl == 3\n    except when cpl == 0 because "the kernel patches itself"\n',
        "deny write to kernel .text when cpl == 3\n",
    ),
    CodeExample(
        "P409",
        "Narrow the exception. As it stands the rule is never in force.",
        'deny write to kernel .text\n    except when cpl < 4 because "the kernel patches itself"\n',
        f"deny write to kernel .text\n    {_PATCHER}\n",
    ),
    CodeExample(
        "P410",
        "Remove the rule, or let it speak of what the stricter ones don't.",
        "deny write to kernel .rodata\nlog write to kernel:sys_call_table\n",
        "deny write to kernel .rodata\nlog read of kernel:sys_call_table when cpl == 3\n",
        right_options="--accept-hot-pages",
    ),
    CodeExample(
        "P411",
        "Correct the place, name the policy with `overriding`, or remove the `allow`: what no rule denies is allowed "
        "anyway.",
        "deny write to kernel .text\nallow write to kernel:jump_label_nop from kernel:memcpy\n",
        "deny write to kernel .text\nallow write to kernel:jump_label_site from kernel:memcpy\n",
    ),
    CodeExample(
        "P412",
        "Remove the exception, or ask whoever owns it whether it is still needed and write the new date.",
        'deny write to kernel .text\n    except from kernel:__text_poke because "a tracer" until 2020-01-31\n',
        'deny write to kernel .text\n    except from kernel:__text_poke because "a tracer" until 2030-01-31\n',
    ),
    CodeExample(
        "P413",
        "Find out whether the exception will still be needed. Nothing changes on the day itself.",
        'deny write to kernel .text\n    except from kernel:__text_poke because "a tracer" until 2026-07-10\n',
        'deny write to kernel .text\n    except from kernel:__text_poke because "a tracer" until 2030-01-31\n',
        instead="on the first of July 2026",
    ),
    CodeExample(
        "P414",
        "Name the code with `from`: that holds only while the code is the one that was there when the plan was armed.",
        'deny write to kernel .text\n    except when rip in kernel:__text_poke because "the kernel patches itself"\n',
        f"deny write to kernel .text\n    {_PATCHER}\n",
    ),
    CodeExample(
        "P415",
        "Guard something that has its pages to itself. Where this very place matters and the guest may be that much "
        "slower, say so.",
        "deny write to kernel:system_state\n",
        "deny write to kernel:system_state\n",
        right_options="--accept-hot-pages",
    ),
    CodeExample(
        "P416",
        "Name what is still there after boot.",
        "deny write to kernel .init\n",
        "deny write to kernel .text\n",
        symbols="ffffffff81008000 T __init_begin\nffffffff8100c000 T __init_end\n",
        instead="a kernel with an `.init` section",
    ),
    CodeExample(
        "P417",
        "Write the size, if you know it.",
        "deny write to kernel:sys_call_table\n",
        "deny write to kernel:sys_call_table size 512\n",
        sized=True,
        instead="with a profile that knows sizes, and not this one",
    ),
    CodeExample(
        "P418",
        "Nothing has to be done. Writing `write` too says what happens anyway, and records it.",
        "deny read of idt\n",
        "deny read, write to idt\n",
    ),
    CodeExample(
        "P419",
        "Nothing has to be done where noticing is enough. Guard what the register leads to as well.",
        "on msr lstar deny\n",
        wrong_options="--cpu amd --target kvmi-v12",
    ),
    CodeExample(
        "P420",
        "Name what is meant where it can't be moved. Else the audit log says when the guest has moved it.",
        "deny write to virtual 0xffffffffc0401000 size 4K\n",
        "deny write to kernel .text\n",
    ),
    CodeExample(
        "P502",
        "Deny `execute` too, leave `read` out, or compile with `--cpu intel` where every host has execute-only pages.",
        "deny read, write to kernel .text\n",
        "deny read, write to kernel .text\n",
        right_options="--cpu intel",
    ),
    CodeExample(
        "P503",
        "Name whole pages. Where this very code matters and the guest may be that much slower, say so.",
        "log execute of kernel:set_memory_x\n",
        "log execute of kernel:set_memory_x\n",
        right_options="--accept-hot-pages",
    ),
    CodeExample(
        "P504",
        "Make several plans of it.",
    ),
    CodeExample(
        "P801",
        "Correct the policy, or the case.",
        'deny write to kernel .text\n\ntest "constants stay" {\n    write kernel .rodata => deny\n}\n',
        'deny write to kernel .text, kernel .rodata\n\ntest "constants stay" {\n    write kernel .rodata => deny\n}\n',
        command="test",
    ),
    CodeExample(
        "P802",
        "Give the field a value in the case.",
        'on cr4 when clears(smep) deny\n\ntest "SMEP stays" {\n    on cr4 with old = smep => deny\n}\n',
        'on cr4 when clears(smep) deny\n\ntest "SMEP stays" {\n    on cr4 with old = smep, new = 0 => deny\n}\n',
        command="test",
    ),
)

MEANING_EXAMPLES = (*NAME_EXAMPLES, *LEGALITY_EXAMPLES, *JUDGEMENT_EXAMPLES)
