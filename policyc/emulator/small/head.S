# From the loader's page tables to a running kernel.
#
# The loader enters startup_64 in long mode with interrupts off and RSI pointing at the boot values (defs.inc). Its page
# tables map RAM one to one and the image at its link address plus the slide. Everything else is done here with the
# instructions a kernel uses: page tables, EFER, GDT, TSS, IDT, SYSCALL MSRs, CR0 and CR4.

    .section .head.text, "ax"

FUNC startup_64
    leaq init_stack_top(%rip), %rsp
    movq BOOT_LOAD_GPA(%rsi), %rax
    movq BOOT_RAM_BYTES(%rsi), %rdx
    movq %rax, image_gpa(%rip)
    movq %rdx, ram_bytes(%rip)
    movq BOOT_CPUS(%rsi), %rdx
    movq %rdx, boot_cpus(%rip)
    movq BOOT_KPTI(%rsi), %rdx
    movq %rdx, (fixed_percpu_data + PCPU_KPTI)(%rip)

    # phys_base as Linux keeps it: add it to a kernel address less START_KERNEL_MAP, and the result is physical.
    leaq _text(%rip), %rcx
    movq $START_KERNEL_MAP, %rdx
    subq %rdx, %rcx
    subq %rcx, %rax
    movq %rax, phys_base(%rip)

    call efer_init
    call map_kernel
    call map_direct
    call map_module
    call map_user
    call map_entry
    call load_root

    call idt_setup_traps
    leaq gdt_page(%rip), %rdi
    leaq cpu_tss_rw(%rip), %rsi
    leaq fixed_percpu_data(%rip), %rdx
    leaq ist_stacks(%rip), %r8
    leaq task_stack_top(%rip), %r9
    call cpu_init
    incq cpu_online(%rip)
    call smp_init

    movl $SYSTEM_RUNNING, system_state(%rip)
    jmp cpu_startup_entry
ENDF startup_64

# Every other processor, from the trampoline: RBX is its number. It brings its registers up from what INIT leaves.
FUNC secondary_startup_64
    imulq $(AREA_PAGES * PAGE_SIZE), %rbx, %r15
    leaq (secondary_areas - AREA_PAGES * PAGE_SIZE)(%rip), %rax
    addq %rax, %r15
    leaq ((AREA_PAGES - 1) * PAGE_SIZE)(%r15), %rsp
    call efer_init
    call load_root
    cld
    leaq gdt_page(%rip), %rsi
    movq %r15, %rdi
    movl $(gdt_page_end - gdt_page), %ecx
    rep movsb
    movq %r15, %rdi
    leaq AREA_TSS(%r15), %rsi
    leaq AREA_PERCPU(%r15), %rdx
    leaq PAGE_SIZE(%r15), %r8
    leaq (6 * PAGE_SIZE)(%r15), %r9
    movq %rbx, PCPU_CPU(%rdx)
    movq $0, PCPU_DYING(%rdx)
    movq (fixed_percpu_data + PCPU_KPTI)(%rip), %rax
    movq %rax, PCPU_KPTI(%rdx)
    call cpu_init

    leaq cpu_online(%rip), %rax
    movq $1, (%rax, %rbx, 8)
    xorl %edx, %edx                         # whoever started this processor waits for an interrupt
    movl $RESCHEDULE_VECTOR, %eax
    movl $MSR_X2APIC_ICR, %ecx
    wrmsr
    jmp cpu_startup_entry
ENDF secondary_startup_64

FUNC efer_init
    movl $MSR_EFER, %ecx                    # before page tables that use NX
    rdmsr
    orl $(EFER_SCE | EFER_NX), %eax
    wrmsr
    ret
ENDF efer_init

FUNC load_root
    leaq init_top_pgt(%rip), %rdi
    call __phys_addr
    movq %rax, %cr3
    ret
ENDF load_root

# RDI: GDT, RSI: TSS, RDX: per-CPU data, R8: IST stacks, R9: top of the stack for system calls.
FUNC cpu_init
    call load_segments
    call load_current_idt
    movl $GDT_TSS, %eax
    ltr %ax
    movq %rdx, %rax
    movl $MSR_GS_BASE, %ecx
    call wrmsr64
    call syscall_init

    movq %cr4, %rax
    orq $CR4_FLAGS, %rax
    movq %rax, %cr4
    movq %cr0, %rax
    btsq $CR0_WP_BIT, %rax
    movq %rax, %cr0
    ret
ENDF cpu_init

# The image in 4 KiB pages: text read and execute, rodata read only, the rest read and write.
FUNC map_kernel
    leaq level3_kernel_pgt(%rip), %rdi
    call __phys_addr
    orq $PTE_TABLE, %rax
    movq %rax, (init_top_pgt + 511 * 8)(%rip)
    leaq level2_kernel_pgt(%rip), %rdi
    call __phys_addr
    orq $PTE_TABLE, %rax
    movq %rax, (level3_kernel_pgt + 510 * 8)(%rip)
    leaq level1_kernel_pgt(%rip), %rdi
    call __phys_addr
    orq $PTE_TABLE, %rax
    leaq _text(%rip), %rcx
    shrq $21, %rcx
    andl $511, %ecx
    leaq level2_kernel_pgt(%rip), %rdx
    movq %rax, (%rdx, %rcx, 8)

    xorl %ecx, %ecx
    leaq _text(%rip), %rsi
    movq image_gpa(%rip), %rdx
    leaq level1_kernel_pgt(%rip), %rdi
