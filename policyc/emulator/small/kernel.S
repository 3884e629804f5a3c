# The kernel proper: idle loop, one user task, text patching, fault handling, and the data that policies guard.

    .section .text, "ax"

FUNC cpu_startup_entry
    call do_idle
    ud2
ENDF cpu_startup_entry

# Serve the mailbox, give the task a turn on the first processor, wait for an interrupt; until it goes offline.
FUNC do_idle
1:  sti
    call serve_mailbox
    cmpq $0, %gs:PCPU_DYING
    jne play_dead
    cmpq $0, %gs:PCPU_CPU
    jne 2f
    call schedule
2:  cli
    movq %gs:PCPU_CPU, %rcx
    leaq routine_request(%rip), %rdx
    cmpq $0, (%rdx, %rcx, 8)
    jne 1b
    call default_idle
    jmp 1b
ENDF do_idle

# With interrupts off: one that is pending ends the HLT.
FUNC default_idle
    sti
    hlt
    cli
    ret
ENDF default_idle

# Offline: nothing but INIT ends this HLT.
FUNC play_dead
    cli
    movq %gs:PCPU_CPU, %rcx
    leaq cpu_online(%rip), %rdx
    movq $0, (%rdx, %rcx, 8)
1:  hlt
    jmp 1b
ENDF play_dead

# Start the processors that the loader counted.
FUNC smp_init
    pushq %rbx
    movl $1, %ebx
1:  cmpq boot_cpus(%rip), %rbx
    jae 2f
    movq %rbx, %rdi
    call cpu_up
    incq %rbx
    jmp 1b
2:  popq %rbx
    ret
ENDF smp_init

# RDI: number of a processor that isn't online. Start it and wait until it is: 0, -EINVAL, -EBUSY or -EIO.
FUNC cpu_up
    movq $-EINVAL, %rax
    cmpq $(NR_CPUS - 1), %rdi
    ja 4f
    movq $-EBUSY, %rax
    leaq cpu_online(%rip), %r8
    leaq (%r8, %rdi, 8), %r8
    cmpq $0, (%r8)
    jne 4f
    movq %rdi, %r9
    movq $(PAGE_OFFSET + TRAMPOLINE), %rdi
    movq %rdi, %r10
    leaq trampoline_start(%rip), %rsi
    movl $(trampoline_end - trampoline_start), %ecx
    cld
    rep movsb
    movq %r9, (trampoline_cpu - trampoline_start)(%r10)

    movl $MSR_X2APIC_ICR, %ecx
    movl %r9d, %edx
    movl $ICR_INIT, %eax
    wrmsr
    movl $(ICR_STARTUP), %eax
    wrmsr
    movq jiffies(%rip), %r9
    addq $CPU_UP_TICKS, %r9
1:  cli
    cmpq $0, (%r8)
    jne 2f
    cmpq %r9, jiffies(%rip)
    jae 3f
    sti
    hlt
    jmp 1b
2:  sti
    xorl %eax, %eax
    ret
3:  sti
    movq $-EIO, %rax
4:  ret
ENDF cpu_up

# The processor that is asked for it goes offline when it has answered.
FUNC cpu_down
    movq $-EINVAL, %rax
    cmpq $0, %gs:PCPU_CPU
    je 1f
    movq $1, %gs:PCPU_DYING
    xorl %eax, %eax
1:  ret
ENDF cpu_down

# What Linux does when a processor comes up or resumes: the one place that loads IDTR.
FUNC load_current_idt
    lidt idt_descr(%rip)
    ret
ENDF load_current_idt

# Each processor has a request of its own, a pointer to a routine: call it, note what came back, and say that it is done.
FUNC serve_mailbox
    movq %gs:PCPU_CPU, %rcx
    leaq routine_request(%rip), %rdx
    movq (%rdx, %rcx, 8), %rax
    testq %rax, %rax
    jz 1f
    leaq routine_stack(%rip), %rdx
    cmpq $0, (%rdx, %rcx, 8)                # it is under way: this is an interrupt while it is in user mode
    jne 1f
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushq %gs:PCPU_STACK
    leaq routine_fault(%rip), %rdx
    movq $-1, (%rdx, %rcx, 8)
    leaq routine_argument(%rip), %rdx
    movq (%rdx, %rcx, 8), %rdi
    leaq routine_stack(%rip), %rdx
    movq %rsp, (%rdx, %rcx, 8)
    call *%rax
