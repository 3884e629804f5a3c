# Exceptions, interrupts and system calls.

    .section .entry.text, "ax"

# A stub pushes what the processor didn't (an error code), then the vector.
.macro idtentry vector sym error=0
FUNC \sym
    .if \error == 0
    pushq $-1
    .endif
    pushq $\vector
    jmp exc_common
ENDF \sym
.endm

.macro sysvec vector sym
FUNC \sym
    pushq $-1
    pushq $\vector
    jmp irq_common
ENDF \sym
.endm

    idtentry 0,  asm_exc_divide_error
    idtentry 1,  asm_exc_debug
    idtentry 2,  asm_exc_nmi
    idtentry 3,  asm_exc_int3
    idtentry 4,  asm_exc_overflow
    idtentry 5,  asm_exc_bounds
    idtentry 6,  asm_exc_invalid_op
    idtentry 7,  asm_exc_device_not_available
    idtentry 8,  asm_exc_double_fault, 1
    idtentry 9,  asm_exc_coproc_segment_overrun
    idtentry 10, asm_exc_invalid_tss, 1
    idtentry 11, asm_exc_segment_not_present, 1
    idtentry 12, asm_exc_stack_segment, 1
    idtentry 13, asm_exc_general_protection, 1
    idtentry 14, asm_exc_page_fault, 1
    idtentry 15, asm_exc_spurious_interrupt_bug
    idtentry 16, asm_exc_coprocessor_error
    idtentry 17, asm_exc_alignment_check, 1
    idtentry 18, asm_exc_machine_check
    idtentry 19, asm_exc_simd_coprocessor_error
    idtentry 20, asm_exc_virtualization_exception
    idtentry 21, asm_exc_control_protection, 1

    sysvec 0xec, asm_sysvec_apic_timer_interrupt
    sysvec 0xf4, asm_sysvec_deferred_error
    sysvec 0xf6, asm_sysvec_irq_work
    sysvec 0xf7, asm_sysvec_x86_platform_ipi
    sysvec 0xf8, asm_sysvec_reboot
    sysvec 0xf9, asm_sysvec_threshold
    sysvec 0xfa, asm_sysvec_thermal
    sysvec 0xfb, asm_sysvec_call_function_single
    sysvec 0xfc, asm_sysvec_call_function
    sysvec 0xfd, asm_sysvec_reschedule_ipi
    sysvec 0xfe, asm_sysvec_error_interrupt
    sysvec 0xff, asm_sysvec_spurious_apic_interrupt

# Between the two roots of a task, where it has two; the kernel's GS is loaded.
.macro SWITCH_TO_KERNEL_CR3
    testb $1, %gs:PCPU_KPTI
    jz 78f
    pushq %rax
    movq %cr3, %rax
    btrq $USER_ROOT_BIT, %rax
    movq %rax, %cr3
    popq %rax
78:
.endm

.macro SWITCH_TO_USER_CR3
    testb $1, %gs:PCPU_KPTI
    jz 79f
    pushq %rax
    movq %cr3, %rax
    btsq $USER_ROOT_BIT, %rax
    movq %rax, %cr3
    popq %rax
79:
.endm

.macro PUSH_REGS
    cld
    pushq %rdi
    pushq %rsi
    pushq %rdx
    pushq %rcx
    pushq %rax
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    testb $3, PT_CS(%rsp)
    jz 77f
    swapgs
    SWITCH_TO_KERNEL_CR3
77:
.endm

.macro POP_REGS_AND_IRET
    testb $3, PT_CS(%rsp)
    jz 77f
    SWITCH_TO_USER_CR3
    swapgs
77: popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rax
    popq %rcx
    popq %rdx
    popq %rsi
    popq %rdi
    addq $16, %rsp
    iretq
.endm

FUNC exc_common
    PUSH_REGS
    movq %rsp, %rdi
    call do_exception
    POP_REGS_AND_IRET
ENDF exc_common

FUNC irq_common
    PUSH_REGS
    movq PT_VECTOR(%rsp), %rdi
    call do_interrupt
    testb $3, PT_CS(%rsp)
    jz 1f
    call serve_mailbox                      # a task that never yields keeps nobody from being served
    cli
1:  POP_REGS_AND_IRET
ENDF irq_common