1:  movq $(_PAGE_PRESENT), %rax
    leaq _etext(%rip), %r8
    cmpq %r8, %rsi
    jb 2f
    btsq $NX_BIT, %rax
    leaq __end_rodata(%rip), %r8
    cmpq %r8, %rsi
    jb 2f
    orq $_PAGE_RW, %rax
2:  orq %rdx, %rax
    movq %rax, (%rdi, %rcx, 8)
    addq $PAGE_SIZE, %rdx
    addq $PAGE_SIZE, %rsi
    incl %ecx
    cmpl $__image_pages, %ecx
    jb 1b
    ret
ENDF map_kernel

# All RAM at PAGE_OFFSET in 2 MiB pages, writable and never executable.
FUNC map_direct
    leaq level3_direct_pgt(%rip), %rdi
    call __phys_addr
    orq $PTE_TABLE, %rax
    movq %rax, (init_top_pgt + 273 * 8)(%rip)
    leaq level2_direct_pgt(%rip), %rdi
    call __phys_addr
    orq $PTE_TABLE, %rax
    movq %rax, level3_direct_pgt(%rip)
    leaq level2_direct_pgt(%rip), %rdi
    movq ram_bytes(%rip), %rdx
    movl $(_PAGE_PRESENT | _PAGE_RW | _PAGE_PSE), %eax
    btsq $NX_BIT, %rax
1:  movq %rax, (%rdi)
    addq $8, %rdi
    addq $0x200000, %rax
    subq $0x200000, %rdx
    ja 1b
    ret
ENDF map_direct

# The module's code and data, copied nowhere: its pages of the image are mapped into the module area.
FUNC map_module
    leaq level2_module_pgt(%rip), %rdi
    call __phys_addr
    orq $PTE_TABLE, %rax
    movq %rax, (level3_kernel_pgt + 511 * 8)(%rip)
    leaq level1_module_pgt(%rip), %rdi
    call __phys_addr
    orq $PTE_TABLE, %rax
    movq %rax, (level2_module_pgt + 2 * 8)(%rip)

    leaq __module_image(%rip), %rdi
    call __phys_addr
    orq $_PAGE_PRESENT, %rax
    leaq level1_module_pgt(%rip), %rdi
    movl $__module_text_pages, %ecx
1:  stosq
    addq $PAGE_SIZE, %rax
    loop 1b
    orq $_PAGE_RW, %rax
    btsq $NX_BIT, %rax
    movl $__module_data_pages, %ecx
2:  stosq
    addq $PAGE_SIZE, %rax
    loop 2b
    ret
ENDF map_module

# The one user task: a page of code at 0x400000 and a page of stack and data after it.
FUNC map_user
    leaq level3_user_pgt(%rip), %rdi
    call __phys_addr
    orq $PTE_TABLE, %rax
    movq %rax, init_top_pgt(%rip)
    leaq level2_user_pgt(%rip), %rdi
    call __phys_addr
    orq $PTE_TABLE, %rax
    movq %rax, level3_user_pgt(%rip)
    leaq level1_user_pgt(%rip), %rdi
    call __phys_addr
    orq $PTE_TABLE, %rax
    movq %rax, (level2_user_pgt + 2 * 8)(%rip)
    leaq __user_image(%rip), %rdi
    call __phys_addr
    orq $(_PAGE_PRESENT | _PAGE_USER), %rax
    movq %rax, level1_user_pgt(%rip)
    leaq user_data_page(%rip), %rdi
    call __phys_addr
    orq $(_PAGE_PRESENT | _PAGE_RW | _PAGE_USER), %rax
    btsq $NX_BIT, %rax
    movq %rax, (level1_user_pgt + 8)(%rip)
    ret
ENDF map_user

# With page-table isolation, user mode's root maps the task, and of the kernel what entering it takes: the entry code,
# the tables that the processor reads, and the stacks that it pushes to.
.macro CLONE first pages
    leaq \first(%rip), %rsi
    movl $\pages, %ecx
    call clone_pages
.endm

