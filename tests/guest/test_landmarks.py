from __future__ import annotations

import pytest

from policyc.addresses import Gva
from policyc.guest.errors import ProfileError
from policyc.guest.landmarks import landmarks_of, profile_of_landmarks
from policyc.guest.linux_anchors import anchors_of
from policyc.guest.profile import Identity, Profile
from policyc.guest.readers import build_profile
from tests.support.guest_tables import BANNER, BASE, handler_rows, kernel_rows, large_table, table


def reduced(profile: Profile) -> Profile:
    return profile_of_landmarks(
        landmarks_of(profile), profile.identity, os=profile.os, arch=profile.arch, digest=profile.digest
    )


def test_landmarks_are_few_and_tell_all_that_finding_the_kernel_needs() -> None:
    profile = build_profile(large_table(20_000, 10), banner=BANNER)
    landmarks = landmarks_of(profile)
    entries = [name for name in handler_rows() if name not in ("schedule", "vfs_read")]
    assert {*entries, "_text", "_end", "init_top_pgt", "linux_banner", "system_state"} <= set(landmarks)
    assert len(landmarks) < 70
    small = reduced(profile)
    assert anchors_of(small.kernel) == anchors_of(profile.kernel)
    assert (small.anchor, small.kernel.sections) == (profile.anchor, profile.kernel.sections)
    assert (small.identity, small.digest) == (profile.identity, profile.digest)


def test_what_lies_between_landmarks_is_not_taken_for_theirs() -> None:
    small = reduced(build_profile(table(kernel_rows())))
    (banner,) = small.kernel.symbol("linux_banner")
    assert (banner.size, banner.size_inferred) == (0, True)
    assert small.symbol_at(banner.gva) == (small.kernel, banner, 0)
    assert small.symbol_at(Gva(banner.gva + 1)) is None


def test_a_name_of_several_places_is_no_landmark() -> None:
    twice = build_profile(table(kernel_rows(), extra=f"{BASE + 0x9000:016x} t asm_exc_nmi\n"))
    assert "asm_exc_nmi" not in landmarks_of(twice)


def test_landmarks_of_no_kernel_are_refused() -> None:
    with pytest.raises(ProfileError, match="neither `_text` nor `_stext`"):
        profile_of_landmarks({}, Identity(), os="linux", arch="x86_64", digest="sha256:" + "0" * 64)
