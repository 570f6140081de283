/* Handles that come and go leave nothing behind: capi/tests/api.rs. */
#include "check.h"

#include <dirent.h>
#include <unistd.h>

#define CYCLES 10000

static long descriptors(void)
{
    long count = 0;
    DIR *folder = opendir("/proc/self/fd");
    CHECK(folder != NULL);
    while (readdir(folder) != NULL)
        count++;
    closedir(folder);
    return count;
}

/* Pages of this process in memory that are its own. */
static long pages(void)
{
    long total = 0, resident = 0, shared = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file != NULL && fscanf(file, "%ld %ld %ld", &total, &resident, &shared) == 3);
    fclose(file);
    return resident - shared;
}

int main(int count, char **arguments)
{
    long open_before = 0, pages_before = 0;
    const char *path;
    CHECK(count == 2);
    path = new_ring(arguments[1], "cycles", 8192);
    for (int cycle = 0; cycle < CYCLES; cycle++) {
        blockring_producer *producer = new_producer(path);
        blockring_consumer *consumer = new_consumer(path);
        int descriptor = -1;
        uint64_t end = 0;
        if (cycle % 100 == 0)
            EXPECT(BLOCKRING_OK, blockring_consumer_fd(consumer, &descriptor, &error));
        EXPECT(BLOCKRING_OK, blockring_producer_push(producer, "x", 1, &end, &error));
        blockring_producer_free(&producer);
        blockring_consumer_free(&consumer);
        if (cycle == CYCLES / 10) {
            open_before = descriptors();
            pages_before = pages();
        }
    }
    CHECK(descriptors() == open_before);
    /* The allocator may need a little more in the meantime; an object left behind would be more. */
    CHECK(pages() - pages_before < 64);
    puts("ok");
    return 0;
}
