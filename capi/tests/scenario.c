/* The scripted scenario, the same in each language, so that they can be mixed on one ring:
 *
 *   scenario create FILE BYTES
 *   scenario produce ADDRESS TO
 *   scenario consume ADDRESS TO STATE [SUSPEND_AT]
 *   scenario superseded FILE
 *
 * Item n is the decimal text of n, a colon, and (7 n mod 101) times the letter 'a' + n mod 26. A failure is "NAME: text" on standard
 * error, and exit code 1.
 */
#include <blockring.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BATCH 64
#define ITEM_BYTES 128
/* Far longer than any wait of a test takes. */
#define PATIENCE_MS 60000

static blockring_error error;

static void fail(const char *name, const char *text)
{
    fprintf(stderr, "%s: %s\n", name, text);
    exit(1);
}

static void succeed(blockring_code code)
{
    if (code != BLOCKRING_OK)
        fail(blockring_code_name(code), error.text);
}

static void fail_as(const char *what)
{
    char text[4400];
    snprintf(text, sizeof text, "%s: %s", what, strerror(errno));
    fail("scenario", text);
}

static size_t put_item(uint64_t number, char *item)
{
    size_t length = (size_t)sprintf(item, "%" PRIu64 ":", number);
    size_t letters = (size_t)(number * 7 % 101);
    memset(item + length, (int)('a' + number % 26), letters);
    return length + letters;
}

static void create(const char *path, const char *bytes)
{
    succeed(blockring_make_file(path, strtoull(bytes, NULL, 10), &error));
    succeed(blockring_create(path, NULL, NULL, &error));
}

/* Pushes items `number` to `end` and publishes them, when there is room and the ring is not suspended. */
static void publish(blockring_producer *producer, uint64_t number, uint64_t end)
{
    static char texts[BATCH][ITEM_BYTES];
    blockring_slice items[BATCH];
    size_t count = (size_t)(end - number);
    uint64_t position = 0;
    blockring_code code;

    for (size_t at = 0; at < count; at++) {
        items[at].bytes = texts[at];
        items[at].length = put_item(number + at, texts[at]);
    }
    while ((code = blockring_producer_push_batch(producer, items, count, &position, &error)) !=
           BLOCKRING_OK) {
        if (code != BLOCKRING_RETRY && code != BLOCKRING_SUSPENDED)
            succeed(code);
        succeed(blockring_producer_wait(producer, items, count, PATIENCE_MS, -1, &error));
    }
    while ((code = blockring_producer_advance(producer, position, &error)) == BLOCKRING_SUSPENDED)
        succeed(blockring_producer_wait(producer, NULL, 0, PATIENCE_MS, -1, &error));
    succeed(code);
}

static void produce(const char *address, uint64_t to)
{
    blockring_producer *producer = NULL;
    blockring_debug_info info;
    uint64_t number;

    succeed(blockring_producer_attach(address, "scenario", "c", NULL, &producer, &error));
    succeed(blockring_producer_debug_info(producer, &info, &error));
    if (info.producer_items == BLOCKRING_UNKNOWN && info.producer != 0)
        fail("scenario", "the ring does not count its items");
    number = info.producer == 0 ? 0 : info.producer_items;
    while (number < to) {
        uint64_t end = number + BATCH < to ? number + BATCH : to;
        publish(producer, number, end);
        number = end;
    }
    succeed(blockring_producer_free(&producer));
    printf("produced %" PRIu64 "\n", to);
}

/* What was consumed: up to which item and position, and the checksum of all of it. */
struct state {
    uint64_t number;
    uint64_t position;
    uint64_t checksum;
    /* Items from this one on are not taken now. */
    uint64_t until;
};

static void add_bytes(uint64_t *checksum, const void *bytes, size_t length)
{
    const unsigned char *at = (const unsigned char *)bytes;
    for (size_t index = 0; index < length; index++)
        *checksum = (*checksum ^ at[index]) * UINT64_C(0x100000001b3);
}

static void take(void *context, const blockring_item *item)
{
    struct state *state = (struct state *)context;
    char expected[ITEM_BYTES];
    uint32_t length = (uint32_t)item->length;
    unsigned char header[4] = {(unsigned char)length, (unsigned char)(length >> 8),
                               (unsigned char)(length >> 16), (unsigned char)(length >> 24)};

    if (state->number >= state->until)
        return;
    if (item->length != put_item(state->number, expected) ||
        memcmp(item->bytes, expected, item->length) != 0)
        fail("scenario", "an item is not what was pushed");
    add_bytes(&state->checksum, header, sizeof header);
    add_bytes(&state->checksum, item->bytes, item->length);
    state->number++;
    state->position = item->next;
}

static void load(const char *path, struct state *state)
{
    char position[BLOCKRING_POSITION_BYTES];
    FILE *file = fopen(path, "r");
    if (file == NULL && errno == ENOENT)
        return;
    if (file == NULL || fscanf(file, "%" SCNu64 "\n%23s\n%" SCNx64, &state->number, position,
                               &state->checksum) != 3)
        fail_as(path);
    fclose(file);
    succeed(blockring_position_from_text(position, &state->position, &error));
}

