/*
 * A tool that knows KVMI from its description alone: listens, greets, asks for the version and the vCPUs, stops vCPU 0,
 * takes the right to write from one frame, waits for the one violation, lets it happen, and looks at what was written.
 *
 *     client SOCKET GPA
 */
#include "wire.h"

enum generation { V7, V12 };

/* Message ids and event numbers, v7's and v12's. */
static const uint16_t EVENT[] = { 1, 1 }, EVENT_ANSWER[] = { 0, 1 };
static const uint16_t GET_VERSION = 2, GET_INFO[] = { 5, 8 }, CONTROL_EVENTS[] = { 9, 5 }, PAUSE[] = { 7, 16 };
static const uint16_t SET_PAGE_ACCESS[] = { 21, 20 }, READ_PHYSICAL[] = { 17, 12 };
static const uint16_t PAUSED[] = { 10, 1 }, PAGE_FAULT[] = { 6, 17 };

enum { READ_ONLY = 1, CONTINUE = 0 };

static int peer;
static enum generation generation;
static uint32_t next_seq = 1;

/* An event that came while an answer was waited for; there is never more than one here. */
static struct { int there; struct header head; char payload[LARGEST]; } kept;

static int is_event(struct header head)
{
    return head.id == EVENT[generation] && head.size > sizeof(struct error_code);
}

/* Ask something; the data of the answer lie behind its error code. */
static size_t ask(uint16_t id, const void *payload, size_t size, char *answer)
{
    uint32_t seq = next_seq++;

    say(peer, id, seq, payload, size);
    for (;;) {
        char got[LARGEST];
        struct header head = hear(peer, got);

        if (is_event(head)) {
            if (kept.there)
                fail("a second event before the first was answered");
            kept.there = 1;
            kept.head = head;
            memcpy(kept.payload, got, head.size);
            continue;
        }
        if (head.id != id || head.seq != seq || head.size < sizeof(struct error_code))
            fail("an answer to something else");
        struct error_code error;
        memcpy(&error, got, sizeof error);
        if (error.err) {
            fprintf(stderr, "message %u was refused: %d\n", id, error.err);
            exit(1);
        }
        memcpy(answer, got + sizeof error, head.size - sizeof error);
        return head.size - sizeof error;
    }
}

static struct header event(char *payload)
{
    if (kept.there) {
        kept.there = 0;
        memcpy(payload, kept.payload, kept.head.size);
        return kept.head;
    }
    return hear(peer, payload);
}

/* Wait for an event of this number, and where its own data begin. */
static struct header wait_for(uint16_t number, char *payload, size_t *data)
{
    struct header head = event(payload);

    if (!is_event(head))
        fail("an answer to nothing");
    struct event_v7 *seven = (struct event_v7 *)payload;
    struct event_v12 *twelve = (struct event_v12 *)payload;
    uint16_t found = generation == V7 ? seven->event : twelve->event;
    uint16_t common = generation == V7 ? seven->size : twelve->size;
    if (found != number || common != sizeof *seven)
        fail("another event than was waited for");
    *data = generation == V7 ? sizeof *seven : sizeof *twelve;
    return head;
}

static void answer_event(struct header head, uint16_t number)
{
    struct event_answer answer = { .action = CONTINUE, .event = (uint8_t)number };

    say(peer, EVENT_ANSWER[generation], head.seq, &answer, sizeof answer);
}

static uint64_t word_at(uint64_t gpa)
{
    struct read_v7 seven = { gpa, 8 };
    struct read_v12 twelve = { .gpa = gpa, .size = 8 };
    char answer[LARGEST];
    uint64_t word;

    if (ask(READ_PHYSICAL[generation], generation == V7 ? (void *)&seven : (void *)&twelve, 16, answer) != 8)
        fail("another size than was asked for");
    memcpy(&word, answer, 8);
    return word;
}

static void greet(int server)
{
    uint32_t size;
    struct hello hello = { 0 };
    struct greeting_answer answer = { .struct_size = sizeof answer };

    peer = accept(server, NULL, NULL);
    if (peer < 0)
        fail("nobody came");
    read_all(peer, &size, sizeof size);
    if (size != 96 && size != 104)
        fail("no greeting");
    read_all(peer, (char *)&hello + sizeof size, size - sizeof size);
    printf("hello %u %s\n", size, hello.name);
    write_all(peer, &answer, sizeof answer);
}

int main(int count, char **words)
{
    char answer[LARGEST], payload[LARGEST];
    size_t data;

    if (count != 3)
        fail("client SOCKET GPA");
    uint64_t gpa = strtoull(words[2], NULL, 0);
    struct sockaddr_un address = address_of(words[1]);
    int server = socket(AF_UNIX, SOCK_STREAM, 0);
    if (server < 0 || bind(server, (struct sockaddr *)&address, sizeof address) || listen(server, 1))
        fail("can't listen");
    greet(server);

    if (ask(GET_VERSION, NULL, 0, answer) != sizeof(struct version_v7))
        fail("a version of neither generation");
    generation = ((struct version_v12 *)answer)->max_msg_size ? V12 : V7;
    if (generation == V12 && ((struct version_v12 *)answer)->max_msg_size != LARGEST)
        fail("another largest message");
    printf("version %u\n", generation == V7 ? 7 : 12);

    if (ask(GET_INFO[generation], NULL, 0, answer) != sizeof(struct vm_info))
        fail("another size of VM information");
    printf("vcpus %u\n", ((struct vm_info *)answer)->vcpu_count);

    struct pause_v7 pause7 = { .head.vcpu = 0 };
    struct pause_v12 pause12 = { .vcpu = 0 };
    if (generation == V7)
        ask(PAUSE[V7], &pause7, sizeof pause7, answer);
    else
        ask(PAUSE[V12], &pause12, sizeof pause12, answer);
    struct header paused = wait_for(PAUSED[generation], payload, &data);

    struct control_events on = { .event = PAGE_FAULT[generation], .enable = 1 };
    ask(CONTROL_EVENTS[generation], &on, sizeof on, answer);
    struct page_access_v7 access7 = { .count = 1, .entry = { .gpa = gpa, .access = READ_ONLY } };
    struct page_access_v12 access12 = { .count = 1, .entry = { .gpa = gpa, .access = READ_ONLY } };
    if (generation == V7)
        ask(SET_PAGE_ACCESS[V7], &access7, sizeof access7, answer);
    else
        ask(SET_PAGE_ACCESS[V12], &access12, sizeof access12, answer);
    printf("before %#llx\n", (unsigned long long)word_at(gpa));
    answer_event(paused, PAUSED[generation]);

    struct header caught = wait_for(PAGE_FAULT[generation], payload, &data);
    struct page_fault fault;
    memcpy(&fault, payload + data, sizeof fault);
    uint64_t rip = generation == V7 ? ((struct event_v7 *)payload)->regs.rip : ((struct event_v12 *)payload)->regs.rip;
    printf("fault gpa %#llx access %u rip %#llx\n", (unsigned long long)fault.gpa, fault.access, (unsigned long long)rip);
    printf("unchanged %#llx\n", (unsigned long long)word_at(gpa));
    answer_event(caught, PAGE_FAULT[generation]);
    /* A vCPU carries commands out in order, so what comes back says that the access has been made. */
    ask(CONTROL_EVENTS[generation], &on, sizeof on, answer);
    printf("after %#llx\n", (unsigned long long)word_at(gpa));
    close(peer);
    return 0;
}
