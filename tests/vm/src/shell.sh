#!/bin/busybox sh
# The first program of a guest for people: what vfio-pci needs is loaded, then there is a shell.
/bin/busybox mkdir -p /usr/bin /usr/sbin /sbin
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/ TERM=${TERM:-linux} PS1='guest# '
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
for module in /modules/*.ko; do insmod $module || echo "insmod $module: $?"; done
echo
echo "This is the guest. Its PCI devices that offmap knows:"
echo
offmap device list
echo
echo "The machine ends when you leave this shell (exit)."
setsid cttyhack sh
poweroff -f
