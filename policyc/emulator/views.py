"""EPT views: what one of a VM's alternative page tables on the host's side holds (kvmi-v7, `KVMI_VCPU_SET_EPT_VIEW`).

Each vCPU uses one view at a time. A view has rights of its own for the frames, and may back a frame by another one.
View 0 is the one that there is without the feature. Source: arch/x86/kvm/kvmi_msg.c and mmu of branch kvmi-v7.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from policyc.addresses import PAGE_SHIFT, PAGE_SIZE, Gpa

__all__ = ["VIEWS", "View"]

VIEWS: Final = 3
"""How many views a VM has; commands refuse numbers from here on."""


@dataclass(slots=True)
class View:
    """One view.

    Attributes:
        rights: frames that are restricted, each with the rights that are left.
        frames: frames that another one backs.
    """

    rights: dict[int, int] = field(default_factory=dict)
    frames: dict[int, int] = field(default_factory=dict)

    def backing(self, gpa: Gpa) -> Gpa:
        """Where the byte at a guest physical address really is."""
        gfn = self.frames.get(gpa >> PAGE_SHIFT)
        return gpa if gfn is None else Gpa(gfn << PAGE_SHIFT | gpa & (PAGE_SIZE - 1))

    def back(self, gfn: int, other: int) -> None:
        """Let `other` back a frame; the frame itself ends that."""
        if gfn == other:
            self.frames.pop(gfn, None)
        else:
            self.frames[gfn] = other
