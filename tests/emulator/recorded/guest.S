# The guest that was recorded beside, written again from what its events show: it takes numbers out of a mailbox and
# does what they stand for. Loaded at 0x100000, memory mapped one to one. Built by build.sh, checked in as guest.hex.
#
# Mailbox, 0x202000 + 0x40 for each vCPU: u64 command (0 when done), argument, result, number of commands done.
# 0x201000 + 8 for each vCPU counts idle turns; 0x203000 holds the last exception (error code, vector with bit 31),
# 0x203008 their number, 0x203010 CR2.
        .text
        .code64
start:                                  # rdi is the vCPU's number
        mov     %rdi, %rbx
        shl     $6, %rbx
        add     $0x202000, %rbx
        lea     0x201000(,%rdi,8), %rsi
idle:   incq    (%rsi)
        pause
        mov     (%rbx), %rax
        test    %rax, %rax
        jz      idle
        mov     8(%rbx), %rdx
        cmp     $(last - table) / 2, %rax
        jae     done
        lea     table(%rip), %r8
        movzwl  (%r8,%rax,2), %eax
        lea     start(%rip), %r8
        add     %r8, %rax
        jmp     *%rax

table:  .word   done - start, store - start, load - start, run - start, hypercall - start, breakpoint - start
        .word   load_cr3 - start, write_msr - start, write_star - start, read_gdtr - start, load_cr4 - start, halt - start
        .word   spin - start, change - start, identify - start, fill - start
last:

store:  movabs  $0x1122334455667788, %rcx
        mov     %rcx, (%rdx)
load:   mov     (%rdx), %rcx
done:   mov     %rcx, 16(%rbx)
        incq    24(%rbx)
        movq    $0, (%rbx)
        jmp     idle
run:    call    *%rdx
        jmp     done
hypercall:
        push    %rsi
        push    %rdi
        push    %rbx
        mov     $34, %eax
        mov     $24, %edi
        xor     %esi, %esi
        vmmcall
        mov     %rax, %rcx
        pop     %rbx
        pop     %rdi
        pop     %rsi
        jmp     done
breakpoint:
        xor     %ecx, %ecx
        int3
        jmp     done
load_cr3:
        mov     %rdx, %cr3
        mov     %cr3, %rcx
        jmp     done
write_msr:
        mov     $0x174, %ecx
        mov     %edx, %eax
        xor     %edx, %edx
        wrmsr
        rdmsr
        mov     %rax, %rcx
        jmp     done
read_gdtr:
        sub     $16, %rsp
        movq    $0x5678, (%rsp)
        sgdt    (%rsp)
        movzwl  (%rsp), %ecx
        add     $16, %rsp
        jmp     done
load_cr4:
        mov     %rdx, %cr4
        mov     %cr4, %rcx
        jmp     done
halt:   hlt
        jmp     halt
spin:   movq    $0, 0x203000
waits:  pause
        mov     0x203000, %rcx
        test    %rcx, %rcx
        jz      waits
        jmp     done
write_star:
        mov     $0xc0000081, %ecx
        xor     %eax, %eax
        wrmsr
        mov     %rax, %rcx
        jmp     done
change: lock incq (%rdx)
        mov     (%rdx), %rcx
        jmp     done
identify:
        push    %rbx
        mov     %edx, %eax
        xor     %ecx, %ecx
        cpuid
        pop     %rbx
        mov     %rax, %rcx
        jmp     done
fill:   mov     %rdi, %r9
        mov     %rdx, %rdi
        mov     $16, %ecx
        mov     $0x5a, %al
        rep stosb
        mov     %r9, %rdi
        jmp     done

# Exceptions are noted, and the instruction is tried again.
exception:                              # the stack holds the vector, the error code and the processor's frame
        push    %rax
        push    %rcx
        mov     16(%rsp), %rax
        bts     $31, %rax
        shl     $32, %rax
        mov     24(%rsp), %ecx
        or      %rcx, %rax
        mov     %rax, 0x203000
        incq    0x203008
        mov     %cr2, %rax
        mov     %rax, 0x203010
        pop     %rcx
        pop     %rax
        add     $16, %rsp
        iretq

        .balign 1024, 0x90
        .set    vector, 0
        .rept   32
        .balign 16, 0x90
        .if     !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17)
        pushq   $0
        .endif
        pushq   $vector
        jmp     exception
        .set    vector, vector + 1
        .endr