.Lroutine_returned:
    popq %r8
    call set_entry_stack
    movq %gs:PCPU_CPU, %rcx
    leaq routine_result(%rip), %rdx
    movq %rax, (%rdx, %rcx, 8)
    leaq routine_stack(%rip), %rdx
    movq $0, (%rdx, %rcx, 8)
    leaq routine_request(%rip), %rdx
    movq $0, (%rdx, %rcx, 8)
    leaq routine_done(%rip), %rdx
    incq (%rdx, %rcx, 8)
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
1:  ret
ENDF serve_mailbox

# R8: where the kernel's stack begins when user mode is left.
FUNC set_entry_stack
    movq %gs:PCPU_TSS, %r9
    movq %r8, 4(%r9)
    movq %r8, %gs:PCPU_STACK
    ret
ENDF set_entry_stack

# Run the user task until it yields. The eight bytes after the ftrace NOP are whole instructions: a hook fits there.
FUNC schedule
    FENTRY
    pushq %rbp
    movq %rsp, %rbp
    pushq %r15
    pushq %r14
.Lschedule_hookable_end:
    pushq %r13
    pushq %r12
    pushq %rbx
    call jump_label_site
    cli
    movq %rsp, idle_stack(%rip)
    jmp enter_task
.Lschedule_back:
    popq %rbx
    popq %r12
    popq %r13
    popq %r14
    popq %r15
    popq %rbp
    ret
ENDF schedule

# Both system calls of the task, and what an empty table entry does.
FUNC sys_getpid
    FENTRY
    movl $1, %eax
    movq %rax, last_pid(%rip)
    ret
ENDF sys_getpid

FUNC sys_sched_yield
    FENTRY
    incq task_turns(%rip)
    movq 8(%rsp), %rax                      # what entry_SYSCALL_64 pushed: the user's RSP, flags and RIP
    movq %rax, task_rsp(%rip)
    movq 16(%rsp), %rax
    movq %rax, task_flags(%rip)
    movq 24(%rsp), %rax
    movq %rax, task_rip(%rip)
    movq idle_stack(%rip), %rsp
    jmp .Lschedule_back
ENDF sys_sched_yield

FUNC sys_fork
    FENTRY
    movq $-ENOSYS, %rax
    ret
ENDF sys_fork

FUNC sys_ni_syscall
    FENTRY
    movq $-ENOSYS, %rax
    ret
ENDF sys_ni_syscall

# RDI: an address in the image. The physical address it stands for, and its writable alias in the direct map.
FUNC __phys_addr
    movq $START_KERNEL_MAP, %rax
    subq %rax, %rdi
    movq phys_base(%rip), %rax
    addq %rdi, %rax
    ret
ENDF __phys_addr

FUNC lm_alias
    call __phys_addr
    movq $PAGE_OFFSET, %rdx
    addq %rdx, %rax
    ret
ENDF lm_alias

# RDI: an address in the image. Change the rights that the guest's own page tables give its page.
.macro SET_MEMORY name insn bit
FUNC \name
    leaq _text(%rip), %rax
    movq %rdi, %rdx
    subq %rax, %rdx
    shrq $12, %rdx
    leaq level1_kernel_pgt(%rip), %rax
    leaq (%rax, %rdx, 8), %rax
    \insn $\bit, (%rax)
    invlpg (%rdi)
    ret
ENDF \name
.endm

    SET_MEMORY set_memory_rw, btsq, 1
    SET_MEMORY set_memory_ro, btrq, 1
    SET_MEMORY set_memory_x, btrq, NX_BIT
    SET_MEMORY set_memory_nx, btsq, NX_BIT

    .section .noinstr.text, "ax"

FUNC memcpy
    movq %rdi, %rax
    movq %rdx, %rcx
.Lmemcpy_movs:
    rep movsb
    ret
ENDF memcpy

