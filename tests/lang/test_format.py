"""The one way to write a policy."""

from __future__ import annotations

from hypothesis import given

from policyc.lang.format import format_policy, format_statement
from policyc.lang.layout import comments_of
from tests.support.lang_nodes import parsed, parsed_one
from tests.support.lang_texts import laid_out, policies


def formatted(text: str) -> str:
    return format_policy(parsed(text))


def remarks(text: str) -> list[str]:
    """What the comments of a text say, in no order; two may have come to stand on one line."""
    return sorted(part.strip() for comment in comments_of(text) for part in comment.text.split("#")[1:])


@given(laid_out(policies))
def test_format__keeps_the_meaning_and_the_comments_and_is_stable(text: str) -> None:
    file = parsed(text)
    once = format_policy(file)
    again = parsed(once)
    assert (again.header, again.statements) == (file.header, file.statements)
    assert format_policy(again) == once
    assert remarks(once) == remarks(text)
    assert [format_statement(s) for s in again.statements] == [format_statement(s) for s in file.statements]
    for statement in file.statements:
        assert parsed_one(format_statement(statement)) == statement


MESSY = """# what this is


# second
policy "x" mode monitor  # head
   for linux x86_64   version 2
import "b"
# about a
let a = kernel:b, # first
   kernel:c,
   # own line
   kernel .text



deny write of kernel .text severity high from a,b # trailing
deny write,read to kernel:x+0xF tag "a" when not(a or b) and ((c&d)==0xFF) or e in kernel:x - 8 size 4K
on cr4 when (a) deny owner "o" on cr0 pin wp|pg
guard: deny execute to kernel .text
    # patching
    except from kernel:a because "why" # t1
    # second
    except when cpl == 3 and rip in kernel:a_name_that_is_long_enough_to_break_a_line or foo(bar) because "x"
      until 2027-06-30 owner "me"
    by fault because "y" severity low at most 5 per second mode monitor # end
test "t" { # open
 write kernel:x => deny # c1

 # own
 on cr4 with old = (a|b)&c , new=0 => inject gp
 # last
} # close
test "empty" { }
watch idt every 5s   restore severity low
# tail"""

TIDY = """\
# what this is

# second
policy "x" version 2
for linux x86_64
mode monitor  # head

import "b"
# about a
let a = kernel:b,  # first
    kernel:c,
    # own line
    kernel .text

deny write to kernel .text
    from a, b
    severity high  # trailing
deny write, read of kernel:x + 0xf
    when not (a or b) and c & d == 0xff or e in kernel:x - 8 size 4K
    tag "a"
on cr4 when a deny owner "o"
on cr0 pin wp | pg
guard: deny execute of kernel .text
    by fault
    because "y"
    # patching
    except from kernel:a because "why"  # t1
    # second
    except when cpl == 3 and rip in kernel:a_name_that_is_long_enough_to_break_a_line or foo(bar)
        because "x" owner "me" until 2027-06-30
    severity low
    at most 5 per second
    mode monitor  # end
test "t" {  # open
    write kernel:x => deny  # c1

    # own
    on cr4 with old = (a | b) & c, new = 0 => inject gp
    # last
}  # close
test "empty" {
}
watch idt every 5s restore severity low
# tail
"""


def test_format__a_whole_file() -> None:
    assert formatted(MESSY) == TIDY
    assert formatted(TIDY) == TIDY


def test_format__the_prepositions() -> None:
    for access, preposition in (("write", "to"), ("read", "of"), ("execute", "of"), ("read, write", "to")):
        for written in ("to", "of"):
            assert formatted(f"deny {access} {written} idt") == f"deny {access} {preposition} idt\n"


def test_format__brackets_stand_only_where_they_count() -> None:
    for text in (
        "a and (b or c)",
        "(a and b) and c",
        "not (a and b)",
        "not not a",
        "(a == b) == c",
        "(a in idt) == b",
        "a | b & c == d",
        "(a | b) & c",
        "a & (b & c)",
        "~(a | b)",
        "~f(not a)",
        "~(a == b)",
        "f((a | b) | c)",
        "(not a) == b",
    ):
        assert formatted(f"on cr4 when {text} deny") == f"on cr4 when {text} deny\n"
    assert formatted("on cr4 when (((a)) or ((b) and (c & (d)))) deny") == "on cr4 when a or b and c & d deny\n"


def test_format__a_comment_amid_a_statement_keeps_its_place() -> None:
    assert formatted("deny # one\n write # two\n to idt # three\n") == "deny write to idt  # one # two  # three\n"
    assert formatted("deny write to idt,\n # below\n gdt") == "deny write to idt,\n        # below\n        gdt\n"
    assert formatted("on\n # above\n cr0 log") == "# above\non cr0 log\n"
    assert formatted('test # a\n "t" # {\n { write idt => log }') == ('test "t" {  # a  # {\n    write idt => log\n}\n')


def test_format__moves_a_comment_along_with_its_clause() -> None:
    text = 'deny write to idt\n    severity high  # loud\n    # who\n    from kernel:a\n    except when b because "c"\n'
    assert formatted(text) == (
        'deny write to idt\n    # who\n    from kernel:a\n    except when b because "c"\n    severity high  # loud\n'
    )


def test_format__line_ends_and_blank_lines() -> None:
    assert formatted("\r\n\r\non cr0 log\r\n\r\n\r\n\r\non cr3 log # c\r\n\r\n") == "on cr0 log\n\non cr3 log  # c\n"


def test_format_statement__says_the_same_for_equal_statements() -> None:
    one = parsed_one('deny write to idt # c\n tag "a" severity low except from x because "y" from z by skip')
    other = parsed_one('deny write of\nidt by skip from z severity low tag "a" except from x because "y"')
    assert format_statement(one) == format_statement(other)
    assert format_statement(one) == 'deny write to idt from z by skip except from x because "y" severity low tag "a"'
    assert format_statement(parsed_one('test "t" { write idt => log on cr0 => deny }')) == (
        'test "t" { write idt => log on cr0 => deny }'
    )
