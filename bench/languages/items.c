/* Items from push to free through the C library, for ring-bench --measure languages: as bench/src/languages.rs does it in Rust.
 *
 *   items RING MILLISECONDS
 *
 * The ring is there. Prints items a second.
 */
#define _GNU_SOURCE
#include <blockring.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BATCH 64
#define BYTES 64

static blockring_error error;

static void succeed(blockring_code code)
{
    if (code != BLOCKRING_OK) {
        fprintf(stderr, "items: %s: %s\n", blockring_code_name(code), error.text);
        exit(1);
    }
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void see(void *context, const blockring_item *item)
{
    *(size_t *)context += item->length;
}

int main(int count, char **arguments)
{
    blockring_producer *producer = NULL;
    blockring_consumer *consumer = NULL;
    blockring_options options;
    blockring_slice items[BATCH];
    char payload[BYTES];
    double start, passed = 0, limit;
    size_t done = 0, bytes = 0;
    uint64_t at = 0;

    if (count != 3) {
        fputs("usage: items RING MILLISECONDS\n", stderr);
        return 2;
    }
    limit = atof(arguments[2]) / 1e3;
    memset(&options, 0, sizeof options);
    options.durability = BLOCKRING_PAGE_CACHE;
    memset(payload, 7, sizeof payload);
    for (size_t index = 0; index < BATCH; index++)
        items[index] = (blockring_slice){payload, sizeof payload};
    succeed(blockring_producer_attach(arguments[1], "bench", "producer", &options, &producer, &error));
    succeed(blockring_consumer_attach(arguments[1], "bench", "consumer", &options, &consumer, &error));
    succeed(blockring_consumer_position(consumer, &at, &error));
    for (start = now(); passed < limit; passed = now() - start) {
        uint64_t end = 0;
        succeed(blockring_producer_push_batch(producer, items, BATCH, &end, &error));
        succeed(blockring_producer_advance(producer, end, &error));
        while (at < end)
            succeed(blockring_consumer_fold(consumer, at, see, &bytes, &at, &error));
        succeed(blockring_consumer_advance(consumer, end, &error));
        done += BATCH;
    }
    succeed(blockring_consumer_free(&consumer));
    succeed(blockring_producer_free(&producer));
    if (bytes != done * BYTES)
        return 1;
    printf("%.0f\n", (double)done / passed);
    return 0;
}
