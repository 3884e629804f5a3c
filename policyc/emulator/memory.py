"""Guest RAM: one anonymous mapping shared by every vCPU, and the rights that introspection gives to its frames.

RAM begins at guest physical address 0 and has no holes. Rights are per frame and view and for the whole machine, as KVM
keeps them (kvmi.rst, KVMI_VM_SET_PAGE_ACCESS); a frame without an entry is unrestricted. Reads and writes made through
this class are the host's own: they ignore the rights.
"""

from __future__ import annotations

import mmap
from ctypes import addressof, c_char
from typing import TYPE_CHECKING, Final, Protocol

from policyc.addresses import PAGE_SHIFT, PAGE_SIZE, Gfn, Gpa
from policyc.emulator.views import VIEWS, View

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["ALL_RIGHTS", "RAM_LIMIT", "Memory", "MemoryObserver", "NoMemoryError"]

ALL_RIGHTS: Final = 7
"""Read, write and execute: `KVMI_PAGE_ACCESS_R | W | X`."""

RAM_LIMIT: Final = 1 << 30
"""Largest guest that is started, in bytes: what one table of 2 MiB pages maps."""


class NoMemoryError(Exception):
    """A guest physical address without RAM behind it."""

    def __init__(self, gpa: int, size: int) -> None:
        super().__init__(f"no guest memory at [{gpa:#x}, {gpa + size:#x})")
        self.gpa = gpa


class MemoryObserver(Protocol):
    """What a processor wants to know of the memory that it shares."""

    def rights_changed(self) -> None:
        """Rights of some frames, or what backs them, are others now."""

    def content_changed(self, frames: range) -> None:
        """Somebody else stored into these frames."""

    def code_found(self, gfn: int) -> None:
        """Another processor is about to run code from this frame, and must hear of every store into it."""


class Memory:
    """RAM of `size` bytes, a multiple of 2 MiB up to `RAM_LIMIT`.

    Attributes:
        size: bytes of RAM.
        quadwords: the same RAM as 64-bit words, for page walks.
        views: the EPT views; view 0 is the only one unless the tool uses others.
        rights: frames that are restricted in view 0, each with the rights that are left.
        code_frames: frames that some processor has translated code from.

    Raises:
        ValueError: the size isn't one that a guest can have.
    """

    __slots__ = ("_mapping", "_observers", "_view", "code_frames", "quadwords", "rights", "size", "views")

    def __init__(self, size: int) -> None:
        if not 0 < size <= RAM_LIMIT or size % (2 << 20):
            raise ValueError(f"guest memory must be a multiple of 2 MiB and at most {RAM_LIMIT >> 20} MiB, not {size}")
        self.size = size
        self._mapping = mmap.mmap(-1, size)
        self._view = memoryview(self._mapping)
        self.quadwords = self._view.cast("Q")
        self.views = tuple(View() for _ in range(VIEWS))
        self.rights = self.views[0].rights
        self.code_frames: set[int] = set()
        self._observers: list[MemoryObserver] = []

    @property
    def host_address(self) -> int:
        """Where the mapping lies in this process, for the engine; valid as long as this object lives."""
        return addressof(c_char.from_buffer(self._mapping))

    @property
    def end_gfn(self) -> Gfn:
        """One past the last frame."""
        return Gfn(self.size >> PAGE_SHIFT)

    def observe(self, observer: MemoryObserver) -> None:
        """Tell `observer` of every change that is not its own."""
        self._observers.append(observer)

    def announce(self, frames: range, origin: MemoryObserver | None = None) -> None:
        """Tell all observers but `origin` that the content of `frames` may have changed."""
        for observer in self._observers:
            if observer is not origin:
                observer.content_changed(frames)

    def mark_code(self, gfn: int, origin: MemoryObserver) -> None:
        """A processor translates code from this frame: from now on stores into it are caught on every other."""
        if gfn not in self.code_frames:
            self.code_frames.add(gfn)
            for observer in self._observers:
                if observer is not origin:
                    observer.code_found(gfn)

    def read(self, gpa: Gpa, size: int) -> bytes:
        """Copy `size` bytes.

        Raises:
            NoMemoryError: some of them aren't RAM.
        """
        self._check(gpa, size)
        return bytes(self._view[gpa : gpa + size])

    def write(self, gpa: Gpa, data: bytes) -> None:
        """Store `data`; code that a vCPU has translated from these frames is forgotten.

        Raises:
            NoMemoryError: some of it would lie outside RAM; nothing was written.
        """
        self._check(gpa, len(data))
        self._view[gpa : gpa + len(data)] = data
        self.announce(range(gpa >> PAGE_SHIFT, (gpa + len(data) + PAGE_SIZE - 1) >> PAGE_SHIFT))

    def write_all(self, content: bytes) -> None:
        """Fill RAM with an image of it, before anything runs on it.

        Raises:
            ValueError: the image has another size.
        """
        self._view[:] = content

    def restrict(self, entries: Iterable[tuple[int, int]], view: int = 0) -> None:
        """Set the rights of frames in a view; `ALL_RIGHTS` lifts the restriction. In force for all vCPUs on return."""
        kept = self.views[view].rights
        for gfn, rights in entries:
            if rights == ALL_RIGHTS:
                kept.pop(gfn, None)
            else:
                kept[gfn] = rights
        self._tell()

    def back(self, view: int, gfn: Gfn, other: Gfn) -> None:
        """Let a frame be backed by another in a view; backing it by itself ends that."""
        self.views[view].back(gfn, other)
        self._tell()

    def lift_all(self) -> None:
        """Forget every restriction and every change of frames, in all views."""
        for view in self.views:
            view.rights.clear()
            view.frames.clear()
        self._tell()

    def restrictions(self) -> Mapping[int, int]:
        """A copy of the restrictions: gfn to rights."""
        return dict(self.rights)

    def _tell(self) -> None:
        for observer in self._observers:
            observer.rights_changed()

    def _check(self, gpa: int, size: int) -> None:
        if gpa < 0 or size < 0 or gpa + size > self.size:
            raise NoMemoryError(gpa, size)
