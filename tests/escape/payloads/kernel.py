"""Calls whose code in the kernel is nothing for strangers. Their arguments do nothing where they arrive."""

from __future__ import annotations

from tests.escape.payload import AtNone, Payload

# name, number, arguments, what happens without a sandbox
CALLS: list[tuple[str, int, str, AtNone]] = [
    ("io_uring_setup", 425, "8, bytes(120)", "either"),
    ("io_uring_enter", 426, "-1, 0, 0, 0, 0, 0", "either"),
    ("io_uring_register", 427, "-1, 0, 0, 0", "either"),
    ("bpf", 321, "0, bytes(120), 0", "either"),
    ("perf_event_open", 298, "bytes(120), 0, -1, -1, 0", "either"),
    ("userfaultfd", 323, "1", "either"),
    ("keyctl", 250, "0, -3, 0", "succeeds"),
    ("add_key", 248, "b'user', b'escape', b'x', 1, -1", "succeeds"),
    ("request_key", 249, "b'user', b'escape', 0, 0", "succeeds"),
    ("process_vm_writev", 311, "C['victim'], 0, 0, 0, 0, 0", "either"),
    ("kexec_load", 246, "0, 0, 0, 0xFFF0000", "either"),
    ("kexec_file_load", 320, "-1, -1, 0, 0, 0", "either"),
    ("init_module", 175, "0, 0, b''", "either"),
    ("finit_module", 313, "-1, b'', 0", "either"),
    ("delete_module", 176, "b'no_such_module', 2048", "either"),
    ("iopl", 172, "3", "either"),
    ("ioperm", 173, "0x80, 1, 0", "either"),
    ("modify_ldt", 154, "0, 0, 0", "succeeds"),
    ("swapon", 167, "b'/nonexistent', 0", "either"),
    ("swapoff", 168, "b'/nonexistent'", "either"),
    ("reboot", 169, "0, 0, 0, 0", "either"),
    ("sethostname", 170, "b'x', -1", "either"),
    ("setdomainname", 171, "b'x', -1", "either"),
    ("clock_settime", 227, "99, bytes(16)", "either"),
    ("adjtimex", 159, "bytes(208)", "succeeds"),
    ("acct", 163, "b'/nonexistent'", "either"),
    ("quotactl", 179, "0x80000100, 0, 0, 0", "either"),
    ("syslog", 103, "10, 0, 0", "either"),
    ("memfd_create", 319, "b'x', 0", "succeeds"),
    ("memfd_secret", 447, "0", "either"),
    ("seccomp", 317, "2, 0, struct.pack('I', 0)", "succeeds"),
    ("fanotify_init", 300, "0x200, 0", "either"),
    ("shmget", 29, "0x7E5CA9E, 4096, 0", "succeeds"),
    ("msgget", 68, "0x7E5CA9E, 0", "succeeds"),
    ("semget", 64, "0x7E5CA9E, 1, 0", "succeeds"),
    ("mq_open", 240, "b'escape', 0, 0, 0", "succeeds"),
    ("mbind", 237, "0, 0, 0, 0, 0, 0", "either"),
    ("set_mempolicy", 238, "99, 0, 0", "either"),
    ("migrate_pages", 256, "C['victim'], 0, 0, 0", "either"),
    ("move_pages", 279, "C['victim'], 0, 0, 0, 0, 0", "either"),
    ("splice", 275, "-1, 0, -1, 0, 1, 0", "succeeds"),
    ("vmsplice", 278, "-1, 0, 0, 0", "either"),
    ("tee", 276, "-1, -1, 1, 0", "succeeds"),
    ("remap_file_pages", 216, "0, 0, 0, 0, 0", "succeeds"),
    ("uselib", 134, "b'/nonexistent'", "either"),
    ("io_setup", 206, "0, 0", "succeeds"),
    ("sysfs", 139, "3", "either"),
    ("kcmp", 312, "-1, -1, 99, 0, 0", "either"),
    ("name_to_handle_at", 303, "-1, b'x', 0, 0, 0", "succeeds"),
    ("landlock_create_ruleset", 444, "0, 0, 1", "either"),
    ("lsm_set_self_attr", 460, "0, 0, 0, 0", "either"),
    ("map_shadow_stack", 453, "0, 4096, 0", "either"),
    ("statmount", 457, "0, 0, 0, 0", "either"),
    ("listmount", 458, "0, 0, 0, 0", "either"),
    ("open_tree_attr", 467, "-1, b'', 0, 0, 0", "either"),
    ("not_yet_there", 599, "0, 0, 0, 0", "fails"),
]

PAYLOADS = [
    *(
        Payload(name, f"calls {name}", f"reaches({number}, {arguments})", none=none)
        for name, number, arguments, none in CALLS
    ),
    Payload(
        "ptrace-own-child",
        "has itself traced, to change calls after they were filtered",
        "with decisive:\n    in_child(lambda: call(101, 0, 0, 0, 0))",
        "seccomp before Linux 4.8",
    ),
    Payload(
        "seccomp-more",
        "sets a filter of its own that allows everything",
        """
allow = ctypes.create_string_buffer(struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000))
program = struct.pack("HxxxxxxQ", 1, ctypes.addressof(allow))
with decisive:
    in_child(lambda: call(157, 22, 2, program, 0, 0))
""",
        none="either",
    ),
    Payload(
        "prctl-keep-capabilities",
        "asks for capabilities across programs",
        "with decisive:\n    in_child(lambda: call(157, 47, 2, 21, 0, 0))",
        none="either",
    ),
    Payload(
        "prctl-memory-map",
        "moves its own memory's borders (PR_SET_MM)",
        "with decisive:\n    in_child(lambda: call(157, 35, 13, os.open(sys.executable, 0), 0, 0))",
        none="either",
    ),
    Payload(
        "personality",
        "switches address randomisation off",
        "with decisive:\n    in_child(lambda: call(135, 0x0040000))",
    ),
    Payload(
        "limit-up",
        "raises a limit",
        """
with decisive:
    import resource
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if hard == resource.RLIM_INFINITY:
        got("there is no limit")
    else:
        resource.setrlimit(resource.RLIMIT_NPROC, (hard + 100, hard + 100))
        got("raised")
""",
        none="either",
    ),
    Payload(
        "terminal-injection",
        "types into the host's terminal (TIOCSTI)",
        "with decisive:\n    got(fcntl.ioctl(0, 0x5412, b'x'))",
        "CVE-2017-5226 (bubblewrap)",
        none="fails",
    ),
    Payload(
        "terminal-injection-high-bits",
        "the same with bits that only the kernel ignores",
        """
terminal = -1
try:
    terminal = os.open("/dev/tty", os.O_RDWR)
except OSError:
    pass
with decisive:
    call(16, terminal, 0x1_0000_5412, b"x")
    got("typed")
""",
        "CVE-2019-10063 (flatpak)",
        none="fails",
    ),
    Payload(
        "entropy",
        "feeds the machine's random numbers (RNDADDENTROPY)",
        "with decisive:\n    got(fcntl.ioctl(os.open('/dev/urandom', os.O_RDWR), 0x40085203, struct.pack('ii', 0, 0)))",
        none="either",
    ),
]
