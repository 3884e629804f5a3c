/*
 * KVMI as C structs, written down from the protocol's description for these two programs alone: nothing here comes from
 * the codec that they are there to try. Little endian, as every host that ever had KVMI.
 */
#ifndef WIRE_H
#define WIRE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SIZE_IS(type, bytes) _Static_assert(sizeof(type) == (bytes), #type)

struct header { uint16_t id; uint16_t size; uint32_t seq; };
struct error_code { int32_t err; uint32_t pad; };
struct vcpu_head { uint16_t vcpu; uint16_t pad1; uint32_t pad2; };
SIZE_IS(struct header, 8);
SIZE_IS(struct error_code, 8);
SIZE_IS(struct vcpu_head, 8);

/* The greeting of QEMU; v12's has max_gpa, which makes it 104 bytes. */
struct hello {
    uint32_t struct_size; uint8_t uuid[16]; uint32_t pad; int64_t start_time; char name[64]; uint64_t max_gpa;
};
struct greeting_answer { uint32_t struct_size; uint8_t cookie_hash[20]; };
SIZE_IS(struct hello, 104);
SIZE_IS(struct greeting_answer, 24);

struct version_v7 { uint32_t version; uint32_t pad; uint8_t features[8]; };
struct version_v12 { uint32_t version; uint32_t max_msg_size; uint8_t features[8]; };
struct vm_info { uint32_t vcpu_count; uint32_t pad[3]; };
SIZE_IS(struct version_v7, 16);
SIZE_IS(struct version_v12, 16);
SIZE_IS(struct vm_info, 16);

struct control_events { struct vcpu_head head; uint16_t event; uint8_t enable; uint8_t pad1; uint32_t pad2; };
struct pause_v7 { struct vcpu_head head; uint8_t wait; uint8_t pad1; uint16_t pad2; uint32_t pad3; };
struct pause_v12 { uint16_t vcpu; uint8_t wait; uint8_t pad1; uint32_t pad2; };
struct page_entry { uint64_t gpa; uint8_t access; uint8_t pad[7]; };
struct page_access_v7 { uint16_t view; uint16_t count; uint32_t pad; struct page_entry entry; };
struct page_access_v12 { uint16_t count; uint16_t pad1; uint32_t pad2; struct page_entry entry; };
struct read_v7 { uint64_t gpa; uint64_t size; };
struct read_v12 { uint64_t gpa; uint16_t size; uint16_t pad1; uint32_t pad2; };
SIZE_IS(struct control_events, 16);
SIZE_IS(struct pause_v7, 16);
SIZE_IS(struct pause_v12, 8);
SIZE_IS(struct page_access_v7, 24);
SIZE_IS(struct page_access_v12, 24);
SIZE_IS(struct read_v7, 16);
SIZE_IS(struct read_v12, 16);

struct segment {
    uint64_t base; uint32_t limit; uint16_t selector;
    uint8_t type, present, dpl, db, s, l, g, avl, unusable, pad;
};
struct table { uint64_t base; uint16_t limit; uint16_t pad[3]; };
struct registers {
    uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags;
};
struct system_registers {
    struct segment cs, ds, es, fs, gs, ss, tr, ldt;
    struct table gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, cr8, efer, apic_base, interrupt_bitmap[4];
};
struct event_msrs {
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip, efer, star, lstar, cstar, pat, shadow_gs;
};
SIZE_IS(struct segment, 24);
SIZE_IS(struct registers, 144);
SIZE_IS(struct system_registers, 312);
SIZE_IS(struct event_msrs, 72);

struct event_v7 {
    uint16_t size; uint16_t vcpu; uint8_t event; uint8_t pad1[3];
    uint8_t mode; uint8_t pad2; uint16_t view; uint32_t pad3;
    struct registers regs; struct system_registers sregs; struct event_msrs msrs;
};
struct event_v12 {
    uint16_t event; uint16_t pad1[3];
    uint16_t size; uint16_t vcpu; uint32_t pad2;
    uint8_t mode; uint8_t pad3[7];
    struct registers regs; struct system_registers sregs; struct event_msrs msrs;
};
struct page_fault { uint64_t gva; uint64_t gpa; uint8_t access; uint8_t pad1; uint16_t pad2; uint32_t pad3; };
struct event_answer {
    struct vcpu_head head; uint8_t action; uint8_t event; uint16_t pad1; uint32_t pad2;
};
SIZE_IS(struct event_v7, 544);
SIZE_IS(struct event_v12, 552);
SIZE_IS(struct page_fault, 24);
SIZE_IS(struct event_answer, 16);

#define LARGEST 8184

static void fail(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static void read_all(int peer, void *into, size_t size)
{
    for (size_t at = 0; at < size;) {
        ssize_t got = read(peer, (char *)into + at, size - at);
        if (got <= 0)
            fail("the other side has closed");
        at += (size_t)got;
    }
}

static void write_all(int peer, const void *from, size_t size)
{
    for (size_t at = 0; at < size;) {
        ssize_t put = write(peer, (const char *)from + at, size - at);
        if (put <= 0)
            fail("the other side takes nothing");
        at += (size_t)put;
    }
}

static void say(int peer, uint16_t id, uint32_t seq, const void *payload, size_t size)
{
    char whole[sizeof(struct header) + LARGEST];
    struct header head = { id, (uint16_t)size, seq };

    memcpy(whole, &head, sizeof head);
    if (size)
        memcpy(whole + sizeof head, payload, size);
    write_all(peer, whole, sizeof head + size);
}

static inline struct header hear(int peer, char *payload)
{
    struct header head;

    read_all(peer, &head, sizeof head);
    if (head.size > LARGEST)
        fail("a message larger than any");
    read_all(peer, payload, head.size);
    return head;
}

static struct sockaddr_un address_of(const char *path)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };

    if (strlen(path) >= sizeof address.sun_path)
        fail("the socket's path is too long");
    strcpy(address.sun_path, path);
    return address;
}

#endif