FUNC memset
    movq %rdi, %r9
    movl %esi, %eax
    movq %rdx, %rcx
    rep stosb
    movq %r9, %rax
    ret
ENDF memset

# Never run: bytes of the copy routines' own page, for an overwrite that they do themselves.
FUNC noinstr_spare
    .rept 64
    nop
    .endr
ENDF noinstr_spare

    .section .text, "ax"

# As a compiler leaves it in Linux: a tail jump, so that RIP is in memcpy and the return address in __text_poke.
FUNC text_poke_memcpy
    FENTRY
    jmp memcpy
ENDF text_poke_memcpy

# RDI: where in the image, RSI: new bytes, RDX: how many, within one page. The page is mapped writable at
# FIX_TEXT_POKE for as long as the copy takes.
FUNC __text_poke
    FENTRY
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    movq %rdi, %rbx
    movq %rsi, %r12
    movq %rdx, %r13
    call __phys_addr
    movq %rax, %rdx
    andq $~(PAGE_SIZE - 1), %rdx
    orq $(_PAGE_PRESENT | _PAGE_RW), %rdx
    btsq $NX_BIT, %rdx
    movq %rdx, (level1_module_pgt + 511 * 8)(%rip)
    movq $FIX_TEXT_POKE, %r14
    invlpg (%r14)
    movq %rbx, %rdi
    andl $(PAGE_SIZE - 1), %edi
    addq %r14, %rdi
    movq %r12, %rsi
    movq %r13, %rdx
    call text_poke_memcpy
.L__text_poke_done:
    movq $0, (level1_module_pgt + 511 * 8)(%rip)
    invlpg (%r14)
    xorl %eax, %eax
    cpuid                                   # what was fetched before may not be run any more
    xorl %eax, %eax
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    ret
    EXTABLE .Lmemcpy_movs, .Lmemcpy_failed
ENDF __text_poke

# A copy that faulted returns with what was copied so far.
.Lmemcpy_failed:
    ret

# Turn the static key: the site's NOP becomes a jump to its slow path, or the jump a NOP again. As Linux's
# text_poke_bp does it, since another processor may come by meanwhile: an INT3 first, then all but the first byte, then
# the first. Whoever runs into the INT3 goes on behind the site.
FUNC arch_jump_label_transform
    FENTRY
    pushq %rbx
    pushq %r12
    leaq .Lstatic_key_site(%rip), %rbx
    leaq jump_label_jmp(%rip), %r12
    cmpb $0xe9, (%rbx)
    jne 1f
    leaq jump_label_nop(%rip), %r12
1:  movq %rbx, poke_site(%rip)
    movq %rbx, %rdi
    leaq poke_int3(%rip), %rsi
    movl $1, %edx
    call __text_poke
    leaq 1(%rbx), %rdi
    leaq 1(%r12), %rsi
    movl $4, %edx
    call __text_poke
    movq %rbx, %rdi
    movq %r12, %rsi
    movl $1, %edx
    call __text_poke
    movq $0, poke_site(%rip)
    popq %r12
    popq %rbx
    ret
ENDF arch_jump_label_transform

    # What a kernel does by right, each called through the mailbox.
FUNC act_patch
    jmp arch_jump_label_transform
ENDF act_patch

FUNC act_neighbour
    incq neighbour_after(%rip)
    xorl %eax, %eax
    ret
ENDF act_neighbour

# The hypercall that KVMI reports: 34 (HVMOP), sub-function 24 (guest request VM event), third argument 0.
FUNC act_hypercall
    movl $34, %eax
    movl $24, %edi
    xorl %esi, %esi
    vmcall
    ret
ENDF act_hypercall

FUNC act_hypercall_other
    movl $9, %eax
    xorl %edi, %edi
    xorl %esi, %esi
    vmcall
    ret
ENDF act_hypercall_other

FUNC act_int3
    int3
    xorl %eax, %eax
    ret
ENDF act_int3

FUNC act_cpuid
    pushq %rbx
    xorl %eax, %eax
    xorl %ecx, %ecx
    cpuid
    popq %rbx
    ret
ENDF act_cpuid

