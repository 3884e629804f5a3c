from __future__ import annotations

import pytest

from policyc.guest.errors import ProfileError, printable


def test_an_error_carries_its_fact_and_its_help_apart() -> None:
    error = ProfileError("this file is empty", "read another")
    assert (error.message, error.help, str(error)) == (
        "this file is empty",
        "read another",
        "this file is empty (read another)",
    )
    assert str(ProfileError("this file is empty")) == "this file is empty"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain", "plain"), (b"a\x1b]0;b\x07", "a\\x1b]0;b\\x07"), ("é\u202e\n", "\\xe9\\u202e"), (b"\xff", "\\\\xff")],
)
def test_foreign_text_is_shown_without_what_a_terminal_obeys(text: bytes | str, shown: str) -> None:
    assert printable(text) == shown
    assert len(printable("x" * 999)) == 60
