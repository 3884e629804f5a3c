# The user task: computes for as long as it was told to, asks for its process id, notes it, yields.

    .section .user.text, "ax"

    .set user_data, 0x401000
    .globl user_stack_top
    .set user_stack_top, user_data + PAGE_SIZE - 256
    .set user_call_top, user_data + PAGE_SIZE / 2

FUNC user_start
1:  cmpq $0, user_data + 8
    je 2f
    decq user_data + 8
    jmp 1b
2:  movl $__NR_getpid, %eax
    syscall
    movq %rax, user_data
    movl $__NR_sched_yield, %eax
    syscall
    jmp 1b
ENDF user_start

    # What call_user runs: each ends at INT 0x80, with its result in RAX.

# RDI: where, RSI: what.
FUNC user_store
    movq %rsi, (%rdi)
    xorl %eax, %eax
    int $0x80
ENDF user_store

# RDI: the end of a stack.
FUNC user_push
    movq %rdi, %rsp
    pushq %rsi
    xorl %eax, %eax
    int $0x80
ENDF user_push

FUNC user_call
    movq %rdi, %rsp
    call 1f
1:  xorl %eax, %eax
    int $0x80
ENDF user_call

FUNC user_enter
    movq %rdi, %rsp
    movq %rsi, %rbp
    enter $16, $0
    xorl %eax, %eax
    int $0x80
ENDF user_enter

    .code32

FUNC user32_store
    movl %esi, (%edi)
    xorl %eax, %eax
    int $0x80
ENDF user32_store

FUNC user32_push
    movl %edi, %esp
    pushl %esi
    xorl %eax, %eax
    int $0x80
ENDF user32_push

# The hypercall that KVMI reports, as 32-bit code makes it.
FUNC user32_hypercall
    movl $34, %eax
    movl $24, %ebx
    xorl %ecx, %ecx
    vmcall
    int $0x80
ENDF user32_hypercall

    .code64