# Load CR3 and IDTR with what they hold, read GDTR, set XCR0 to x87 and SSE: what context switches and idle states do.
FUNC act_reload_cr3
    movq %cr3, %rax
    movq %rax, %cr3
    xorl %eax, %eax
    ret
ENDF act_reload_cr3

FUNC act_reload_idt
    call load_current_idt
    xorl %eax, %eax
    ret
ENDF act_reload_idt

FUNC act_read_gdtr
    sgdt saved_gdt_descr(%rip)
    xorl %eax, %eax
    ret
ENDF act_read_gdtr

FUNC act_xsetbv
    movl $3, %eax
    xorl %ecx, %ecx
    xorl %edx, %edx
    xsetbv
    xorl %eax, %eax
    ret
ENDF act_xsetbv

# Have every other processor run a function.
FUNC act_ipi
    xorl %edx, %edx
    movl $(ICR_ALL_BUT_SELF | CALL_FUNCTION_VECTOR), %eax
    movl $MSR_X2APIC_ICR, %ecx
    wrmsr
    xorl %eax, %eax
    ret
ENDF act_ipi

# The user task computes for a while before it asks for anything again.
FUNC act_busy
    addq $(1 << 20), (user_data_page + 8)(%rip)
    xorl %eax, %eax
    ret
ENDF act_busy

    .section .text.unlikely, "ax"

# A site that static keys patch: five bytes of NOP, or a jump over the slow path's counter.
FUNC jump_label_site
    FENTRY
.Lstatic_key_site:
    .byte 0x0f, 0x1f, 0x44, 0x00, 0x00
    ret
    incq jump_label_hits(%rip)              # where the jump leads
    ret
ENDF jump_label_site

# RDI: struct pt_regs. Count; then a fixup, the end of the routine that faulted, or a halt for good.
FUNC do_exception
    movq PT_VECTOR(%rdi), %rax
    leaq fault_count(%rip), %rdx
    incq (%rdx, %rax, 8)
    movq %rax, last_fault_vector(%rip)
    movq PT_RIP(%rdi), %rcx
    movq %rcx, last_fault_rip(%rip)
    movq PT_ERROR(%rdi), %rdx
    movq %rdx, last_fault_error(%rip)
    movq %cr2, %rdx
    movq %rdx, last_fault_cr2(%rip)
    movq %gs:PCPU_CPU, %r9
    leaq routine_stack(%rip), %r10

    cmpq $3, %rax
    jne 1f
    testb $3, PT_CS(%rdi)
    jnz 1f
    leaq -1(%rcx), %rdx
    cmpq poke_site(%rip), %rdx
    jne 5f
    addq $4, PT_RIP(%rdi)
    ret
5:  cmpb $0xcc, (%rdx)                      # gone meanwhile, as kprobe_int3_handler has it: go back
    je 1f
    cmpw $0x03cd, -1(%rdx)                  # INT 3 as two bytes is nobody's patch
    je 1f
    decq PT_RIP(%rdi)
    ret
1:  leaq __start___ex_table(%rip), %rsi
    leaq __stop___ex_table(%rip), %rdx
    call search_extable
    jz 3f
    movq module_extable(%rip), %rsi
    movq (module_extable + 8)(%rip), %rdx
    call search_extable
    jz 3f

    cmpq $1, %rax                           # #DB, #BP and #OF are traps: RIP is past the instruction already
    je 2f
    cmpq $3, %rax
    je 2f
    cmpq $4, %rax
    je 2f
    cmpq $0, (%r10, %r9, 8)
    je panic
    leaq routine_fault(%rip), %rdx          # no fixup: the routine ends here, as a task does that made an oops
    movq %rax, (%rdx, %r9, 8)
    movq $__KERNEL_CS, PT_CS(%rdi)          # also one that was in user mode
    movq $__KERNEL_DS, PT_SS(%rdi)
    movq (%r10, %r9, 8), %rdx
    movq %rdx, PT_RSP(%rdi)
    leaq .Lroutine_returned(%rip), %rdx
    movq %rdx, PT_RIP(%rdi)
    movq $-EFAULT, PT_RAX(%rdi)
