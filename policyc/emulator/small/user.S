# The user task: computes for as long as it was told to, asks for its process id, notes it, yields.

    .section .user.text, "ax"

    .set user_data, 0x401000
    .globl user_stack_top
    .set user_stack_top, user_data + PAGE_SIZE - 256

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
