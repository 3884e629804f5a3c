"""The other side of KVMI: a process that connects to the tool as QEMU does and runs a real guest behind it.

Importing this package imports nothing; the engine is an optional extra and is loaded by what needs it.
"""
