/*
 * blockring.h: a crash-safe queue on a block device, with one producer and one consumer.
 *
 * A ring is made once. A producer pushes items, which nobody sees, and advances, which publishes
 * them: from then on they survive any crash. A consumer pops an item, the same one every time, and
 * advances once it was dealt with, which frees its space. Nothing waits but the functions whose
 * name says so. docs/c.md is the introduction, with examples.
 *
 * Answers. Each function returns a blockring_code, BLOCKRING_OK or the reason why not. The last
 * argument of most, `error`, may be NULL; otherwise it is filled in with the error's text and
 * details. A function that fails leaves its results as they were.
 *
 * Pointers. A pointer to results or to arguments is NULL where this is documented, or points to
 * memory for what it is declared to point to, aligned for it, which nobody else changes during the
 * call. A `const char *` is a text with a zero at its end. Nothing that a caller passes is kept
 * beyond the call.
 *
 * Handles. A handle is no address: one that is NULL, was freed, or is of another kind is answered
 * by BLOCKRING_INVALID_ARGUMENT, and freeing it twice is, too.
 *
 * Threads. Different handles are used by any threads at once. One handle is used by any thread, by
 * one at a time: a second one is answered by BLOCKRING_BUSY at once. What a handle has lent (an
 * item, room) ends with the next call with it, of whichever thread. A forked child has no handle of
 * its parent: each is answered by BLOCKRING_DETACHED there, and freeing it leaves the parent's as it
 * is. Nothing may be called from a signal handler.
 */


#ifndef BLOCKRING_H
#define BLOCKRING_H

/* Made by cargo test -p libblockring --test header: see there. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * Bytes of an error's text, with the zero at its end.
 */
#define BLOCKRING_TEXT_BYTES 960

/**
 * A number that is not known, such as the count of items in a plain ring.
 */
#define BLOCKRING_UNKNOWN UINT64_MAX

/**
 * Has a consumer's items of a ring that a backend hands over (unix:PATH) lie where the backend has
 * them, without a copy. Whoever sets this flag vouches for three things, for as long as the handle
 * lives. Whoever answers at the socket is a backend that keeps its word: where it says that the
 * ring is guarded, nobody changes what is published and not consumed. No backend serves the ring
 * without its guard. Nobody but the backend and this consumer changes the ring's file, by name,
 * descriptor or mapping, or makes it shorter. If that does not hold, the behaviour is undefined.
 * vhost-device-blockring keeps its word with --guard on, its default; see docs/security.md,
 * "Reading in place".
 */
#define BLOCKRING_LEND_IN_PLACE 1

/**
 * Allows addresses of PCI disks (pci:0000:00:04.0), which are refused without this flag. Such a
 * device goes by physical addresses. Whoever sets this flag vouches that the device keeps to the
 * standard, that no other program tells it where to write, and that the kernel leaves huge pages
 * where they are. If that does not hold, the behaviour is undefined. See docs/kernel-bypass.md.
 */
#define BLOCKRING_DRIVE_PCI 2

/**
 * Opens the device for reading only. For blockring_control_open alone.
 */
#define BLOCKRING_READ_ONLY 4

/**
 * Makes a ring without an identity, byte for byte as the OCaml library does. For blockring_create
 * alone.
 */
#define BLOCKRING_PLAIN 8

/**
 * Items are flushed before the pointer that publishes them, and the pointer before advance
 * returns: no power loss takes anything back.
 */
#define BLOCKRING_FLUSH 0

/**
 * The pointer is flushed by the next advance or flush: a power loss can take back the last
 * advance, and nothing else. Half of the flushes.
 */
#define BLOCKRING_ORDERED 1

/**
 * Nothing is flushed: safe against the death of any process, not against that of the machine.
 */
#define BLOCKRING_PAGE_CACHE 2

/**
 * Bytes of a pointer sector's text, with the zero at its end.
 */
#define BLOCKRING_SECTOR_TEXT_BYTES 256

/**
 * Bytes of a UUID as text, with the zero at its end.
 */
#define BLOCKRING_UUID_BYTES 40