# RAX is the number; RDI, RSI, RDX the arguments. RCX and R11 hold the user's RIP and flags.
FUNC entry_SYSCALL_64
    swapgs
    movq %rsp, %gs:PCPU_SCRATCH
    movq %gs:PCPU_STACK, %rsp
    SWITCH_TO_KERNEL_CR3
    pushq %rcx
    pushq %r11
    pushq %gs:PCPU_SCRATCH
    call do_syscall_64
    popq %rdx
    popq %r11
    popq %rcx
    SWITCH_TO_USER_CR3
    movq %rdx, %rsp
    swapgs
    sysretq
ENDF entry_SYSCALL_64

# Into the task, from a stack that its page tables have.
FUNC enter_task
    movq %gs:PCPU_STACK, %rsp
    pushq $__USER_DS
    pushq task_rsp(%rip)
    pushq task_flags(%rip)
    pushq $__USER_CS
    pushq task_rip(%rip)
    SWITCH_TO_USER_CR3
    swapgs
    iretq
ENDF enter_task

# Into any user code: RDX is where, RCX its code segment, R8 its stack; interrupts are off.
FUNC enter_user
    movq %gs:PCPU_STACK, %rsp
    pushq $__USER_DS
    pushq %r8
    pushq $(EFLAGS_IF | 2)
    pushq %rcx
    pushq %rdx
    SWITCH_TO_USER_CR3
    swapgs
    iretq
ENDF enter_user

FUNC do_syscall_64
    cmpq $NR_syscalls, %rax
    jae sys_ni_syscall
    leaq sys_call_table(%rip), %r10
    jmp *(%r10, %rax, 8)
ENDF do_syscall_64

# The end of what call_user began; INT 0x80 in the kernel does nothing.
FUNC entry_INT80_compat
    testb $3, 8(%rsp)
    jz 1f
    swapgs
    SWITCH_TO_KERNEL_CR3
    jmp user_called
1:  iretq
ENDF entry_INT80_compat

    .section .rodata, "a"

# What idt_setup_traps installs: { u8 vector, u8 ist, u8 type, u8 0, u32 0, u64 handler }.
.macro GATE vector handler ist=0 type=0x8e
    .byte \vector, \ist, \type, 0
    .long 0
    .quad \handler
.endm

    .balign 16
idt_data:
    GATE 0,  asm_exc_divide_error
    GATE 1,  asm_exc_debug, IST_DB
    GATE 2,  asm_exc_nmi, IST_NMI
    GATE 3,  asm_exc_int3, 0, 0xee
    GATE 4,  asm_exc_overflow, 0, 0xee
    GATE 5,  asm_exc_bounds
    GATE 6,  asm_exc_invalid_op
    GATE 7,  asm_exc_device_not_available
    GATE 8,  asm_exc_double_fault, IST_DF
    GATE 9,  asm_exc_coproc_segment_overrun
    GATE 10, asm_exc_invalid_tss
    GATE 11, asm_exc_segment_not_present
    GATE 12, asm_exc_stack_segment
    GATE 13, asm_exc_general_protection
    GATE 14, asm_exc_page_fault
    GATE 15, asm_exc_spurious_interrupt_bug
    GATE 16, asm_exc_coprocessor_error
    GATE 17, asm_exc_alignment_check
    GATE 18, asm_exc_machine_check, IST_MCE
    GATE 19, asm_exc_simd_coprocessor_error
    GATE 20, asm_exc_virtualization_exception
    GATE 21, asm_exc_control_protection
    GATE 0x80, entry_INT80_compat, 0, 0xee
    GATE 0xec, asm_sysvec_apic_timer_interrupt
    GATE 0xf4, asm_sysvec_deferred_error
    GATE 0xf6, asm_sysvec_irq_work
    GATE 0xf7, asm_sysvec_x86_platform_ipi
    GATE 0xf8, asm_sysvec_reboot
    GATE 0xf9, asm_sysvec_threshold
    GATE 0xfa, asm_sysvec_thermal
    GATE 0xfb, asm_sysvec_call_function_single
    GATE 0xfc, asm_sysvec_call_function
    GATE 0xfd, asm_sysvec_reschedule_ipi
    GATE 0xfe, asm_sysvec_error_interrupt
    GATE 0xff, asm_sysvec_spurious_apic_interrupt
idt_data_end:
