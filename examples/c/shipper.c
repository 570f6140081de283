/* Ships the lines of standard input into a ring, one item each, as a guest's program does with the disk of its ring:
 *
 *   journalctl -f | ./shipper serial:logs
 *
 * A line that was shipped survives the death of this program, of the guest and of the host. docs/c.md says how it is built.
 */
#define _GNU_SOURCE
#include <blockring.h>

#include <stdio.h>
#include <stdlib.h>

static int fail(const blockring_error *error)
{
    fprintf(stderr, "shipper: %s: %s\n", blockring_code_name(error->code), error->text);
    return 1;
}

int main(int count, char **arguments)
{
    blockring_producer *producer = NULL;
    blockring_error error;
    blockring_code code;
    char *line = NULL;
    size_t size = 0;
    ssize_t length;

    if (count != 2) {
        fputs("usage: shipper ADDRESS\n", stderr);
        return 2;
    }
    if (blockring_producer_attach(arguments[1], "logs", "shipper", NULL, &producer, &error) != BLOCKRING_OK)
        return fail(&error);
    while ((length = getline(&line, &size, stdin)) > 0) {
        blockring_slice item = {line, (size_t)length};
        uint64_t end = 0;

        /* A full or suspended ring: wait for the collector, and push again. */
        while ((code = blockring_producer_push(producer, line, item.length, &end, &error)) != BLOCKRING_OK) {
            if (code != BLOCKRING_RETRY && code != BLOCKRING_SUSPENDED)
                return fail(&error);
            if (blockring_producer_wait(producer, &item, 1, -1, -1, &error) != BLOCKRING_OK)
                return fail(&error);
        }
        /* Published: the line is in the ring, whatever happens now. */
        while ((code = blockring_producer_advance(producer, end, &error)) == BLOCKRING_SUSPENDED) {
            if (blockring_producer_wait(producer, NULL, 0, -1, -1, &error) != BLOCKRING_OK)
                return fail(&error);
        }
        if (code != BLOCKRING_OK)
            return fail(&error);
    }
    free(line);
    return blockring_producer_free(&producer) == BLOCKRING_OK && !ferror(stdin) ? 0 : 1;
}
