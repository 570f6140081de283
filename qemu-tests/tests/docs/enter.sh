#!/bin/bash
# Runs a command in namespaces of its own (see unshare in session.rs), where nothing that a reader of the documents would do
# reaches this machine: what is written to /etc, /usr and /var is gone at the end, and so is every process. This shell is the
# first process there, and reaps what is left by others.
# enter.sh WORKSPACE PROGRAMS COMMAND...
set -eu
workspace=$1 programs=$2
shift 2
mount -t proc proc /proc
mount -t tmpfs tmpfs /mnt
for folder in etc usr var; do
    mkdir -p "/mnt/overlays/$folder/upper" "/mnt/overlays/$folder/work"
    mount -t overlay overlay -o "lowerdir=/$folder,upperdir=/mnt/overlays/$folder/upper,workdir=/mnt/overlays/$folder/work" "/$folder"
done
mount -t tmpfs tmpfs /run
ip link set lo up
# What the packages bring.
ln -sf "$programs/blockring" "$programs/vhost-device-blockring" /usr/bin/
cp "$workspace"/packaging/systemd/*.service "$workspace"/packaging/systemd/*.socket /usr/lib/systemd/system/
echo 'blockring:x:64999:64999::/var/lib/blockring:/usr/sbin/nologin' >>/etc/passwd
echo 'blockring:x:64999:' >>/etc/group
mkdir -p /run/blockring /etc/blockring/rings.d /var/lib/blockring/forward /mnt/home /mnt/page
export TMPDIR=/mnt
"$@"
exit
