"""What is known of a guest: where its kernel has its symbols, where its memory leads, and which kernel is running.

`profile` holds the facts and answers questions; `readers` makes a profile from a symbol table; `store` keeps it in a
file. `paging`, `virtual` and `linux_kernel` look at a live guest without touching one: they are generators that ask
for guest frames and receive their bytes, so the same code serves a running virtual machine and a test.
"""
