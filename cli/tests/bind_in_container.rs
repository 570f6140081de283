//! `blockring bind` where `/sys` is read-only, as in a container. (As root.)
#![allow(clippy::unwrap_used)]

use crate::common::machine::succeed;

#[test]
fn bind_and_unbind_say_that_sysfs_is_read_only() {
    succeed(
        r#"device=/sys/bus/pci/devices/0000:00:04.0
        mount -t tmpfs none /sys
        mkdir -p "$device" /sys/bus/pci/drivers/virtio-pci
        echo 0x1af4 > "$device/vendor"
        echo 0x1042 > "$device/device"
        echo > "$device/driver_override"
        echo > "$device/config"
        must 0 "echo none" "$RING" bind --dry-run 00:04.0
        mount -o remount,ro /sys
        for command in bind unbind; do
            must 1 "/sys is mounted read-only" "$RING" "$command" 0000:00:04.0
            must 1 "run this command on the host" "$RING" "$command" pci:0000:00:04.0
        done"#,
    );
}
