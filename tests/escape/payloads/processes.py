"""Other processes of the machine: signals, memory, priorities, limits. The target is a process of the host's user."""

from __future__ import annotations

from tests.escape.payload import AtNone, Payload


def attempt(name: str, tries: str, code: str, source: str = "", none: AtNone = "succeeds") -> Payload:
    return Payload(name, tries, f"victim, host = C['victim'], C['host']\nwith decisive:\n    {code}", source, none)


PAYLOADS = [
    attempt("signal-kill", "kills it", "os.kill(victim, 9)"),
    attempt("signal-stop", "stops it", "os.kill(victim, signal.SIGSTOP)"),
    attempt("signal-group", "kills its group", "os.killpg(victim, 15)"),
    attempt("signal-thread", "kills its thread (tgkill)", "call(234, victim, victim, 15)"),
    attempt("signal-thread-old", "the same by tkill", "call(200, victim, 15)"),
    attempt("signal-queue", "queues a signal", "call(129, victim, 15, struct.pack('iii', 15, 0, -1) + bytes(116))"),
    attempt("signal-pidfd", "kills it through a descriptor", "signal.pidfd_send_signal(os.pidfd_open(victim), 9)"),
    attempt("signal-shell", "has a shell kill it", "subprocess.run(f'kill -9 {victim}', shell=True, check=True)"),
    attempt("signal-host", "signals the host", "(os.kill(host, 0), got('the host can be signalled'))"),
    Payload(
        "signal-by-descriptor-owner",
        "has the kernel signal it, as the owner of a socket of its own",
        """
a, b = socket.socketpair()
with decisive:
    fcntl.fcntl(a, fcntl.F_SETOWN, C["victim"])
    fcntl.fcntl(a, fcntl.F_SETSIG, signal.SIGTERM)
    fcntl.fcntl(a, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    b.send(b"x")
    time.sleep(0.05)  # the kernel takes its time
""",
        "Landlock's scope of signals was extended to it after its first release",
    ),
    attempt("trace-seize", "traces it", "in_child(lambda: call(101, 0x4206, victim, 0, 0))"),
    attempt("trace-attach", "attaches to it", "in_child(lambda: call(101, 16, victim, 0, 0))"),
    attempt("memory-mem", "opens its memory", "(open(f'/proc/{victim}/mem', 'rb').close(), got('opened'))"),
    attempt("memory-environ", "reads its environment", "print(open(f'/proc/{victim}/environ').read())"),
    attempt("memory-host-environ", "reads the host's environment", "print(open(f'/proc/{host}/environ').read())"),
    attempt(
        "memory-parent-environ",
        "reads its parent's environment",
        "print(open(f'/proc/{os.getppid()}/environ').read())",
        none="either",
    ),
    attempt(
        "memory-own-environ",
        "reads its own environment",
        "print(open('/proc/self/environ').read(), os.environ)",
        none="fails",
    ),
    Payload(
        "memory-process-vm-readv",
        "copies from its memory",
        """
buffer = ctypes.create_string_buffer(64)
local = struct.pack("QQ", ctypes.addressof(buffer), 64)
where = 0
try:
    where = int(open(f"/proc/{C['victim']}/stat").read().rpartition(")")[2].split()[47])
except OSError:
    pass
remote = struct.pack("QQ", where or 0x7fff00000000, 64)
with decisive:
    call(310, C["victim"], local, 1, remote, 1, 0)
    print(buffer.raw)
""",
    ),
    attempt("memory-maps", "reads where its memory is", "got(open(f'/proc/{victim}/maps').read(50))"),
    attempt("command-line", "reads the host's command line", "got(open(f'/proc/{host}/cmdline').read(50))"),
    attempt(
        "list",
        "sees processes of the machine",
        """others = [p for p in os.listdir('/proc') if p.isdigit()]
    if str(host) in others: got(len(others), 'processes')""",
    ),
    attempt("descriptor", "takes a descriptor of the host's", "got(call(438, os.pidfd_open(host), 0, 0))"),
    attempt("compare", "compares it with another (kcmp)", "got(call(312, victim, host, 1, 0, 0))", none="either"),
    attempt(
        "robust-list",
        "asks where its locks are",
        "got(call(274, victim, ctypes.byref(ctypes.c_void_p()), ctypes.byref(ctypes.c_size_t())))",
    ),
    attempt("priority", "slows it down", "os.setpriority(os.PRIO_PROCESS, victim, 19)"),
    attempt(
        "priority-user",
        "slows all down that are of its user",
        "os.setpriority(os.PRIO_USER, os.getuid(), os.getpriority(os.PRIO_PROCESS, 0) + 1)",
        none="not run",
    ),
    attempt("processors", "confines it to one processor", "os.sched_setaffinity(victim, [0])"),
    attempt(
        "scheduler", "gives it another scheduler", "os.sched_setscheduler(victim, os.SCHED_BATCH, os.sched_param(0))"
    ),
    attempt("limits", "sets its limits", "call(302, victim, 7, struct.pack('QQ', 16, 16), 0)"),
    attempt("io-priority", "sets its priority at the disk", "(call(251, 1, victim, 3 << 13), got('set'))"),
    attempt(
        "oom", "has it killed first when memory is short", "open(f'/proc/{victim}/oom_score_adj', 'w').write('900')"
    ),
    attempt("group", "moves it to another group", "os.setpgid(victim, 0)", none="fails"),
    attempt(
        "advise",
        "drops its memory (process_madvise)",
        "call(440, os.pidfd_open(victim), struct.pack('QQ', 0, 0), 1, 21, 0)",
        none="either",
    ),
    attempt(
        "guess",
        "finds it by trying all numbers",
        """alive = []
    for pid in range(max(2, victim - 50), victim + 50):
        try:
            os.kill(pid, 0)
        except PermissionError:
            pass
        except OSError:
            continue
        else:
            alive.append(pid)
    if victim in alive: got(alive)""",
    ),
    Payload(
        "guard",
        "ends or stops the first process of its own session, to live on without it",
        """
first = os.getppid()
with decisive:
    for number in (signal.SIGSTOP, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        try:
            os.kill(first, number)
        except OSError as error:
            refusal = error
    time.sleep(0.05)
    if os.getppid() != first:
        got("it is gone")
    state = open(f"/proc/{first}/stat").read().rpartition(")")[2].split()[0]
    if state in "TtZX":
        got("it is", state)
""",
        none="not run",  # there the parent is the host
        alone=True,
    ),
    Payload(
        "guard-group",
        "stops its own process group, to live on without a guard",
        """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
first = os.getppid()
with decisive:
    os.kill(0, signal.SIGTERM)
    time.sleep(0.05)
    if os.getppid() != first:
        got("the guard is gone")
""",
        none="fails",
        alone=True,
    ),
    attempt(
        "guard-root",
        "looks into the first process of its session",
        "got(os.listdir(f'/proc/{os.getppid()}/root'), os.listdir(f'/proc/{os.getppid()}/fd'))",
        none="either",
    ),
    attempt(
        "guard-memory",
        "opens the memory of the first process of its session",
        "(os.close(os.open(f'/proc/{os.getppid()}/mem', os.O_RDWR)), got('opened'))",
        none="either",
    ),
]