FUNC map_entry
    cmpq $0, (fixed_percpu_data + PCPU_KPTI)(%rip)
    je 1f
    movq init_top_pgt(%rip), %rax
    movq %rax, (init_top_pgt + PAGE_SIZE)(%rip)
    leaq level3_entry_pgt(%rip), %rdi
    call __phys_addr
    orq $PTE_TABLE, %rax
    movq %rax, (init_top_pgt + PAGE_SIZE + 511 * 8)(%rip)
    leaq level2_entry_pgt(%rip), %rdi
    call __phys_addr
    orq $PTE_TABLE, %rax
    movq %rax, (level3_entry_pgt + 510 * 8)(%rip)
    leaq level1_entry_pgt(%rip), %rdi
    call __phys_addr
    orq $PTE_TABLE, %rax
    leaq _text(%rip), %rcx
    shrq $21, %rcx
    andl $511, %ecx
    leaq level2_entry_pgt(%rip), %rdx
    movq %rax, (%rdx, %rcx, 8)
    CLONE __entry_text_start, __entry_text_pages
    CLONE gdt_page, 1
    CLONE idt_table, 1
    CLONE cpu_tss_rw, 1
    CLONE ist_stacks, 4
    CLONE task_stack, 1
    leaq secondary_areas(%rip), %rdx
    movl $(NR_CPUS - 1), %r8d
2:  movq %rdx, %rsi
    movl $AREA_ENTRY_PAGES, %ecx
    call clone_pages
    addq $(AREA_PAGES * PAGE_SIZE), %rdx
    decl %r8d
    jnz 2b
1:  ret
ENDF map_entry

# RSI: an address in the image, ECX: pages. Map them in user mode's tables as in the kernel's.
FUNC clone_pages
    leaq _text(%rip), %rax
    subq %rax, %rsi
    shrq $12, %rsi
    leaq level1_kernel_pgt(%rip), %rax
    leaq (%rax, %rsi, 8), %rax
    leaq level1_entry_pgt(%rip), %rdi
    leaq (%rdi, %rsi, 8), %rdi
    movq %rax, %rsi
    rep movsq
    ret
ENDF clone_pages

# RDI: GDT, RSI: TSS, RDX: per-CPU data, R8: IST stacks, R9: top of the stack for system calls.
FUNC load_segments
    movw $(cpu_tss_rw_end - cpu_tss_rw - 1), GDT_TSS(%rdi)
    movw %si, (GDT_TSS + 2)(%rdi)           # a 16-byte TSS descriptor: its base is spread over four fields
    movq %rsi, %rcx
    shrq $16, %rcx
    movb %cl, (GDT_TSS + 4)(%rdi)
    movb $0x89, (GDT_TSS + 5)(%rdi)
    movb $0, (GDT_TSS + 6)(%rdi)
    movb %ch, (GDT_TSS + 7)(%rdi)
    shrq $16, %rcx
    movl %ecx, (GDT_TSS + 8)(%rdi)
    movq %r9, 4(%rsi)
    movq %r9, PCPU_STACK(%rdx)
    movq %rsi, PCPU_TSS(%rdx)
    leaq 36(%rsi), %r10
    movl $4, %ecx
1:  addq $PAGE_SIZE, %r8
    movq %r8, (%r10)
    addq $8, %r10
    loop 1b

    subq $16, %rsp
    movw $(gdt_page_end - gdt_page - 1), (%rsp)
    movq %rdi, 2(%rsp)
    lgdt (%rsp)
    addq $16, %rsp
    movl $__KERNEL_DS, %eax
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %fs
    movl %eax, %gs
    popq %rax                               # the return address becomes a far one
    pushq $__KERNEL_CS
    pushq %rax
    lretq
ENDF load_segments

# Fill the IDT from idt_data.
FUNC idt_setup_traps
    leaq idt_data(%rip), %rsi
    leaq idt_table(%rip), %rdi
1:  movzbl (%rsi), %eax                     # { u8 vector, u8 ist, u8 type, u8 0, u32 0, u64 handler }
    movq 8(%rsi), %rcx
    shll $4, %eax
    movw %cx, (%rdi, %rax)
    movw $__KERNEL_CS, 2(%rdi, %rax)
    movb 1(%rsi), %dl
    movb %dl, 4(%rdi, %rax)
    movb 2(%rsi), %dl
    movb %dl, 5(%rdi, %rax)
    shrq $16, %rcx
    movw %cx, 6(%rdi, %rax)
    shrq $16, %rcx
    movl %ecx, 8(%rdi, %rax)
    addq $16, %rsi
    leaq idt_data_end(%rip), %rcx
    cmpq %rcx, %rsi
    jb 1b
    movw $(256 * 16 - 1), idt_descr(%rip)
    movq %rdi, (idt_descr + 2)(%rip)
    ret
ENDF idt_setup_traps

FUNC syscall_init
    movl $MSR_STAR, %ecx
    movl $((__USER32_CS << 16) | __KERNEL_CS), %edx
    xorl %eax, %eax
    wrmsr
    leaq entry_SYSCALL_64(%rip), %rax
    movl $MSR_LSTAR, %ecx
    call wrmsr64
    movl $0x257fd5, %eax                    # the flags that SYSCALL clears, as in Linux: IF, DF, TF, AC and the rest
    movl $MSR_SYSCALL_MASK, %ecx
    jmp wrmsr64
ENDF syscall_init

# Write RAX to MSR ECX.
FUNC wrmsr64
    movq %rax, %rdx
    shrq $32, %rdx
    wrmsr
    ret
ENDF wrmsr64

    .section .data, "aw"
    .balign 8
idt_descr:
    .word 0
    .quad 0