/**
 * Bytes that hold any position as text, with the zero at its end.
 */
#define BLOCKRING_POSITION_BYTES 24

/**
 * The answer of a call. Their numbers stay.
 */
enum blockring_code
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * The call has done its work.
   */
  BLOCKRING_OK = 0,
  /**
   * No item to pop, no room to push, or a suspend or resume that still waits for its
   * acknowledgement: ask again later. blockring_consumer_wait, blockring_producer_wait.
   */
  BLOCKRING_RETRY = 1,
  /**
   * The consumer has suspended the ring.
   */
  BLOCKRING_SUSPENDED = 2,
  /**
   * The handle was detached.
   */
  BLOCKRING_DETACHED = 3,
  /**
   * A flush or the write of a pointer has failed through this handle, and it accepts nothing
   * more. See to the device, then attach again.
   */
  BLOCKRING_FAILED = 4,
  /**
   * Another instance of this process moved the ring, as after the restore of an older snapshot.
   * The handle goes on at the ring's position; positions from before are not its own.
   */
  BLOCKRING_SUPERSEDED = 5,
  /**
   * An item, or a batch, that is larger than an empty ring.
   */
  BLOCKRING_TOO_LARGE = 6,
  /**
   * A position to advance to that no push returned, or that lies outside of what is published
   * and not consumed.
   */
  BLOCKRING_INVALID_ADVANCE = 7,
  /**
   * A position to pop or fold from that is consumed already, or not published yet.
   */
  BLOCKRING_INVALID_START = 8,
  /**
   * Another handle has the role.
   */
  BLOCKRING_ROLE_TAKEN = 9,
  /**
   * The device holds no ring, or a damaged one.
   */
  BLOCKRING_FORMAT = 10,
  /**
   * An operation of the device failed.
   */
  BLOCKRING_DEVICE = 11,
  /**
   * An error that this version of the C library has no code for.
   */
  BLOCKRING_OTHER = 12,
  /**
   * The wait's time has passed.
   */
  BLOCKRING_TIMED_OUT = 20,
  /**
   * The descriptor that ends the wait is readable.
   */
  BLOCKRING_INTERRUPTED = 21,
  /**
   * An argument that is not as documented, a handle that was freed, or one of another kind.
   */
  BLOCKRING_INVALID_ARGUMENT = 30,
  /**
   * The handle is in another call: of another thread, or of the callback that it is calling.
   */
  BLOCKRING_BUSY = 31,
  /**
   * An error in the library itself. The handle can only be freed. Please report it.
   */
  BLOCKRING_PANIC = 32,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum blockring_code blockring_code;
#else
typedef int32_t blockring_code;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * A consumer; as for blockring_producer.
 */
typedef struct blockring_consumer blockring_consumer;

/**
 * A handle beside producer and consumer; as for blockring_producer.
 */
typedef struct blockring_control blockring_control;

/**
 * A producer. Never a pointer to follow: a stale one is answered, by BLOCKRING_INVALID_ARGUMENT.
 */
typedef struct blockring_producer blockring_producer;

/**
 * The details of a call's error. The caller owns the structure and passes its address, or NULL;
 * the call writes it. After success `code` is BLOCKRING_OK, the text is empty, and the other
 * fields mean nothing. It may be read later, by any thread.
 */
typedef struct {
  /**
   * What the call returned.
   */
  blockring_code code;
  /**
   * The operating system's error (errno), or 0.
   */
  int32_t os_error;
  /**
   * The first sector of the transfer that failed, or BLOCKRING_UNKNOWN.
   */
  uint64_t sector;
  /**
   * BLOCKRING_SUPERSEDED: the position of the ring, and of this handle now. Otherwise
   * BLOCKRING_UNKNOWN.
   */
  uint64_t position;
  /**
   * The start of a range, or BLOCKRING_UNKNOWN. BLOCKRING_SUPERSEDED: of what cannot be
   * accounted for. BLOCKRING_FORMAT: of damaged items. BLOCKRING_INVALID_ADVANCE: of the
   * positions to advance to. BLOCKRING_INVALID_START: of the items that are there.
   */
  uint64_t from;
  /**
   * The end of that range, or BLOCKRING_UNKNOWN. A consumer that advances to the end of damaged
   * items skips them.
   */
  uint64_t to;
  /**
   * BLOCKRING_ROLE_TAKEN: the process that has the role, or 0.
   */
  int64_t process;
  /**
   * Zero.
   */
  uint64_t reserved[2];
  /**
   * What failed, on what, and why, in UTF-8, without a line break. The middle of a longer text
   * is replaced by "...".
   */
  char text[BLOCKRING_TEXT_BYTES];
} blockring_error;

