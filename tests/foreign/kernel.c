/*
 * A kernel that knows KVMI from its description alone and allows nothing: it greets as QEMU does, tells its version, and
 * refuses all else with EPERM until the tool has closed. It prints which messages came.
 *
 *     kernel SOCKET 7|12
 */
#include "wire.h"

int main(int count, char **words)
{
    char payload[LARGEST];
    struct greeting_answer answer;

    if (count != 3)
        fail("kernel SOCKET 7|12");
    int twelve = !strcmp(words[2], "12");
    struct sockaddr_un address = address_of(words[1]);
    int peer = socket(AF_UNIX, SOCK_STREAM, 0);
    for (int tries = 0; connect(peer, (struct sockaddr *)&address, sizeof address); tries++) {
        if (tries == 200)
            fail("nobody listens");
        usleep(50000);
    }
    struct hello hello = { .struct_size = twelve ? 104 : 96, .name = "foreign", .max_gpa = 64 << 20 };
    write_all(peer, &hello, hello.struct_size);
    read_all(peer, &answer, sizeof answer);
    if (answer.struct_size != sizeof answer)
        fail("no answer to the greeting");

    for (;;) {
        struct header head;
        ssize_t got = read(peer, &head, sizeof head);
        if (got == 0)
            return 0;
        if (got != sizeof head || head.size > LARGEST)
            fail("no header");
        read_all(peer, payload, head.size);
        uint16_t asked = 0;
        if (head.size >= 2)
            memcpy(&asked, payload, 2);
        printf("%u %u\n", head.id, head.size);
        fflush(stdout);
        if (head.id == 2) {
            struct { struct error_code error; struct version_v12 version; } reply = {
                .version = { .version = 1, .max_msg_size = twelve ? LARGEST : 0 }
            };
            say(peer, 2, head.seq, &reply, sizeof reply);
            continue;
        }
        /* What v12 doesn't have is told from what isn't allowed: command 22 is how the tool knows v12 by. */
        struct error_code refused = { .err = twelve && head.id == 4 && asked == 22 ? -2 : -1 };
        say(peer, head.id, head.seq, &refused, sizeof refused);
    }
}
