#!/bin/sh
# The last words of a program that crashes, as an item of a ring: they are safe on the host before the kernel lets go of the program,
# whatever becomes of the guest then.
#
# In the guest, as root, with this file as /usr/local/bin/last-words (it has to be named by its path from the root):
#   echo 8 >/proc/sys/kernel/core_pipe_limit
#   echo '|/usr/local/bin/last-words %P %s %e' >/proc/sys/kernel/core_pattern
# The first line has the kernel keep the program until this ends, so that /proc still shows it.
#
# usage: last-words PID SIGNAL NAME, with the core dump as standard input
pid=$1 signal=$2 name=$3
{
    printf 'crash program=%s pid=%s signal=%s at=%s\n' "$name" "$pid" "$signal" "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
    printf 'command: %s\n' "$(tr '\0' ' ' <"/proc/$pid/cmdline")"
    grep -E '^(PPid|Uid|VmPeak|VmRSS|Threads):' "/proc/$pid/status"
    echo 'memory:'
    cat "/proc/$pid/maps"
    echo 'kernel:'
    dmesg | tail -n 20
} | blockring produce --framing whole --on-too-large split --timeout 30 serial:last-words
# The core dump itself is thrown away. `gzip | blockring produce --framing whole --on-too-large split …` would send it.