/**
 * How a ring is opened. All zero is the default: `blockring_options options = {0};`
 */
typedef struct {
  /**
   * Bytes in a sector of a ring in a file: a power of two from 512 to 65536; 0: 512. A device
   * has its own, and one that differs is an error.
   */
  uint32_t sector_size;
  /**
   * BLOCKRING_LEND_IN_PLACE and the others, or'ed.
   */
  uint32_t flags;
  /**
   * BLOCKRING_FLUSH, BLOCKRING_ORDERED or BLOCKRING_PAGE_CACHE.
   */
  int32_t durability;
  /**
   * Longest wait for the answer of a backend, in milliseconds; 0: 5000. Nothing else waits.
   */
  uint32_t patience_ms;
  /**
   * Zero.
   */
  uint64_t reserved[4];
} blockring_options;

/**
 * Bytes that the caller lends: an item to push. It is laid out as struct iovec is.
 */
typedef struct {
  /**
   * The first byte. It may be NULL if there are none.
   */
  const void *bytes;
  /**
   * The number of bytes.
   */
  size_t length;
} blockring_slice;

/**
 * The state of a ring as its sectors have it.
 */
typedef struct {
  /**
   * Bytes in a sector.
   */
  uint32_t sector_size;
  /**
   * The consumer's flag: whether the producer is to stop.
   */
  bool suspend;
  /**
   * The producer's flag: whether it has stopped.
   */
  bool suspend_ack;
  /**
   * Sectors on the device.
   */
  uint64_t total_sectors;
  /**
   * Bytes in the data area.
   */
  uint64_t capacity;
  /**
   * The producer's position: everything before it is published.
   */
  uint64_t producer;
  /**
   * The consumer's position: everything before it is consumed.
   */
  uint64_t consumer;
  /**
   * Bytes that are published and not consumed.
   */
  uint64_t used;
  /**
   * Items published since the ring was created, or BLOCKRING_UNKNOWN.
   */
  uint64_t producer_items;
  /**
   * Items consumed since the ring was created, or BLOCKRING_UNKNOWN.
   */
  uint64_t consumer_items;
  /**
   * Time of the producer's last advance, in nanoseconds since 1970, or BLOCKRING_UNKNOWN.
   */
  uint64_t producer_time_ns;
  /**
   * Time of the consumer's last advance, in nanoseconds since 1970, or BLOCKRING_UNKNOWN.
   */
  uint64_t consumer_time_ns;
  /**
   * Zero.
   */
  uint64_t reserved[8];
  /**
   * The ring's UUID; empty for a plain ring.
   */
  char uuid[BLOCKRING_UUID_BYTES];
  /**
   * The text of sector 1, made printable. The middle of a longer text is replaced by "...".
   */
  char producer_text[BLOCKRING_SECTOR_TEXT_BYTES];
  /**
   * The text of sector 2; as for sector 1.
   */
  char consumer_text[BLOCKRING_SECTOR_TEXT_BYTES];
} blockring_debug_info;

/**
 * An item that a consumer lends, until the next call with that consumer.
 */
typedef struct {
  /**
   * The first byte; not NULL, and not a text: there is no zero behind the last byte.
   */
  const void *bytes;
  /**
   * The number of bytes.
   */
  size_t length;
  /**
   * The position of the next item: to pop from, or to advance to.
   */
  uint64_t next;
} blockring_item;

/**
 * A function that is called with each item, which is lent for this call. It must return: neither
 * longjmp nor a C++ exception may leave it. A call with the handle that calls it is
 * BLOCKRING_BUSY.
 */