/* The old state or the new one is there, whenever this process is killed. */
static void store(const char *path, const struct state *state)
{
    char position[BLOCKRING_POSITION_BYTES], new_path[4096];
    FILE *file;

    succeed(blockring_position_to_text(state->position, position, &error));
    snprintf(new_path, sizeof new_path, "%s.new", path);
    file = fopen(new_path, "w");
    if (file == NULL ||
        fprintf(file, "%" PRIu64 "\n%s\n%016" PRIx64 "\n", state->number, position,
                state->checksum) < 0 ||
        fflush(file) != 0 || fsync(fileno(file)) != 0 || fclose(file) != 0 ||
        rename(new_path, path) != 0)
        fail_as(new_path);
}

static void suspend_and_resume(blockring_consumer *consumer)
{
    bool suspended = false;
    blockring_code code;

    while ((code = blockring_consumer_suspend(consumer, &error)) == BLOCKRING_RETRY)
        usleep(1000);
    succeed(code);
    succeed(blockring_consumer_wait_state(consumer, true, PATIENCE_MS, -1, &error));
    succeed(blockring_consumer_state(consumer, &suspended, &error));
    if (!suspended)
        fail("scenario", "the ring is not suspended");
    succeed(blockring_consumer_resume(consumer, &error));
}

static void consume(const char *address, uint64_t to, const char *path, uint64_t suspend_at)
{
    struct state state = {0, 0, UINT64_C(0xcbf29ce484222325), 0};
    blockring_consumer *consumer = NULL;
    uint64_t position, end;

    load(path, &state);
    succeed(blockring_consumer_attach(address, "scenario", "c", NULL, &consumer, &error));
    succeed(blockring_consumer_position(consumer, &position, &error));
    if (position < state.position)
        succeed(blockring_consumer_advance(consumer, state.position, &error));
    while (state.number < to) {
        uint64_t before = state.number;
        if (state.number == suspend_at)
            suspend_and_resume(consumer);
        state.until = state.number < suspend_at && suspend_at < to ? suspend_at : to;
        succeed(blockring_consumer_fold(consumer, state.position, take, &state, &end, &error));
        if (state.number == before) {
            succeed(
                blockring_consumer_wait(consumer, state.position, PATIENCE_MS, -1, &error));
            continue;
        }
        store(path, &state);
        succeed(blockring_consumer_advance(consumer, state.position, &error));
    }
    succeed(blockring_consumer_free(&consumer));
    printf("consumed %" PRIu64 " %016" PRIx64 "\n", to, state.checksum);
}

static blockring_code push_one(blockring_producer *producer)
{
    uint64_t position = 0;
    blockring_code code = blockring_producer_push(producer, "item", 4, &position, &error);
    return code == BLOCKRING_OK ? blockring_producer_advance(producer, position, &error) : code;
}

static void superseded(const char *path)
{
    blockring_producer *producer = NULL;
    struct stat about;
    char *bytes;
    int file;

    succeed(blockring_producer_attach(path, "scenario", "c", NULL, &producer, &error));
    file = open(path, O_RDWR | O_CLOEXEC);
    if (file == -1 || fstat(file, &about) == -1)
        fail_as(path);
    bytes = (char *)malloc((size_t)about.st_size);
    if (bytes == NULL || pread(file, bytes, (size_t)about.st_size, 0) != about.st_size)
        fail_as(path);
    succeed(push_one(producer));
    if (pwrite(file, bytes, (size_t)about.st_size, 0) != about.st_size)
        fail_as(path);
    free(bytes);
    close(file);
    /* A position that was read may be used again for a short time. */
    usleep(50000);
    if (push_one(producer) != BLOCKRING_SUPERSEDED)
        fail("scenario", "the older ring was not noticed");
    puts("superseded");
    succeed(push_one(producer));
    succeed(blockring_producer_free(&producer));
}

int main(int count, char **arguments)
{
    const char *role = count > 1 ? arguments[1] : "";
    if (count == 4 && strcmp(role, "create") == 0) {
        create(arguments[2], arguments[3]);
    } else if (count == 4 && strcmp(role, "produce") == 0) {
        produce(arguments[2], strtoull(arguments[3], NULL, 10));
    } else if ((count == 5 || count == 6) && strcmp(role, "consume") == 0) {
        uint64_t suspend_at = count == 6 ? strtoull(arguments[5], NULL, 10) : UINT64_MAX;
        consume(arguments[2], strtoull(arguments[3], NULL, 10), arguments[4], suspend_at);
    } else if (count == 3 && strcmp(role, "superseded") == 0) {
        superseded(arguments[2]);
    } else {
        fputs("usage: scenario create FILE BYTES | produce ADDRESS TO | consume ADDRESS TO STATE [SUSPEND_AT] | superseded FILE\n",
              stderr);
        return 2;
    }
    return 0;
}