2:  ret
3:  cmpq $0, (%r10, %r9, 8)
    je 4f
    leaq routine_fault(%rip), %rdx
    movq %rax, (%rdx, %r9, 8)
4:  movq %rcx, PT_RIP(%rdi)
    ret
ENDF do_exception

# RCX: the RIP that faulted, RSI and RDX: a table. ZF set and the fixup in RCX if it is there.
FUNC search_extable
1:  cmpq %rdx, %rsi
    jae 2f
    movslq (%rsi), %r8
    addq %rsi, %r8
    cmpq %rcx, %r8
    je 3f
    addq $8, %rsi
    jmp 1b
2:  testq %rsp, %rsp
    ret
3:  movslq 4(%rsi), %rcx
    leaq 4(%rsi, %rcx), %rcx
    cmpl %eax, %eax
    ret
ENDF search_extable

FUNC panic
    movq %rax, panic_vector(%rip)
    incq panics(%rip)
1:  cli
    hlt
    jmp 1b
ENDF panic

# RDI: vector.
FUNC do_interrupt
    leaq irq_count(%rip), %rax
    incq (%rax, %rdi, 8)
    cmpl $CALL_FUNCTION_VECTOR, %edi
    jne 1f
    lock incq remote_calls(%rip)
1:  cmpl $0xec, %edi
    jne 2f
    cmpq $0, %gs:PCPU_CPU                   # the first processor keeps the time
    jne 2f
    incq jiffies(%rip)
2:  ret
ENDF do_interrupt

# Code that is never run: sixty-four bytes for an overwrite that should not hurt a guest without a guard.
FUNC kernel_power_off
    FENTRY
    cli
    .rept 57
    nop
    .endr
    hlt
ENDF kernel_power_off

    .section .rodata, "a"

    .balign 64
OBJECT sys_call_table
    .rept __NR_sched_yield
    .quad sys_ni_syscall
    .endr
    .quad sys_sched_yield
    .rept __NR_getpid - __NR_sched_yield - 1
    .quad sys_ni_syscall
    .endr
    .quad sys_getpid
    .rept __NR_fork - __NR_getpid - 1
    .quad sys_ni_syscall
    .endr
    .quad sys_fork
    .rept NR_syscalls - __NR_fork - 1
    .quad sys_ni_syscall
    .endr
ENDO sys_call_table

    .balign 64
OBJECT linux_banner
    .asciz "Linux version 6.1.0-policyc (guest@policyc) (GNU assembler, GNU ld) #1 SMP PREEMPT_DYNAMIC small guest\n"
ENDO linux_banner

OBJECT linux_proc_banner
    .asciz "%s version %s (guest@policyc) (GNU assembler, GNU ld) %s\n"
ENDO linux_proc_banner

    # Copied to low memory, where a processor begins that is started: still on the loader's page tables.
    .balign 8
trampoline_start:
    movq trampoline_cpu(%rip), %rbx
    jmp *trampoline_entry(%rip)
    .balign 8
trampoline_cpu:
    .quad 0
trampoline_entry:
    .quad secondary_startup_64
trampoline_end:

poke_int3:
    int3
jump_label_nop:
    .byte 0x0f, 0x1f, 0x44, 0x00, 0x00
jump_label_jmp:
    .byte 0xe9
    .long 1                                 # over the RET that follows the site

    .section .data..page_aligned, "aw"

    # The kernel's root, and after it the user's where there are two. What follows, the page with the clock among it,
    # lies in a frame whose number has bit 1 set: one of those that some kernels don't guard.
    .balign 4 * PAGE_SIZE
OBJECT init_top_pgt
    .fill 2 * PAGE_SIZE, 1, 0
ENDO init_top_pgt

OBJECT gdt_page
    .quad 0
    .quad 0x00cf9b000000ffff                # kernel, 32 bit
    .quad 0x00af9b000000ffff                # __KERNEL_CS
    .quad 0x00cf93000000ffff                # __KERNEL_DS
    .quad 0x00cffb000000ffff                # __USER32_CS
    .quad 0x00cff3000000ffff                # __USER_DS
    .quad 0x00affb000000ffff                # __USER_CS
    .quad 0
    .quad 0, 0                              # GDT_TSS