typedef void (*blockring_visitor)(void *context, const blockring_item *item);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Returns what a code means, as a text that stays; never NULL, for no number.
 */
const char *blockring_strerror(int32_t code);

/**
 * Returns the name of a code, such as "role_taken", the same in every language of the library;
 * never NULL.
 */
const char *blockring_code_name(int32_t code);

/**
 * Writes a position as text, for a log or a database: a decimal number, in an array of
 * BLOCKRING_POSITION_BYTES.
 */
blockring_code blockring_position_to_text(uint64_t at, char *text, blockring_error *error);

/**
 * Reads a position from the text that blockring_position_to_text wrote, and from no other:
 * BLOCKRING_INVALID_ARGUMENT.
 */
blockring_code blockring_position_from_text(const char *text, uint64_t *at, blockring_error *error);

/**
 * Returns the version of the library that is running, such as "0.1.0".
 */
const char *blockring_version(void);

/**
 * Makes a new file of `bytes` zero bytes for a ring, for this user only, with all of its space
 * allocated. The smallest ring takes 4 sectors: 2048 bytes. An existing file is an error
 * (BLOCKRING_DEVICE with EEXIST).
 */
blockring_code blockring_make_file(const char *path, uint64_t bytes, blockring_error *error);

/**
 * Makes an empty ring on the device with this address, unless a ring is there already, which
 * stays as it is. Anything else on the device is overwritten.
 *
 * `created` (may be NULL): whether a ring was made. `options`: NULL for the default.
 */
blockring_code blockring_create(const char *address,
                                const blockring_options *options,
                                bool *created,
                                blockring_error *error);

/**
 * Becomes the producer of the ring with this address: the path of a file or block device,
 * serial:NAME, unix:PATH, vhost-user:PATH or pci:0000:00:04.0, as on the command line.
 *
 * `queue` and `client` (may be NULL) are names for people who look at the ring. `options`: NULL
 * for the default. A pending suspend or resume is acknowledged. BLOCKRING_ROLE_TAKEN if the ring
 * has a producer.
 */
blockring_code blockring_producer_attach(const char *address,
                                         const char *queue,
                                         const char *client,
                                         const blockring_options *options,
                                         blockring_producer **producer,
                                         blockring_error *error);

/**
 * Adds an item behind those pushed before. The consumer sees it after an advance to `position`
 * (may be NULL) or beyond.
 *
 * BLOCKRING_RETRY for lack of room, BLOCKRING_SUSPENDED, BLOCKRING_TOO_LARGE,
 * BLOCKRING_SUPERSEDED.
 */
blockring_code blockring_producer_push(blockring_producer *producer,
                                       const void *bytes,
                                       size_t length,
                                       uint64_t *position,
                                       blockring_error *error);

/**
 * Adds all of `count` items, or none of them; otherwise as blockring_producer_push. An advance to
 * `position` publishes them at once, whatever crashes.
 */
blockring_code blockring_producer_push_batch(blockring_producer *producer,
                                             const blockring_slice *items,
                                             size_t count,
                                             uint64_t *position,
                                             blockring_error *error);

/**
 * Adds as many of `count` items as there is room for, at least one, and tells how many in
 * `pushed`; otherwise as blockring_producer_push.
 */
blockring_code blockring_producer_push_some(blockring_producer *producer,
                                            const blockring_slice *items,
                                            size_t count,
                                            size_t *pushed,
                                            uint64_t *position,
                                            blockring_error *error);

/**
 * Lends room for an item of `length` bytes, to be written by the caller and pushed by
 * blockring_producer_commit. What the room holds at first has no meaning. Any other call with the
 * handle gives the room up; nothing is pushed then. Errors are those of blockring_producer_push.
 */
blockring_code blockring_producer_reserve(blockring_producer *producer,
                                          size_t length,
                                          void **room,
                                          blockring_error *error);

/**
 * Pushes the first `length` bytes of the room that was reserved. `position` (may be NULL) is as
 * in blockring_producer_push.
 */
blockring_code blockring_producer_commit(blockring_producer *producer,
                                         size_t length,
                                         uint64_t *position,
                                         blockring_error *error);

