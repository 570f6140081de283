/* Writes the items of a ring to standard output, as a collector on the host does with the ring of a guest, until SIGTERM or SIGINT:
 *
 *   ./collector unix:/run/blockring/web.out >>web.log
 *
 * An item is freed when it is written: after a crash in between it comes again. docs/c.md says how it is built.
 */
#define _GNU_SOURCE
#include <blockring.h>

#include <signal.h>
#include <stdio.h>
#include <sys/signalfd.h>

static int fail(const blockring_error *error)
{
    fprintf(stderr, "collector: %s: %s\n", blockring_code_name(error->code), error->text);
    return 1;
}

/* Returns a descriptor that is readable when the program is to end. */
static int stop_descriptor(void)
{
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    return signalfd(-1, &signals, SFD_CLOEXEC);
}

int main(int count, char **arguments)
{
    int stop = stop_descriptor();
    blockring_consumer *consumer = NULL;
    blockring_error error;
    blockring_item item;
    blockring_code code;
    uint64_t position = 0;

    if (count != 2) {
        fputs("usage: collector ADDRESS\n", stderr);
        return 2;
    }
    if (blockring_consumer_attach(arguments[1], "logs", "collector", NULL, &consumer, &error) != BLOCKRING_OK ||
        blockring_consumer_position(consumer, &position, &error) != BLOCKRING_OK)
        return fail(&error);
    while ((code = blockring_consumer_wait(consumer, position, -1, stop, &error)) == BLOCKRING_OK) {
        if (blockring_consumer_pop(consumer, position, &item, &error) != BLOCKRING_OK)
            return fail(&error);
        if (fwrite(item.bytes, 1, item.length, stdout) != item.length || fflush(stdout) != 0) {
            perror("collector: standard output");
            return 1;
        }
        position = item.next;
        if (blockring_consumer_advance(consumer, position, &error) != BLOCKRING_OK)
            return fail(&error);
    }
    if (code != BLOCKRING_INTERRUPTED)
        return fail(&error);
    return blockring_consumer_free(&consumer) == BLOCKRING_OK ? 0 : 1;
}