gdt_page_end:
ENDO gdt_page

    .section .data, "aw"

    .balign 8
OBJECT phys_base
    .quad 0
OBJECT image_gpa
    .quad 0
OBJECT ram_bytes
    .quad 0
OBJECT boot_cpus
    .quad 1
OBJECT cpu_online
    .fill NR_CPUS, 8, 0
OBJECT jiffies
    .quad 0
OBJECT system_state
    .long 0
    .balign 8
OBJECT task_rip
    .quad user_start
OBJECT task_rsp
    .quad user_stack_top
OBJECT task_flags
    .quad EFLAGS_IF | 2
OBJECT module_extable
    .quad __start_module_ex_table
    .quad __stop_module_ex_table

    # What the host asks for, and what became of it: one for each processor.
OBJECT routine_request
    .fill NR_CPUS, 8, 0
OBJECT routine_argument
    .fill NR_CPUS, 8, 0
OBJECT routine_done
    .fill NR_CPUS, 8, 0
OBJECT routine_result
    .fill NR_CPUS, 8, 0
OBJECT routine_fault
    .fill NR_CPUS, 8, -1
OBJECT routine_stack
    .fill NR_CPUS, 8, 0
OBJECT panics
    .quad 0
OBJECT panic_vector
    .quad 0

    # An object that is worth guarding, between neighbours that are not: none of them fills a page, and all share one.
    .section .data..guarded, "aw"

    .balign PAGE_SIZE
OBJECT neighbour_before
    .fill 0x358, 1, 0xaa
ENDO neighbour_before
OBJECT init_cred
OBJECT guarded_object
    .long 4                                 # usage
    .fill 11, 4, 0                          # ids: root
    .fill 5, 8, 0x000001ffffffffff          # capabilities
    .fill 88, 1, 0xcc
ENDO guarded_object
ENDO init_cred
OBJECT neighbour_after
    .fill 0x400, 1, 0xbb
ENDO neighbour_after
OBJECT data_code
    incq data_code_runs(%rip)               # data by its section, code to whoever jumps here
    ret
ENDO data_code

    .section .bss..page_aligned, "aw", @nobits

.macro PAGE name pages=1
    .balign PAGE_SIZE
OBJECT \name
    .skip PAGE_SIZE * \pages
ENDO \name
.endm

    PAGE idt_table
    PAGE level3_kernel_pgt
    PAGE level2_kernel_pgt
    PAGE level1_kernel_pgt
    PAGE level2_module_pgt
    PAGE level1_module_pgt
    PAGE level3_direct_pgt
    PAGE level2_direct_pgt
    PAGE level3_user_pgt
    PAGE level2_user_pgt
    PAGE level1_user_pgt
    PAGE user_data_page
    PAGE level3_entry_pgt
    PAGE level2_entry_pgt
    PAGE level1_entry_pgt
    .balign PAGE_SIZE
OBJECT cpu_tss_rw
    .skip 104
cpu_tss_rw_end:
ENDO cpu_tss_rw
    .balign 16
OBJECT fixed_percpu_data
    .skip 64
ENDO fixed_percpu_data
    PAGE ist_stacks, 4
    PAGE task_stack
task_stack_top:
    PAGE init_stack
init_stack_top:
    PAGE secondary_areas, SECONDARY_PAGES

    .section .bss, "aw", @nobits

OBJECT fault_count
    .skip 32 * 8
ENDO fault_count
OBJECT irq_count
    .skip 256 * 8
ENDO irq_count

.macro COUNTER name
OBJECT \name
    .skip 8
ENDO \name
.endm

    COUNTER idle_stack
    COUNTER last_fault_vector
    COUNTER last_fault_error
    COUNTER last_fault_rip
    COUNTER last_fault_cr2
    COUNTER last_pid
    COUNTER task_turns
    COUNTER remote_calls
    COUNTER jump_label_hits
    COUNTER poke_site
    COUNTER data_code_runs
    COUNTER saved_gdt_descr
    .skip 8
OBJECT dma_buffer
    .skip 32
ENDO dma_buffer
