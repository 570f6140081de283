/* Every function of the header, as C and as C++: capi/tests/api.rs. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (1 << 20)

static blockring_slice slice(const char *text)
{
    blockring_slice slice = {text, strlen(text)};
    return slice;
}

static bool is(const blockring_item *item, const char *text)
{
    return item->length == strlen(text) && memcmp(item->bytes, text, item->length) == 0;
}

static void items_arrive_in_order_after_an_advance(const char *folder)
{
    const char *path = new_ring(folder, "order", MIB);
    blockring_producer *producer = new_producer(path);
    blockring_consumer *consumer = new_consumer(path);
    uint64_t from = 1, end = 0, next = 0;
    blockring_debug_info info;
    blockring_item item;

    EXPECT(BLOCKRING_OK, blockring_producer_push(producer, "hello", 5, &end, &error));
    EXPECT(BLOCKRING_OK, blockring_producer_push(producer, NULL, 0, &end, &error));
    EXPECT(BLOCKRING_OK, blockring_consumer_position(consumer, &from, &error));
    CHECK(from == 0);
    EXPECT(BLOCKRING_RETRY, blockring_consumer_pop(consumer, from, &item, &error));
    EXPECT(BLOCKRING_OK, blockring_producer_advance(producer, end, &error));
    EXPECT(BLOCKRING_OK, blockring_producer_position(producer, &next, &error));
    CHECK(next == end);
    EXPECT(BLOCKRING_OK, blockring_consumer_debug_info(consumer, &info, &error));
    CHECK(info.producer == end && info.producer_items == 2 && info.used == end);

    EXPECT(BLOCKRING_OK, blockring_consumer_pop(consumer, from, &item, &error));
    CHECK(is(&item, "hello"));
    EXPECT(BLOCKRING_OK, blockring_consumer_pop(consumer, item.next, &item, &error));
    CHECK(is(&item, "") && item.next == end);
    EXPECT(BLOCKRING_OK, blockring_consumer_advance(consumer, item.next, &error));
    EXPECT(BLOCKRING_RETRY, blockring_consumer_pop(consumer, item.next, &item, &error));
    CHECK(blockring_consumer_free(&consumer) == BLOCKRING_OK && consumer == NULL);
    CHECK(blockring_producer_free(&producer) == BLOCKRING_OK && producer == NULL);
}

struct seen {
    char text[256];
    blockring_consumer *consumer;
    int32_t inner;
};

static void note(void *context, const blockring_item *item)
{
    struct seen *seen = (struct seen *)context;
    uint64_t position;
    size_t length = strlen(seen->text);
    memcpy(seen->text + length, item->bytes, item->length);
    seen->text[length + item->length] = 0;
    seen->inner = blockring_consumer_position(seen->consumer, &position, NULL);
}

static void batches_rooms_and_folds(const char *folder)
{
    const char *path = new_ring(folder, "batches", MIB);
    blockring_producer *producer = new_producer(path);
    blockring_consumer *consumer = new_consumer(path);
    blockring_slice batch[] = {slice("a"), slice("bc"), {NULL, 0}};
    struct seen seen = {{0}, consumer, 0};
    uint64_t end = 0, behind = 0;
    size_t pushed = 0;
    void *room = NULL;

    EXPECT(BLOCKRING_OK, blockring_producer_push_batch(producer, batch, 3, &end, &error));
    EXPECT(BLOCKRING_OK, blockring_producer_push_some(producer, batch, 2, &pushed, &end, &error));
    CHECK(pushed == 2);
    EXPECT(BLOCKRING_OK, blockring_producer_push_batch(producer, NULL, 0, NULL, &error));

    EXPECT(BLOCKRING_OK, blockring_producer_reserve(producer, 100, &room, &error));
    memset(room, 'x', 100);
    EXPECT(BLOCKRING_OK, blockring_producer_commit(producer, 4, &end, &error));
    EXPECT(BLOCKRING_INVALID_ARGUMENT, blockring_producer_commit(producer, 4, &end, &error));
    EXPECT(BLOCKRING_OK, blockring_producer_reserve(producer, 8, &room, &error));
    EXPECT(BLOCKRING_INVALID_ARGUMENT, blockring_producer_commit(producer, 9, &end, &error));
    EXPECT(BLOCKRING_OK, blockring_producer_reserve(producer, 8, &room, &error));
    EXPECT(BLOCKRING_OK, blockring_producer_push(producer, "end", 3, &end, &error));
    EXPECT(BLOCKRING_INVALID_ARGUMENT, blockring_producer_commit(producer, 8, NULL, &error));

    EXPECT(BLOCKRING_OK, blockring_producer_flush(producer, &error));
    EXPECT(BLOCKRING_OK, blockring_producer_advance(producer, end, &error));
    EXPECT(BLOCKRING_OK, blockring_consumer_fold(consumer, 0, note, &seen, &behind, &error));
    CHECK(behind == end && strcmp(seen.text, "abcabcxxxxend") == 0);
    CHECK(seen.inner == BLOCKRING_BUSY);
    EXPECT(BLOCKRING_OK, blockring_consumer_advance_every(consumer, 4096, &error));
    EXPECT(BLOCKRING_OK, blockring_consumer_advance(consumer, behind, &error));
    EXPECT(BLOCKRING_OK, blockring_consumer_flush(consumer, &error));
    EXPECT(BLOCKRING_OK, blockring_consumer_fold(consumer, end, note, &seen, &behind, &error));
    CHECK(behind == end);
    blockring_consumer_free(&consumer);
    blockring_producer_free(&producer);
}

static void errors_have_names_and_details(const char *folder)
{
    char path[4096], big[8192] = {0};
    blockring_producer *producer, *second = NULL;
    blockring_consumer *consumer;
    blockring_options options = {0, 0, 0, 0, {0}};
    uint64_t end, from, to;

    snprintf(path, sizeof path, "%s/none", folder);
    EXPECT(BLOCKRING_DEVICE, blockring_producer_attach(path, "", "", NULL, &second, &error));
    CHECK(error.os_error == ENOENT && strstr(error.text, path) && second == NULL);
    EXPECT(BLOCKRING_OK, blockring_make_file(path, 4096, &error));
    EXPECT(BLOCKRING_DEVICE, blockring_make_file(path, 4096, &error));
    CHECK(error.os_error == EEXIST);
    EXPECT(BLOCKRING_DEVICE, blockring_make_file("/nonexistent/ring", 4096, &error));
    CHECK(error.os_error == ENOENT);
    snprintf(path, sizeof path, "%s/vast", folder);
    EXPECT(BLOCKRING_DEVICE, blockring_make_file(path, INT64_MAX, &error));
    CHECK(error.os_error == ENOSPC);
    snprintf(path, sizeof path, "%s/none", folder);
    EXPECT(BLOCKRING_FORMAT, blockring_producer_attach(path, "", "", NULL, &second, &error));
    CHECK(error.os_error == 0 && error.sector == BLOCKRING_UNKNOWN);

    snprintf(path, sizeof path, "%s", new_ring(folder, "errors", 4096));
    producer = new_producer(path);
    consumer = new_consumer(path);
    EXPECT(BLOCKRING_ROLE_TAKEN, blockring_producer_attach(path, "", "", NULL, &second, &error));
    CHECK(error.process == getpid());
    EXPECT(BLOCKRING_TOO_LARGE, blockring_producer_push(producer, big, sizeof big, &end, &error));
    EXPECT(BLOCKRING_OK, blockring_producer_push(producer, big, 2000, &end, &error));
    EXPECT(BLOCKRING_RETRY, blockring_producer_push(producer, big, 2000, &end, &error));
    EXPECT(BLOCKRING_INVALID_ADVANCE, blockring_producer_advance(producer, end + 4, &error));
    CHECK(error.from == 0 && error.to == end);
    EXPECT(BLOCKRING_INVALID_START, blockring_consumer_fold(consumer, 400, note, NULL, NULL, &error));
    EXPECT(BLOCKRING_OK, blockring_producer_in_doubt(producer, &from, &to, &error));
    CHECK(from == to);

    options.sector_size = 4096;
    EXPECT(BLOCKRING_FORMAT, blockring_producer_attach(path, "", "", &options, &second, &error));
    options.sector_size = 1000;
    EXPECT(BLOCKRING_FORMAT, blockring_producer_attach(path, "", "", &options, &second, &error));
    EXPECT(BLOCKRING_DEVICE,
           blockring_producer_attach("pci:0000:00:04.0", "", "", NULL, &second, &error));
    snprintf(path, sizeof path, "unix:%s/no-socket", folder);
    EXPECT(BLOCKRING_DEVICE, blockring_producer_attach(path, "", "", NULL, &second, &error));
    CHECK(error.os_error == ENOENT);

    CHECK(strcmp(blockring_code_name(BLOCKRING_ROLE_TAKEN), "role_taken") == 0);
    CHECK(strcmp(blockring_code_name(12345), "unknown") == 0);
    CHECK(strcmp(blockring_strerror(BLOCKRING_OK), "no error") == 0);
    CHECK(strlen(blockring_version()) >= 5);
    blockring_producer_free(&producer);
    blockring_consumer_free(&consumer);
}

static void suspend_and_resume(const char *folder)
{
    const char *path = new_ring(folder, "suspend", MIB);
    blockring_producer *producer = new_producer(path);
    blockring_consumer *consumer = new_consumer(path);
    blockring_control *control = NULL, *reader = NULL;
    blockring_options reading = {0, BLOCKRING_READ_ONLY, 0, 0, {0}};
    blockring_debug_info info;
    bool suspended = true;

    EXPECT(BLOCKRING_OK, blockring_control_open(path, NULL, &control, &error));
    EXPECT(BLOCKRING_OK, blockring_consumer_state(consumer, &suspended, &error));
    CHECK(!suspended);
    EXPECT(BLOCKRING_OK, blockring_consumer_suspend(consumer, &error));
    EXPECT(BLOCKRING_RETRY, blockring_consumer_resume(consumer, &error));
    EXPECT(BLOCKRING_TIMED_OUT, blockring_consumer_wait_state(consumer, true, 0, -1, &error));
    EXPECT(BLOCKRING_OK, blockring_producer_state(producer, &suspended, &error));
    CHECK(suspended);
    EXPECT(BLOCKRING_OK, blockring_consumer_wait_state(consumer, true, -1, -1, &error));
    EXPECT(BLOCKRING_SUSPENDED, blockring_producer_push(producer, "x", 1, NULL, &error));
    EXPECT(BLOCKRING_TIMED_OUT, blockring_producer_wait(producer, NULL, 0, 0, -1, &error));
    EXPECT(BLOCKRING_OK, blockring_control_state(control, &suspended, &error));
    CHECK(suspended);
    EXPECT(BLOCKRING_OK, blockring_control_resume(control, &error));
    EXPECT(BLOCKRING_OK, blockring_producer_wait(producer, NULL, 0, 1000, -1, &error));
    EXPECT(BLOCKRING_OK, blockring_control_wait_state(control, false, 1000, -1, &error));
    EXPECT(BLOCKRING_OK, blockring_control_open(path, &reading, &reader, &error));
    EXPECT(BLOCKRING_DEVICE, blockring_control_suspend(reader, &error));
    CHECK(error.os_error == EACCES && strstr(error.text, "reading only") != NULL);
    EXPECT(BLOCKRING_OK, blockring_control_debug_info(reader, &info, &error));
    blockring_control_free(&reader);
    EXPECT(BLOCKRING_OK, blockring_control_suspend(control, &error));
    EXPECT(BLOCKRING_OK, blockring_consumer_debug_info(consumer, &info, &error));
    CHECK(info.suspend && !info.suspend_ack && info.producer_time_ns == BLOCKRING_UNKNOWN);
    EXPECT(BLOCKRING_OK, blockring_producer_debug_info(producer, &info, &error));
    EXPECT(BLOCKRING_OK, blockring_control_debug_info(control, &info, &error));
    CHECK(info.sector_size == 512 && info.total_sectors == MIB / 512 && strlen(info.uuid) == 36);
    CHECK(strstr(info.producer_text, "web-1") != NULL);
    EXPECT(BLOCKRING_OK, blockring_producer_check_presence(producer, &error));
    CHECK(unlink(path) == 0);
    EXPECT(BLOCKRING_DEVICE, blockring_producer_check_presence(producer, &error));
    EXPECT(BLOCKRING_DEVICE, blockring_consumer_check_presence(consumer, &error));
    blockring_control_free(&control);
    blockring_producer_free(&producer);
    blockring_consumer_free(&consumer);
}

static void *push_later(void *context)
{
    blockring_producer *producer = (blockring_producer *)context;
    uint64_t end = 0;
    usleep(30000);
    CHECK(blockring_producer_push(producer, "later", 5, &end, NULL) == BLOCKRING_OK);
    CHECK(blockring_producer_advance(producer, end, NULL) == BLOCKRING_OK);
    return NULL;
}

static void waits_and_descriptors(const char *folder)
{
    const char *path = new_ring(folder, "waits", 4096);
    blockring_producer *producer = new_producer(path);
    blockring_consumer *consumer = new_consumer(path);
    blockring_slice large = {folder, 2000};
    char big[2000] = {0};
    blockring_item item = {NULL, 0, 0};
    pthread_t thread;
    int pipes[2], descriptor = -1;
    bool again = false;
    uint64_t end = 0;

    CHECK(pipe(pipes) == 0);
    EXPECT(BLOCKRING_TIMED_OUT, blockring_consumer_wait(consumer, 0, 0, pipes[0], &error));
    EXPECT(BLOCKRING_TIMED_OUT, blockring_consumer_wait(consumer, 0, 20, -1, &error));
    CHECK(write(pipes[1], "x", 1) == 1);
    EXPECT(BLOCKRING_INTERRUPTED, blockring_consumer_wait(consumer, 0, -1, pipes[0], &error));
    EXPECT(BLOCKRING_INVALID_ARGUMENT, blockring_consumer_wait(consumer, 0, -1, -2, &error));

    CHECK(pthread_create(&thread, NULL, push_later, producer) == 0);
    EXPECT(BLOCKRING_OK, blockring_consumer_wait(consumer, 0, 10000, -1, &error));
    EXPECT(BLOCKRING_OK, blockring_consumer_pop(consumer, 0, &item, &error));
    CHECK(is(&item, "later"));
    CHECK(pthread_join(thread, NULL) == 0);

    EXPECT(BLOCKRING_OK, blockring_producer_wait(producer, &large, 1, 0, -1, &error));
    EXPECT(BLOCKRING_OK, blockring_producer_push(producer, big, sizeof big, &end, &error));
    EXPECT(BLOCKRING_TIMED_OUT, blockring_producer_wait(producer, &large, 1, 10, -1, &error));
    large.length = 1 << 20;
    EXPECT(BLOCKRING_TOO_LARGE, blockring_producer_wait(producer, &large, 1, 10, -1, &error));
    EXPECT(BLOCKRING_OK, blockring_producer_advance(producer, end, &error));
    EXPECT(BLOCKRING_OK, blockring_consumer_advance(consumer, end, &error));

    EXPECT(BLOCKRING_INVALID_ARGUMENT, blockring_consumer_arm(consumer, &again, &error));
    EXPECT(BLOCKRING_OK, blockring_consumer_fd(consumer, &descriptor, &error));
    EXPECT(BLOCKRING_INVALID_ARGUMENT, blockring_consumer_wait(consumer, end, 0, -1, &error));
    CHECK(pthread_create(&thread, NULL, push_later, producer) == 0);
    while (blockring_consumer_pop(consumer, end, &item, &error) == BLOCKRING_RETRY) {
        struct pollfd events = {descriptor, POLLIN, 0};
        EXPECT(BLOCKRING_OK, blockring_consumer_arm(consumer, &again, &error));
        if (!again)
            CHECK(poll(&events, 1, 10000) == 1);
    }
    CHECK(is(&item, "later"));
    CHECK(pthread_join(thread, NULL) == 0);
    EXPECT(BLOCKRING_OK, blockring_producer_fd(producer, &descriptor, &error));
    EXPECT(BLOCKRING_OK, blockring_producer_arm(producer, &again, &error));
    blockring_producer_free(&producer);
    CHECK(fcntl(descriptor, F_GETFD) == -1);
    blockring_consumer_free(&consumer);
    close(pipes[0]);
    close(pipes[1]);
}

static void positions_are_text(void)
{
    char text[BLOCKRING_POSITION_BYTES];
    uint64_t position = 0;
    EXPECT(BLOCKRING_OK, blockring_position_to_text(61992, text, &error));
    CHECK(strcmp(text, "61992") == 0);
    EXPECT(BLOCKRING_OK, blockring_position_from_text(text, &position, &error));
    CHECK(position == 61992);
    EXPECT(BLOCKRING_INVALID_ARGUMENT, blockring_position_from_text("61993", &position, &error));
    EXPECT(BLOCKRING_INVALID_ARGUMENT, blockring_position_to_text(2, text, &error));
    EXPECT(BLOCKRING_INVALID_ARGUMENT, blockring_position_from_text(NULL, &position, &error));
}

static void *wait_for_ever(void *context)
{
    void **both = (void **)context;
    blockring_consumer *consumer = (blockring_consumer *)both[0];
    int32_t answer = blockring_consumer_wait(consumer, 0, -1, *(int *)both[1], NULL);
    CHECK(answer == BLOCKRING_INTERRUPTED);
    return NULL;
}

static void handle_is_used_by_one_thread_at_a_time(const char *folder)
{
    const char *path = new_ring(folder, "threads", 4096);
    blockring_consumer *consumer = new_consumer(path);
    int pipes[2];
    void *both[2] = {consumer, &pipes[0]};
    pthread_t thread;
    uint64_t position;

    CHECK(pipe(pipes) == 0);
    CHECK(pthread_create(&thread, NULL, wait_for_ever, both) == 0);
    while (blockring_consumer_position(consumer, &position, &error) != BLOCKRING_BUSY)
        usleep(100);
    CHECK(error.code == BLOCKRING_BUSY);
    CHECK(blockring_consumer_free(&consumer) == BLOCKRING_BUSY && consumer == both[0]);
    CHECK(write(pipes[1], "x", 1) == 1);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(blockring_consumer_free(&consumer) == BLOCKRING_OK);
    close(pipes[0]);
    close(pipes[1]);
}

static void misuse_is_answered(const char *folder)
{
    const char *path = new_ring(folder, "misuse", 4096);
    blockring_producer *producer = new_producer(path), *stale = producer;
    blockring_consumer *consumer = new_consumer(path), *other = (blockring_consumer *)producer;
    blockring_options options = {0, 1u << 30, 0, 0, {0}};
    blockring_slice wrong = {NULL, 7}, huge = {folder, SIZE_MAX};
    blockring_item item;
    uint64_t position;

    EXPECT(BLOCKRING_INVALID_ARGUMENT, blockring_producer_push(NULL, "x", 1, NULL, &error));
    EXPECT(BLOCKRING_INVALID_ARGUMENT, blockring_consumer_pop(other, 0, &item, &error));
    other = (blockring_consumer *)(void *)&item;
    EXPECT(BLOCKRING_INVALID_ARGUMENT, blockring_consumer_pop(other, 0, &item, &error));
    EXPECT(BLOCKRING_INVALID_ARGUMENT, blockring_producer_push(producer, NULL, 1, NULL, &error));
    EXPECT(BLOCKRING_INVALID_ARGUMENT,
           blockring_producer_push_batch(producer, &wrong, 1, NULL, &error));
    EXPECT(BLOCKRING_INVALID_ARGUMENT,
           blockring_producer_push_batch(producer, &huge, 1, NULL, &error));
    EXPECT(BLOCKRING_INVALID_ARGUMENT,
           blockring_producer_push_batch(producer, &wrong, SIZE_MAX, NULL, &error));
    EXPECT(BLOCKRING_INVALID_ARGUMENT, blockring_producer_advance(producer, 3, &error));
    EXPECT(BLOCKRING_INVALID_ARGUMENT, blockring_producer_set_durability(producer, 9, &error));
    EXPECT(BLOCKRING_OK,
           blockring_producer_set_durability(producer, BLOCKRING_PAGE_CACHE, &error));
    EXPECT(BLOCKRING_OK, blockring_consumer_set_durability(consumer, BLOCKRING_ORDERED, &error));
    EXPECT(BLOCKRING_INVALID_ARGUMENT,
           blockring_consumer_fold(consumer, 0, NULL, NULL, NULL, &error));
    EXPECT(BLOCKRING_INVALID_ARGUMENT, blockring_producer_reserve(producer, 4, NULL, &error));
    EXPECT(BLOCKRING_INVALID_ARGUMENT,
           blockring_producer_attach(path, "", "", &options, &producer, &error));
    options.flags = 0;
    options.reserved[0] = 1;
    EXPECT(BLOCKRING_INVALID_ARGUMENT, blockring_create(path, &options, NULL, &error));
    EXPECT(BLOCKRING_INVALID_ARGUMENT,
           blockring_producer_attach(NULL, "", "", NULL, &producer, &error));
    EXPECT(BLOCKRING_INVALID_ARGUMENT,
           blockring_consumer_attach(path, NULL, NULL, NULL, NULL, &error));

    EXPECT(BLOCKRING_OK, blockring_producer_detach(producer, &error));
    EXPECT(BLOCKRING_DETACHED, blockring_producer_push(producer, "x", 1, NULL, &error));
    EXPECT(BLOCKRING_OK, blockring_producer_detach(producer, &error));
    CHECK(blockring_producer_free(&producer) == BLOCKRING_OK && producer == NULL);
    CHECK(blockring_producer_free(&producer) == BLOCKRING_OK);
    CHECK(blockring_producer_free(NULL) == BLOCKRING_OK);
    EXPECT(BLOCKRING_INVALID_ARGUMENT, blockring_producer_position(stale, &position, &error));
    producer = new_producer(path);
    EXPECT(BLOCKRING_INVALID_ARGUMENT, blockring_producer_position(stale, &position, &error));
    CHECK(blockring_producer_free(&stale) == BLOCKRING_INVALID_ARGUMENT && stale == NULL);
    EXPECT(BLOCKRING_OK, blockring_producer_position(producer, &position, &error));
    CHECK(blockring_producer_free(&producer) == BLOCKRING_OK);
    EXPECT(BLOCKRING_OK, blockring_consumer_detach(consumer, &error));
    EXPECT(BLOCKRING_DETACHED, blockring_consumer_pop(consumer, 0, &item, &error));
    CHECK(blockring_consumer_free(&consumer) == BLOCKRING_OK);
}

static void forked_child_leaves_its_parents_handles_alone(const char *folder)
{
    const char *path = new_ring(folder, "fork", MIB);
    blockring_producer *producer = new_producer(path), *second = NULL;
    blockring_consumer *consumer = new_consumer(path);
    uint64_t end = 0;
    int status = 1;
    pid_t child = fork();
    if (child == 0) {
        EXPECT(BLOCKRING_DETACHED, blockring_producer_push(producer, "x", 1, &end, &error));
        CHECK(blockring_producer_free(&producer) == BLOCKRING_OK && producer == NULL);
        CHECK(blockring_consumer_free(&consumer) == BLOCKRING_OK && consumer == NULL);
        EXPECT(BLOCKRING_ROLE_TAKEN,
               blockring_producer_attach(path, "", "", NULL, &producer, &error));
        /* A ring of its own. */
        producer = new_producer(new_ring(folder, "child", MIB));
        EXPECT(BLOCKRING_OK, blockring_producer_push(producer, "x", 1, &end, &error));
        CHECK(blockring_producer_free(&producer) == BLOCKRING_OK);
        exit(0);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    EXPECT(BLOCKRING_OK, blockring_producer_push(producer, "x", 1, &end, &error));
    EXPECT(BLOCKRING_OK, blockring_producer_advance(producer, end, &error));
    EXPECT(BLOCKRING_ROLE_TAKEN, blockring_producer_attach(path, "", "", NULL, &second, &error));
    CHECK(blockring_consumer_free(&consumer) == BLOCKRING_OK);
    CHECK(blockring_producer_free(&producer) == BLOCKRING_OK);
}

int main(int count, char **arguments)
{
    const char *folder = arguments[1];
    CHECK(count == 2);
    items_arrive_in_order_after_an_advance(folder);
    batches_rooms_and_folds(folder);
    errors_have_names_and_details(folder);
    suspend_and_resume(folder);
    waits_and_descriptors(folder);
    positions_are_text();
    handle_is_used_by_one_thread_at_a_time(folder);
    misuse_is_answered(folder);
    forked_child_leaves_its_parents_handles_alone(folder);
    puts("ok");
    return 0;
}
