"""Devices, and what /proc and /sys let root do to the machine. Files are opened, and nothing more."""

from __future__ import annotations

from tests.escape.payload import Payload

DEVICES = (
    "mem",
    "kmem",
    "port",
    "vda",
    "sda",
    "nvme0n1",
    "kvm",
    "fuse",
    "net/tun",
    "loop-control",
    "loop0",
    "uinput",
    "kmsg",
    "console",
    "ptmx",
    "vhost-net",
    "vsock",
    "mapper/control",
    "dri/card0",
    "tty",
    "userfaultfd",
    "hpet",
)
WRITE, READ = "os.O_WRONLY", "os.O_RDONLY"
FILES = {
    "/proc/kcore": READ, "/proc/sysrq-trigger": WRITE, "/proc/sys/kernel/core_pattern": WRITE,
    "/proc/sys/kernel/modprobe": WRITE, "/proc/sys/vm/drop_caches": WRITE, "/proc/sys/kernel/ns_last_pid": WRITE,
    "/proc/sys/fs/binfmt_misc/register": WRITE, "/proc/kallsyms": READ, "/proc/kmsg": READ, "/proc/timer_list": READ,
    "/proc/partitions": READ, "/proc/net/unix": READ, "/proc/self/net/tcp": READ, "/proc/interrupts": READ,
    "/proc/irq/default_smp_affinity": WRITE, "/proc/scsi/scsi": WRITE, "/proc/keys": READ, "/proc/modules": READ,
    "/sys/kernel/uevent_helper": WRITE, "/sys/power/state": WRITE, "/sys/kernel/vmcoreinfo": READ,
    "/sys/fs/cgroup/cgroup.procs": WRITE, "/sys/fs/cgroup/memory/release_agent": WRITE,
    "/sys/kernel/debug": READ, "/sys/firmware": READ, "/sys/class/net": READ, "/sys/module": READ,
    "/proc/cmdline": READ, "/etc/shadow": READ, "/var/log": READ, "/run": READ,
    "/boot": READ, "/etc/ssh": READ,
}  # fmt: skip
OWN_NAMES = ("/proc/self/net/tcp",)  # of its own network, where it has one

PAYLOADS = [
    *(
        Payload(
            f"device-{name.replace('/', '-')}", f"opens /dev/{name}", f"opens('/dev/{name}', os.O_RDWR)", none="either"
        )
        for name in DEVICES
    ),
    *(
        Payload(
            f"open{path.replace('/', '-')}",
            f"opens {path}",
            f"opens({path!r}, {how})",
            none="either",
            holds=("landlock",) if path in OWN_NAMES else ("namespace", "landlock"),
        )
        for path, how in FILES.items()
    ),
    *(
        Payload(f"first-{name}", f"opens /proc/1/{name}", f"opens('/proc/1/{name}', os.O_RDONLY)", none="not run")
        for name in ("mem", "environ", "root", "cwd", "exe", "fd", "maps", "ns/mnt")
    ),
    Payload(
        "device-made",
        "makes a device of its own and opens it",
        "with decisive:\n    os.mknod('disk', 0o600 | stat.S_IFBLK, os.makedev(254, 0))\n    got('made')",
        none="either",
    ),
    Payload(
        "device-made-at",
        "the same by another call, a character device",
        "with decisive:\n    call(259, -100, b'memory', 0o020600, os.makedev(1, 1))\n    got('made')",
        none="either",
    ),
    Payload(
        "disk-by-number",
        "finds the machine's disk and opens it",
        """
with decisive:
    for name in os.listdir("/dev"):
        told = os.stat("/dev/" + name)
        if stat.S_ISBLK(told.st_mode):
            os.close(os.open("/dev/" + name, os.O_RDONLY))
            got("opened", name)
            break
""",
        none="either",
    ),
    Payload(
        "mounts",
        "reads where the machine's folders are mounted",
        """
with decisive:
    told = open("/proc/self/mountinfo").read()
    if "/var/tmp" in told or "cgroup" in told or "sysfs" in told:
        got("mounts of the machine")
""",
        none="either",
    ),
]
