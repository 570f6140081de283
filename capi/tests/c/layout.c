/* Sizes and offsets of the structures, which are part of the ABI: a change here breaks programs that were compiled before. */
#include <blockring.h>
#include <stddef.h>
#include <sys/uio.h>

#ifndef __cplusplus
#define static_assert _Static_assert
#endif
#define AT(type, member, offset) static_assert(offsetof(type, member) == offset, #type "." #member)

static_assert(sizeof(blockring_code) == 4, "an answer");

static_assert(sizeof(blockring_error) == 1024, "an error");
AT(blockring_error, code, 0);
AT(blockring_error, os_error, 4);
AT(blockring_error, sector, 8);
AT(blockring_error, position, 16);
AT(blockring_error, from, 24);
AT(blockring_error, to, 32);
AT(blockring_error, process, 40);
AT(blockring_error, text, 64);

static_assert(sizeof(blockring_options) == 48, "options");
AT(blockring_options, sector_size, 0);
AT(blockring_options, flags, 4);
AT(blockring_options, durability, 8);
AT(blockring_options, patience_ms, 12);
AT(blockring_options, reserved, 16);

static_assert(sizeof(blockring_slice) == sizeof(struct iovec), "bytes to push");
AT(blockring_slice, bytes, offsetof(struct iovec, iov_base));
AT(blockring_slice, length, offsetof(struct iovec, iov_len));

static_assert(sizeof(blockring_item) == 24, "an item");
AT(blockring_item, bytes, 0);
AT(blockring_item, length, 8);
AT(blockring_item, next, 16);

static_assert(sizeof(blockring_debug_info) == 696, "the state of a ring");
AT(blockring_debug_info, sector_size, 0);
AT(blockring_debug_info, suspend, 4);
AT(blockring_debug_info, suspend_ack, 5);
AT(blockring_debug_info, total_sectors, 8);
AT(blockring_debug_info, capacity, 16);
AT(blockring_debug_info, producer, 24);
AT(blockring_debug_info, consumer, 32);
AT(blockring_debug_info, used, 40);
AT(blockring_debug_info, producer_items, 48);
AT(blockring_debug_info, consumer_items, 56);
AT(blockring_debug_info, producer_time_ns, 64);
AT(blockring_debug_info, consumer_time_ns, 72);
AT(blockring_debug_info, uuid, 144);
AT(blockring_debug_info, producer_text, 184);
AT(blockring_debug_info, consumer_text, 440);

static_assert(BLOCKRING_RETRY == 1 && BLOCKRING_DEVICE == 11 && BLOCKRING_PANIC == 32, "codes");

int main(void)
{
    return 0;
}
