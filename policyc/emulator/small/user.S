# The user task: asks for its process id, notes it, yields.

    .section .user.text, "ax"

    .set user_data, 0x401000
    .globl user_stack_top
    .set user_stack_top, user_data + PAGE_SIZE - 256

FUNC user_start
1:  movl $__NR_getpid, %eax
    syscall
    movq %rax, user_data
    movl $__NR_sched_yield, %eax
    syscall
    jmp 1b
ENDF user_start
