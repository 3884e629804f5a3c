from __future__ import annotations

import pytest

from policyc.guest.linux_boot import BootState, boot_state, kernel_version


@pytest.mark.parametrize(
    ("version", "states"),
    [
        # system_state 0, 1, 2, 3, 4, 7: B booting, U unsettled, R running
        ("3.10", "BRRRRR"),
        ("4.12", "BRRRRR"),
        ("4.13", "BBRRRR"),
        ("5.4", "BBRRRR"),
        ("5.9", "BBRRRR"),
        ("5.10", "BBURRR"),
        ("5.14", "BBURRR"),
        ("5.15", "BBURRR"),
        ("5.16", "BBBRRR"),
        ("6.1", "BBBRRR"),
        ("6.18", "BBBRRR"),
        (None, "BUURRR"),
    ],
)
def test_what_each_value_means_in_each_version(version: str | None, states: str) -> None:
    banner = None if version is None else f"Linux version {version}.7-amd64 (build@example.org)"
    found = "".join(boot_state(value, banner).name[0] for value in (0, 1, 2, 3, 4, 7))
    assert found == states


@pytest.mark.parametrize("value", [None, 8, 0xFFFF_FFFF])
def test_what_is_no_state(value: int | None) -> None:
    assert boot_state(value, "Linux version 6.1") is BootState.UNKNOWN


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        ("Linux version 6.1.0-99-amd64 (b)", (6, 1)),
        ("Linux version 5.15", (5, 15)),
        ("Linux version 99999.1", None),
        ("Linux version six", None),
        ("", None),
        (None, None),
    ],
)
def test_the_version_in_a_banner(banner: str | None, version: tuple[int, int] | None) -> None:
    assert kernel_version(banner) == version
