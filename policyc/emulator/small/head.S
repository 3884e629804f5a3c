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

    # phys_base as Linux keeps it: add it to a kernel address less START_KERNEL_MAP, and the result is physical.
    leaq _text(%rip), %rcx
    movq $START_KERNEL_MAP, %rdx
    subq %rdx, %rcx
    subq %rcx, %rax
    movq %rax, phys_base(%rip)

    movl $MSR_EFER, %ecx            # before page tables that use NX
    rdmsr
    orl $(EFER_SCE | EFER_NX), %eax
    wrmsr

    call map_kernel
    call map_direct
    call map_module
    call map_user
    leaq init_top_pgt(%rip), %rdi
    call __phys_addr
    movq %rax, %cr3

    call load_segments
    call idt_setup_traps
    call syscall_init

    movq %cr4, %rax
    orq $CR4_FLAGS, %rax
    movq %rax, %cr4
    movq %cr0, %rax
    btsq $CR0_WP_BIT, %rax
    movq %rax, %cr0

    movl $SYSTEM_RUNNING, system_state(%rip)
    jmp cpu_startup_entry
ENDF startup_64

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

FUNC load_segments
    leaq gdt_page(%rip), %rax
    movw $(gdt_page_end - gdt_page - 1), early_gdt_descr(%rip)
    movq %rax, (early_gdt_descr + 2)(%rip)

    leaq cpu_tss_rw(%rip), %rax             # a 16-byte TSS descriptor: its base is spread over four fields
    movw $(cpu_tss_rw_end - cpu_tss_rw - 1), (gdt_page + GDT_TSS)(%rip)
    movw %ax, (gdt_page + GDT_TSS + 2)(%rip)
    movq %rax, %rcx
    shrq $16, %rcx
    movb %cl, (gdt_page + GDT_TSS + 4)(%rip)
    movb $0x89, (gdt_page + GDT_TSS + 5)(%rip)
    movb $0, (gdt_page + GDT_TSS + 6)(%rip)
    movb %ch, (gdt_page + GDT_TSS + 7)(%rip)
    shrq $16, %rcx
    movl %ecx, (gdt_page + GDT_TSS + 8)(%rip)

    leaq task_stack_top(%rip), %rax
    movq %rax, (cpu_tss_rw + 4)(%rip)
    movq %rax, (fixed_percpu_data + PCPU_STACK)(%rip)
    leaq ist_stacks(%rip), %rax
    leaq (cpu_tss_rw + 36)(%rip), %rdi
    movl $4, %ecx
1:  addq $PAGE_SIZE, %rax
    stosq
    loop 1b

    lgdt early_gdt_descr(%rip)
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

# Fill the IDT from idt_data and load it, with the task register and the per-CPU base.
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
    lidt idt_descr(%rip)
    movl $GDT_TSS, %eax
    ltr %ax
    leaq fixed_percpu_data(%rip), %rax
    movl $MSR_GS_BASE, %ecx
    jmp wrmsr64
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
early_gdt_descr:
    .word 0
    .quad 0
    .balign 8
idt_descr:
    .word 0
    .quad 0
