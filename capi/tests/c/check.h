/* What the test programs share: checks that name the line. */
#ifndef CHECK_H
#define CHECK_H

#include <blockring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* The call has to answer `wanted`. It is given `&error`, whose code and text have to agree. */
#define EXPECT(wanted, call)                                                                       \
    do {                                                                                           \
        int32_t answer_ = (call);                                                                  \
        if (answer_ != (wanted)) {                                                                 \
            fprintf(stderr, "%s:%d: %s answers %s: %s\n", __FILE__, __LINE__, #call,               \
                    blockring_code_name(answer_), error.text);                                     \
            exit(1);                                                                               \
        }                                                                                          \
        CHECK(error.code == (wanted) && (error.text[0] == 0) == ((wanted) == BLOCKRING_OK));       \
    } while (0)

static blockring_error error;

/* Makes `name` in the folder a path, and a ring there. */
static inline const char *new_ring(const char *folder, const char *name, uint64_t bytes)
{
    static char path[4096];
    bool created = false;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    EXPECT(BLOCKRING_OK, blockring_make_file(path, bytes, &error));
    EXPECT(BLOCKRING_OK, blockring_create(path, NULL, &created, &error));
    CHECK(created);
    return path;
}

static inline blockring_producer *new_producer(const char *path)
{
    blockring_producer *producer = NULL;
    EXPECT(BLOCKRING_OK, blockring_producer_attach(path, "logs", "web-1", NULL, &producer, &error));
    return producer;
}

static inline blockring_consumer *new_consumer(const char *path)
{
    blockring_consumer *consumer = NULL;
    EXPECT(BLOCKRING_OK,
           blockring_consumer_attach(path, "logs", "collector", NULL, &consumer, &error));
    return consumer;
}

#endif
