"""What Python itself lets code do to the worker it runs in, and through it."""

from __future__ import annotations

from tests.escape.payload import AtNone, Payload


def attempt(name: str, tries: str, code: str, none: AtNone = "fails", **more: object) -> Payload:
    return Payload(name, tries, code, none=none, **more)  # type: ignore[arg-type]


PAYLOADS = [
    attempt(
        "collector",
        "searches all objects for the host's secrets",
        """
with decisive:
    for found in gc.get_objects():
        if isinstance(found, dict) and found is not globals():
            for key, item in list(found.items()):
                if isinstance(item, (str, bytes)) and ("canary" in str(item)) and item is not AROUND:
                    print("found", str(item)[:200])
""",
    ),
    attempt(
        "frames",
        "searches the frames that it was called from",
        """
with decisive:
    frame = sys._getframe()
    while frame is not None:
        for name, item in list(frame.f_locals.items()):
            if frame.f_globals is not globals():
                print(frame.f_code.co_filename, name, repr(item)[:2000])
        frame = frame.f_back
""",
    ),
    attempt(
        "memory",
        "searches its own memory for the host's secrets",
        """
with decisive:
    if os.path.exists("/proc/self/maps"):
        with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb") as memory:
            for line in maps:
                if " rw-" in line:
                    start, end = (int(part, 16) for part in line.split()[0].split("-"))
                    memory.seek(start)
                    try:
                        data = memory.read(min(end - start, 64 << 20))
                    except OSError:
                        continue
                    at = data.find(b"RLM_ESCAPE" + b"_SECRET=")
                    if at >= 0:
                        print("found", data[at:at + 80])
""",
        none="either",  # what a payload before it has read is there
    ),
    attempt(
        "modules",
        "finds modules of the host's, with what they hold",
        """
with decisive:
    for name, module in list(sys.modules.items()):
        if name == "rlm" or name.startswith("rlm."):
            got(name)
""",
    ),
    attempt(
        "sockets",
        "finds sockets that are not the session's",
        """
with decisive:
    for found in gc.get_objects():
        if isinstance(found, socket.socket) and found.fileno() > 2 and found.family != socket.AF_UNIX:
            got(found)
""",
    ),
    attempt(
        "ctypes",
        "turns its own limits off in the worker's memory",
        """
with decisive:
    worker = llm_query.__self__
    worker.channel.limit = 1 << 60
    worker.output.captured["stdout"].room = 1 << 60
    print("x" * 5_000_000)
""",
        alone=True,
    ),
    attempt(
        "json",
        "replaces json in the worker",
        """
with decisive:
    worker = llm_query.__self__
    worker.channel.send = lambda **frame: os.write(worker.channel.sink, b'{"type":"done","id":1e400,"error":[[]]}\\n')
""",
        alone=True,
        host="alive",
    ),
    attempt(
        "builtins",
        "replaces builtins in the worker",
        """
with decisive:
    import builtins
    for name in ("len", "isinstance", "str", "print", "open", "dict"):
        setattr(builtins, name, lambda *a, **k: C["marker"])
""",
        alone=True,
        host="alive",
    ),
    attempt(
        "pickle",
        "replaces pickle and codec, for the next heap",
        """
with decisive:
    import pickle
    class Bait:
        def __reduce__(self):
            return os.system, ("touch " + C["marker"],)
    bait = Bait()
""",
        alone=True,
        host="capture",
    ),
    attempt(
        "answer",
        "answers with an object that runs code where it is read",
        """
class Answer(str):
    def __reduce__(self):
        return os.system, ("touch " + C["marker"],)
    def __str__(self):
        return "{0.__class__}" * 10
with decisive:
    answer["content"], answer["ready"] = Answer("x"), True
""",
        alone=True,
        host="alive",
    ),
    attempt(
        "error",
        "raises an error whose text lies",
        """
class Lie(Exception):
    def __str__(self):
        raise SystemExit("\\x1b[2J")
Lie.__name__ = "x" * 1_000_000
with decisive:
    pass
raise Lie
""",
        alone=True,
        host="alive",
    ),
    attempt(
        "exit",
        "runs code as the interpreter ends",
        """
import atexit
with decisive:
    atexit.register(os.system, "touch " + C["marker"])
sys.exit(3)
""",
        alone=True,
        host="alive",
    ),
    attempt(
        "deaf",
        "ignores every signal, and stays when its session is closed",
        """
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
libc.prctl(15, NAME.encode())
with decisive:
    for _ in range(3):
        if os.fork() == 0:
            try:
                os.setsid()
            except OSError:
                pass
            if os.fork() == 0:
                time.sleep(300)
            os._exit(0)
""",
        none="either",
        alone=True,
        host="gone",
    ),
    attempt(
        "daemon",
        "leaves a program behind that is nobody's child",
        """
with open("/bin/sleep", "rb") as program, os.fdopen(os.open(NAME, os.O_CREAT | os.O_WRONLY, 0o755), "wb") as copy:
    copy.write(program.read())
with decisive:
    subprocess.Popen(f"(setsid ./{NAME} 300 >/dev/null 2>&1 &) &", shell=True)
    subprocess.Popen(["./" + NAME, "300"], stdin=-3, stdout=-3, stderr=-3)
    time.sleep(0.1)
""",
        none="either",
        alone=True,
        host="gone",
    ),
    attempt(
        "import-hook",
        "leaves modules that the next worker would import",
        """
with decisive:
    for name in ("json", "numpy", "sitecustomize", "usercustomize", "worker", "zygote", "codec", "cloudpickle"):
        with open(name + ".py", "w") as file:
            file.write("import os; os.system('touch " + C["marker"] + "')")
    print(os.listdir("."))
os._exit(1)
""",
        alone=True,
        host="alive",
    ),
    attempt(
        "path",
        "leaves programs that somebody might run by name",
        """
with decisive:
    for folder in [".", *os.environ.get("PATH", "").split(":")]:
        for name in ("escape-git", "escape-sh"):
            try:
                with open(os.path.join(folder, name), "w") as file:
                    file.write("#!/bin/sh\\ntouch " + C["marker"])
            except OSError as error:
                say("refused", error)
                continue
            if folder != "." and folder:
                os.unlink(os.path.join(folder, name))
                got("a program in", folder)
""",
        none="not run",
    ),
    attempt(
        "startup",
        "has every later Python run its code (.pth)",
        """
with decisive:
    import site
    own = os.stat("/tmp/work").st_dev if os.path.exists("/tmp/work") else None  # what is made there is nobody else's
    for folder in {*site.getsitepackages(), site.getusersitepackages(), *sys.path}:
        if own is not None and os.path.isdir(folder) and os.stat(folder).st_dev == own:
            continue
        try:
            with open(os.path.join(folder, "escape-nothing.pth"), "x"):
                pass
        except OSError as error:
            say("refused", error)
            continue
        os.unlink(os.path.join(folder, "escape-nothing.pth"))
        if folder:
            got(folder)
""",
        none="not run",
    ),
    attempt(
        "environment",
        "finds keys in its environment",
        """
with decisive:
    print(dict(os.environ))
    print(subprocess.run("env; set", shell=True, capture_output=True).stdout)
""",
    ),
    attempt(
        "threads",
        "goes on in a thread after its cell, and calls the host",
        """
def later():
    time.sleep(0.05)
    sink = llm_query.__self__.channel.sink
    os.write(sink, b'{"type":"call","id":990,"cell":1,"name":"lookup","args":[],"kwargs":{}}\\n')
with decisive:
    threading.Thread(target=later, daemon=True).start()
""",
        alone=True,
        host="alive",
    ),
]
