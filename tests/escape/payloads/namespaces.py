"""Namespaces, mounts, capabilities, and other ways into the kernel than the one that is filtered."""

from __future__ import annotations

from tests.escape.payload import AtNone, Payload

KINDS = {
    "user": 0x10000000,
    "mount": 0x20000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "cgroup": 0x02000000,
    "time": 0x80,
}


def child(name: str, tries: str, code: str, source: str = "", none: AtNone = "either") -> Payload:
    return Payload(name, tries, f"with decisive:\n    in_child(lambda: {code})", source, none)


PAYLOADS = [
    *(child(f"unshare-{kind}", f"leaves its {kind} namespace", f"call(272, {flag})") for kind, flag in KINDS.items()),
    child("unshare-all", "leaves all of them at once", f"call(272, {sum(KINDS.values())})"),
    *(
        child(
            f"clone-{kind}",
            f"makes a child in a new {kind} namespace",
            f"(lambda pid: pid or os._exit(0))(call(56, {flag} | 17, 0, 0, 0, 0))",
        )
        for kind, flag in KINDS.items()
        if kind in ("user", "mount", "net", "pid")
    ),
    child(
        "clone-high-bits",
        "the same with bits that only the kernel ignores",
        "(lambda pid: pid or os._exit(0))(call(56, 0x1_0000_0000 | 0x10000000 | 17, 0, 0, 0, 0))",
    ),
    child(
        "clone3",
        "the same by a call whose flags lie in memory",
        "(lambda pid: pid or os._exit(0))(call(435, struct.pack('8Q', 0x10000000, 0, 0, 0, 17, 0, 0, 0), 64))",
    ),
    child(
        "setns-host",
        "enters the host's namespace of mounts",
        "call(308, os.open(f'/proc/{C[\"host\"]}/ns/mnt', 0), 0x20000)",
    ),
    child("setns-pidfd", "enters all of the host's namespaces", "call(308, os.pidfd_open(C['host']), 0x20020000)"),
    child(
        "setns-first", "enters those of the first process it sees", "call(308, os.pidfd_open(os.getppid()), 0x20000)"
    ),
    child(
        "mount",
        "mounts a file system",
        "(call(272, 0x10020000), os.makedirs('m', exist_ok=True), call(165, b'x', b'm', b'tmpfs', 0, 0))",
    ),
    child("mount-bare", "mounts one where it is", "call(165, b'x', b'/nonexistent', b'tmpfs', 0, 0)", none="not run"),
    child("remount", "makes the root writable", "call(165, 0, b'/', 0, 32 | 4096, 0)", none="not run"),
    child("umount-proc", "unmounts /proc, to see what it hides", "call(166, b'/proc', 2)", none="not run"),
    child("umount-tmp", "unmounts /tmp, to see what it hides", "call(166, b'/tmp', 2)", none="not run"),
    child("pivot-root", "changes the root", "call(155, b'.', b'.')", none="not run"),
    child(
        "chroot",
        "leaves its root by changing it twice",
        "(os.makedirs('inner', exist_ok=True), os.chroot('inner'), [os.chdir('..') for _ in range(40)], "
        "os.chroot('.'), open(C['secret']).read())",
    ),
    child("open-tree", "takes a copy of all mounts", "call(428, -100, b'/', 1 | 0x8000)"),
    child("fsopen", "prepares a file system", "call(430, b'tmpfs', 0)", "CVE-2022-0185"),
    child("fspick", "takes hold of one that is mounted", "call(433, -100, b'/', 0)"),
    child("fsmount", "mounts one that was prepared", "call(432, -1, 0, 0) + 1"),
    child("move-mount", "moves a mount", "call(429, -100, b'/proc', -100, b'/nonexistent', 0)", none="not run"),
    child(
        "mount-setattr",
        "makes mounts writable",
        "call(442, -100, b'/', 0x8000, struct.pack('QQQQ', 0, 1, 0, 0), 32)",
        none="not run",
    ),
    child("setuid", "becomes root", "(os.setuid(0), os.geteuid())"),
    child("setresuid", "becomes another user", "call(117, 12345, 12345, 12345)"),
    child("setgroups", "joins groups", "os.setgroups([0, 1, 2])"),
    child("setfsuid", "opens files as another user", "call(122, 12345)"),
    child(
        "capset",
        "gives itself capabilities",
        "call(126, struct.pack('Ii', 0x20080522, 0), struct.pack('6I', 0xFFFFFFFF, 0xFFFFFFFF, 0, 0, 0, 0))",
    ),
    Payload(
        "capabilities",
        "has capabilities",
        """
with decisive:
    data = ctypes.create_string_buffer(24)
    call(125, struct.pack("Ii", 0x20080522, 0), data)
    known = 1 << 2  # CAP_DAC_READ_SEARCH: root's sessions read root's Python with it, within what Landlock lets them
    if any(held & ~known for held in struct.unpack("6I", data.raw)):
        got(data.raw.hex())
    if libc.prctl(39, 0, 0, 0, 0) != 1:
        got("new ones can come with a program")
""",
    ),
    Payload(
        "setuid-program",
        "runs programs that are setuid root",
        """
with decisive:
    for program in ("/usr/bin/su", "/bin/su", "/usr/bin/mount", "/usr/bin/passwd", "/usr/bin/sudo", "/usr/bin/chsh"):
        if os.path.exists(program) and os.stat(program).st_mode & stat.S_ISUID:
            process = subprocess.Popen([program, "--help"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=-2)
            uid = os.stat(f"/proc/{process.pid}").st_uid
            process.communicate()
            if uid != os.stat("/proc/self").st_uid:
                got(program, "ran as", uid)
    if "NoNewPrivs:\\t1" not in open("/proc/self/status").read():
        got("new privileges are possible")
""",
    ),
    Payload(
        "x32",
        "makes a call of the x32 kind, by machine code",
        "with decisive:\n    in_child(lambda: machine_code(bytes.fromhex('b8270000400f05c3')))",
        "filters that look at the number alone",
        none="either",
    ),
    Payload(
        "x32-socket",
        "makes a refused call of the x32 kind",
        "with decisive:\n    in_child(lambda: call(0x40000000 | 41, 2, 1, 0))",
        none="fails",
    ),
    Payload(
        "int80",
        "makes a call of the 32-bit kind (int 0x80)",
        "with decisive:\n    in_child(lambda: machine_code(bytes.fromhex('b814000000cd80c3')))",
        "filters that do not look at the architecture",
        none="either",
    ),
    Payload(
        "far-return",
        "goes to 32-bit mode and makes a call there",
        """
# retf to cs 0x23 at an address below 4 GiB, where int 0x80 is getpid
low = libc.mmap
low.restype, low.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
page = low(0x100000, 4096, 7, 0x32, -1, 0)
ctypes.memmove(page, bytes.fromhex("b814000000cd80cb"), 8)
code = bytes.fromhex("6a2368") + struct.pack("<I", page) + bytes.fromhex("48cbc3")
with decisive:
    in_child(lambda: machine_code(code))
""",
        none="fails",
    ),
    Payload(
        "machine-code",
        "makes a refused call by machine code",
        "with decisive:\n    in_child(lambda: (lambda r: r if r >= 0 else 1 / 0)("
        "machine_code(bytes.fromhex('bf00000010b8100100000f05c3'))))",
        none="either",
    ),
    Payload(
        "thread-without-filter",
        "makes a thread and tries there",
        """
def attempt():
    try:
        call(272, 0x10000000 | 0x20000)
        got("a thread is free")
    except OSError as error:
        say("refused", error)
def through_a_child():
    if (pid := os.fork()) == 0:
        thread = threading.Thread(target=attempt); thread.start(); thread.join(); os._exit(0)
    os.waitpid(pid, 0)
with decisive:
    through_a_child()
""",
        none="either",
    ),
    Payload(
        "program-without-filter",
        "runs another program and tries there",
        "with decisive:\n    subprocess.run(['unshare', '-Ur', 'true'], check=True)\n    got('done')",
        none="either",
    ),
]
