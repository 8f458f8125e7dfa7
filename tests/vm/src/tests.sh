#!/bin/busybox sh
# The first program of the guest. What it prints goes to the second serial port, as sections
# between ::BEGIN and ::END lines, the last with the exit status and the milliseconds.
/bin/busybox mkdir -p /usr/bin /usr/sbin /sbin
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin TERM=dumb
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
exec > /dev/ttyS1 2>&1
stty raw -echo 2> /dev/null

ms() { awk '{ printf "%d", $1 * 1000 }' /proc/uptime; }
section() { # name, command...
    name=$1
    shift
    echo "::BEGIN $name"
    from=$(ms)
    "$@"
    status=$?
    echo "::END $name status=$status ms=$(($(ms) - from))"
}

for module in /modules/*.ko; do insmod $module || echo "insmod $module: $?"; done
for folder in /sys/bus/pci/devices/*; do
    [ "$(cat $folder/vendor):$(cat $folder/device)" = 0x1af4:0x10f0 ] || continue
    case $(cat $folder/numa_node) in
        1) FAR=${folder##*/} ;;
        *) NEAR=${folder##*/} ;;
    esac
done
echo "::UP near=$NEAR far=$FAR ms=$(ms)"

check() { offmap device test --device vfio:$1 --only interrupts; }

# A load that is under way, and has been for a second of processor time: it has left behind what it says to
# the NIC by messages when it starts. Its process is $LOAD, and what it prints goes to descriptor 3.
exec 3>&1
work() { # name, address
    offmap demo --device vfio:$2 --operations 1000000000 >&3 2>&1 &
    LOAD=$!
    until [ "$(awk '{ print $14 + $15 }' /proc/$LOAD/stat)" -gt 100 ]; do
        kill -0 $LOAD || return
        sleep 0.1
    done
    echo "::WORKS $1"
}

load() { work load $1; wait $LOAD; }

unplugged() { work unplugged $1; wait $LOAD; }

# The kernel takes the device back while it is at work.
removed() {
    work removed $1
    (echo 1 > /sys/bus/pci/devices/$1/remove; echo "::REMOVED") &
    wait $LOAD
    ended=$?
    wait
    return $ended
}

# The process that served the device is killed. The kernel waits a minute for such a device before the
# last process that had it open can end, so what was printed is all that is waited for.
killed() {
    work killed $1 3> /tmp/killed
    for second in $(seq 60); do
        sleep 1
        grep -q "The device is GONE" /tmp/killed && break
    done
    cat /tmp/killed
    grep -q "The device is GONE" /tmp/killed && return 1
}

# Where the kernel has the pages of the driver's DMA memory, while it works at the far node.
pages() {
    work pages $FAR 3> /tmp/pages
    grep offmap-dma /proc/$LOAD/numa_maps
    kill -9 $LOAD
    wait $LOAD
}

section bind offmap device bind $NEAR
section bind offmap device bind $FAR
case $(cat /proc/cmdline) in
    *scenario=suite*)
        section list offmap device list --json
        section suite offmap device test --device vfio:$NEAR --json
        section demo offmap demo --device vfio:$FAR --operations 2000 --json
        section pages pages
        section unbind offmap device unbind $FAR
        section unbound offmap demo --device vfio:$FAR
        ;;
    *scenario=load*)
        section load load $NEAR
        ;;
    *scenario=deaths*)
        section again check $NEAR
        section removed removed $NEAR
        echo 1 > /sys/bus/pci/rescan
        section bind offmap device bind $NEAR
        section back check $NEAR
        section killed killed $FAR
        section unplugged unplugged $NEAR
        ;;
esac
echo ::DONE
poweroff -f