/**
 * Publishes everything before `to`, a position that a push returned: after BLOCKRING_OK it
 * survives any crash, as far as the durability says.
 *
 * BLOCKRING_SUSPENDED: what was pushed stays, and can be advanced over after the resume.
 * BLOCKRING_INVALID_ADVANCE, BLOCKRING_SUPERSEDED, BLOCKRING_ROLE_TAKEN. After BLOCKRING_DEVICE of
 * a flush or of the pointer the handle has failed.
 */
blockring_code blockring_producer_advance(blockring_producer *producer,
                                          uint64_t to,
                                          blockring_error *error);

/**
 * Makes durable what was advanced over and, still unpublished, what was pushed beyond that.
 */
blockring_code blockring_producer_flush(blockring_producer *producer, blockring_error *error);

/**
 * Looks at the ring, acknowledges a suspend or resume, and tells whether the ring is
 * suspended.
 */
blockring_code blockring_producer_state(blockring_producer *producer,
                                        bool *suspended,
                                        blockring_error *error);

/**
 * Sets what blockring_producer_advance waits for: BLOCKRING_FLUSH, BLOCKRING_ORDERED or
 * BLOCKRING_PAGE_CACHE.
 */
blockring_code blockring_producer_set_durability(blockring_producer *producer,
                                                 int32_t flushes,
                                                 blockring_error *error);

/**
 * Reads the state of the ring from its sectors.
 */
blockring_code blockring_producer_debug_info(blockring_producer *producer,
                                             blockring_debug_info *info,
                                             blockring_error *error);

/**
 * Tells the position of the next item to be pushed.
 */
blockring_code blockring_producer_position(blockring_producer *producer,
                                           uint64_t *position,
                                           blockring_error *error);

/**
 * Tells the positions between which an advance that failed may have published items all the
 * same. The two are equal if nothing is in doubt.
 */
blockring_code blockring_producer_in_doubt(blockring_producer *producer,
                                           uint64_t *from,
                                           uint64_t *to,
                                           blockring_error *error);

/**
 * Asks whether the ring is still the one that was attached to: neither removed, replaced, moved
 * nor resized. BLOCKRING_DEVICE if not.
 */
blockring_code blockring_producer_check_presence(blockring_producer *producer,
                                                 blockring_error *error);

/**
 * Gives up the role. Every later call but blockring_producer_free answers BLOCKRING_DETACHED, or
 * tells what it knows without the ring.
 */
blockring_code blockring_producer_detach(blockring_producer *producer, blockring_error *error);

/**
 * Frees a producer, and sets the handle to NULL; nothing happens if it is NULL. Items that were
 * pushed and not advanced over are lost.
 */
blockring_code blockring_producer_free(blockring_producer **producer);

/**
 * Waits until there is room for `count` items together, and the ring is not suspended. Only the
 * lengths of the items are looked at. Without items it waits until the ring is not suspended.
 *
 * `timeout_ms`: the longest wait; negative: no limit; 0: one look. `interrupt_fd`: a descriptor
 * that ends the wait when it is readable (BLOCKRING_INTERRUPTED), or -1. BLOCKRING_TIMED_OUT;
 * BLOCKRING_TOO_LARGE; and the errors of blockring_producer_push. The wait sleeps where the other
 * side can wake it, and looks now and then where not.
 */
blockring_code blockring_producer_wait(blockring_producer *producer,
                                       const blockring_slice *items,
                                       size_t count,
                                       int64_t timeout_ms,
                                       int32_t interrupt_fd,
                                       blockring_error *error);

/**
 * Tells the descriptor that a program with an event loop waits for: see
 * blockring_producer_arm. It belongs to the handle, which closes it. From then on
 * blockring_producer_wait is refused.
 */
blockring_code blockring_producer_fd(blockring_producer *producer,
                                     int32_t *descriptor,
                                     blockring_error *error);

/**
 * Prepares the descriptor, after a call has answered BLOCKRING_RETRY or BLOCKRING_SUSPENDED. With
 * `again` the program looks at the ring again at once. Without it the descriptor becomes readable
 * when it is time to look again, and stays so until it is prepared anew; nothing is to be read
 * from it.
 */
