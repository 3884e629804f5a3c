# More that the kernel does by right, a way into user mode and back, and guarded objects at a page's end.

    .section .text, "ax"

# Run user code as the task does, until its INT 0x80. RDI, RSI: its arguments, RDX: where, RCX: its code segment. RAX is
# what it left there.
FUNC call_user
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    cli
    movq %rsp, %gs:PCPU_CALL
    movq %gs:PCPU_STACK, %r8
    subq %rsp, %r8
    cmpq $PAGE_SIZE, %r8
    jae 1f
    movq %rsp, %r8                          # the task was interrupted: its frame is on this stack, and has to stay
    andq $-16, %r8
    call set_entry_stack
1:  movl $user_call_top, %r8d
    jmp enter_user
ENDF call_user

# Where entry_INT80_compat leads from user mode.
FUNC user_called
    movq %gs:PCPU_CALL, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    sti
    ret
ENDF user_called

FUNC act_hypercall_32
    leaq user32_hypercall, %rdx
    movl $__USER32_CS, %ecx
    call call_user
    cltq                                    # an error is a number of 32 bits there
    ret
ENDF act_hypercall_32

FUNC act_hypercall_flood
    pushq %rbx
    movl $FLOOD, %ebx
1:  call act_hypercall
    incq hypercalls_made(%rip)
    decl %ebx
    jnz 1b
    popq %rbx
    ret
ENDF act_hypercall_flood

FUNC act_write_storm
    movl $FLOOD, %ecx
1:  incq neighbour_after(%rip)
    decl %ecx
    jnz 1b
    xorl %eax, %eax
    ret
ENDF act_write_storm

# The module's init text, its first page, is freed, as Linux does once it has run; its frame is used for something else.
FUNC act_module_free
    movq $0, level1_module_pgt(%rip)
    movabsq $MODULE_BASE, %rdx
    invlpg (%rdx)
    leaq __module_image(%rip), %rdi
    call lm_alias
    incq frame_uses(%rip)
    movq frame_uses(%rip), %rdx
    movq %rdx, (%rax)
    xorl %eax, %eax
    ret
ENDF act_module_free

    .section .data..guarded, "aw"

    .balign PAGE_SIZE
OBJECT edge_before
    .fill PAGE_SIZE - 16, 1, 0xaa
ENDO edge_before
OBJECT guarded_tail                         # the last bytes of one page
    .fill 16, 1, 0xcc
ENDO guarded_tail
OBJECT guarded_head                         # the first bytes of the next
    .fill 16, 1, 0xdd
ENDO guarded_head
OBJECT edge_after
    .fill 0x400, 1, 0xbb
ENDO edge_after

    .section .bss, "aw", @nobits

    .balign 8
    COUNTER hypercalls_made
    COUNTER frame_uses
