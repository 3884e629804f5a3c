"""A real Linux kernel from Debian's packages: booted once under QEMU, taken as a snapshot, continued in the engine."""