blockring_code blockring_producer_arm(blockring_producer *producer,
                                      bool *again,
                                      blockring_error *error);

/**
 * Becomes the consumer of the ring with this address; otherwise as blockring_producer_attach.
 * Items are copied, unless BLOCKRING_LEND_IN_PLACE is set. BLOCKRING_ROLE_TAKEN if the ring has a
 * consumer.
 */
blockring_code blockring_consumer_attach(const char *address,
                                         const char *queue,
                                         const char *client,
                                         const blockring_options *options,
                                         blockring_consumer **consumer,
                                         blockring_error *error);

/**
 * Looks at the item at `from`: the same one every time. The item is lent until the next call with
 * the handle. The first one is at blockring_consumer_position, each further one at the `next` of
 * the one before.
 *
 * BLOCKRING_RETRY: there is none yet. BLOCKRING_INVALID_START. BLOCKRING_FORMAT for items that are
 * not what the producer wrote, which an advance to the error's `to` skips. BLOCKRING_SUPERSEDED.
 */
blockring_code blockring_consumer_pop(blockring_consumer *consumer,
                                      uint64_t from,
                                      blockring_item *item,
                                      blockring_error *error);

/**
 * Calls `visit` with each published item from `from` on, and tells in `end` the position behind
 * the last one, to advance to. It is the fastest way to read many items. No item at `from` is no
 * error: `end` is `from` then. Errors are those of blockring_consumer_pop; some items may have
 * been visited by then.
 */
blockring_code blockring_consumer_fold(blockring_consumer *consumer,
                                       uint64_t from,
                                       blockring_visitor visit,
                                       void *context,
                                       uint64_t *end,
                                       blockring_error *error);

/**
 * Frees the space of everything before `to`: those items were dealt with, and do not come again.
 *
 * BLOCKRING_INVALID_ADVANCE for a position that is no end of an item. After BLOCKRING_DEVICE of a
 * flush or of the pointer the handle has failed.
 */
blockring_code blockring_consumer_advance(blockring_consumer *consumer,
                                          uint64_t to,
                                          blockring_error *error);

/**
 * Has blockring_consumer_advance keep the pointer back until `bytes` can be freed at once, half of
 * the ring at most. It is also written when there is nothing more to pop, by
 * blockring_consumer_flush, and when the consumer is detached or freed. What was advanced over
 * since then comes again after a crash.
 */
blockring_code blockring_consumer_advance_every(blockring_consumer *consumer,
                                                uint64_t bytes,
                                                blockring_error *error);

/**
 * Writes the pointer that blockring_consumer_advance_every has kept back.
 */
blockring_code blockring_consumer_flush(blockring_consumer *consumer, blockring_error *error);

/**
 * Asks the producer to stop. BLOCKRING_RETRY while it has not acknowledged the previous change.
 */
blockring_code blockring_consumer_suspend(blockring_consumer *consumer, blockring_error *error);

/**
 * Lets the producer go on; as blockring_consumer_suspend.
 */
blockring_code blockring_consumer_resume(blockring_consumer *consumer, blockring_error *error);

/**
 * Tells whether the producer has acknowledged a suspend.
 */
blockring_code blockring_consumer_state(blockring_consumer *consumer,
                                        bool *suspended,
                                        blockring_error *error);

/**
 * Sets what blockring_consumer_advance waits for: BLOCKRING_FLUSH, BLOCKRING_ORDERED or
 * BLOCKRING_PAGE_CACHE.
 */
blockring_code blockring_consumer_set_durability(blockring_consumer *consumer,
                                                 int32_t flushes,
                                                 blockring_error *error);

/**
 * Reads the state of the ring from its sectors.
 */
blockring_code blockring_consumer_debug_info(blockring_consumer *consumer,
                                             blockring_debug_info *info,
                                             blockring_error *error);

/**
 * Tells the position of the first item that was not advanced over: to start popping at.
 */
blockring_code blockring_consumer_position(blockring_consumer *consumer,
                                           uint64_t *position,
                                           blockring_error *error);

/**
 * Asks whether the ring is still the one that was attached to: neither removed, replaced, moved
 * nor resized. BLOCKRING_DEVICE if not.
 */
blockring_code blockring_consumer_check_presence(blockring_consumer *consumer,
                                                 blockring_error *error);

/**
 * Gives up the role. Every later call but blockring_consumer_free answers BLOCKRING_DETACHED, or
 * tells what it knows without the ring.
 */
blockring_code blockring_consumer_detach(blockring_consumer *consumer, blockring_error *error);

/**
 * Frees a consumer, and sets the handle to NULL; nothing happens if it is NULL.
 */
blockring_code blockring_consumer_free(blockring_consumer **consumer);

/**
 * Waits until there is an item at `from`.
 *
 * `timeout_ms`: the longest wait; negative: no limit; 0: one look. `interrupt_fd`: a descriptor
 * that ends the wait when it is readable (BLOCKRING_INTERRUPTED), or -1. BLOCKRING_TIMED_OUT; and
 * the errors of blockring_consumer_pop. The wait sleeps where the other side can wake it, and
 * looks now and then where not. A signal does not end it: give it a descriptor that the handler
 * writes to.
 */
blockring_code blockring_consumer_wait(blockring_consumer *consumer,
                                       uint64_t from,
                                       int64_t timeout_ms,
                                       int32_t interrupt_fd,
                                       blockring_error *error);

/**
 * Waits until the producer has acknowledged a suspend (`suspended`) or a resume. Time and
 * descriptor are as in blockring_consumer_wait.
 */
blockring_code blockring_consumer_wait_state(blockring_consumer *consumer,
                                             bool suspended,
                                             int64_t timeout_ms,
                                             int32_t interrupt_fd,
                                             blockring_error *error);

/**
 * Tells the descriptor that a program with an event loop waits for: see blockring_consumer_arm.
 * It belongs to the handle, which closes it. From then on blockring_consumer_wait is refused.
 */
blockring_code blockring_consumer_fd(blockring_consumer *consumer,
                                     int32_t *descriptor,
                                     blockring_error *error);

/**
 * Prepares the descriptor, after blockring_consumer_pop has answered BLOCKRING_RETRY or a fold has
 * found nothing. With `again` the program looks at the ring again at once. Without it the
 * descriptor becomes readable when it is time to look again, and stays so until it is prepared
 * anew; nothing is to be read from it.
 */
blockring_code blockring_consumer_arm(blockring_consumer *consumer,
                                      bool *again,
                                      blockring_error *error);

/**
 * Opens the ring with this address beside its producer and consumer: to look at it, to suspend and
 * to resume it. `options`: NULL for the default.
 */
blockring_code blockring_control_open(const char *address,
                                      const blockring_options *options,
                                      blockring_control **control,
                                      blockring_error *error);

/**
 * Reads the state of the ring from its sectors.
 */
blockring_code blockring_control_debug_info(blockring_control *control,
                                            blockring_debug_info *info,
                                            blockring_error *error);

/**
 * Tells whether the producer has acknowledged a suspend.
 */
blockring_code blockring_control_state(blockring_control *control,
                                       bool *suspended,
                                       blockring_error *error);

/**
 * Asks the producer to stop. BLOCKRING_RETRY while it has not acknowledged the previous change.
 */
blockring_code blockring_control_suspend(blockring_control *control, blockring_error *error);

/**
 * Lets the producer go on; as blockring_control_suspend.
 */
blockring_code blockring_control_resume(blockring_control *control, blockring_error *error);

/**
 * Waits until the producer has acknowledged a suspend (`suspended`) or a resume. Time and
 * descriptor are as in blockring_consumer_wait.
 */
blockring_code blockring_control_wait_state(blockring_control *control,
                                            bool suspended,
                                            int64_t timeout_ms,
                                            int32_t interrupt_fd,
                                            blockring_error *error);

/**
 * Frees a control, and sets the handle to NULL; nothing happens if it is NULL.
 */
blockring_code blockring_control_free(blockring_control **control);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* BLOCKRING_H */
