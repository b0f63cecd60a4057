"""Frames that no worker sends, written to the channel from inside a cell; and lies in what the host asks for."""

from __future__ import annotations

from tests.escape.payload import Payload


def forged(name: str, tries: str, lines: str, host: str = "") -> Payload:
    return Payload(
        name,
        tries,
        f"cell = llm_query.__self__.cell\nforge({lines})\ntime.sleep(0.02)\n",
        none="fails",
        alone=True,
        host=host or "alive",
    )


def call(name: str) -> str:
    arguments = "'args': ['touch ' + C['marker']], 'kwargs': {}"
    return f"{{'type': 'call', 'id': 900, 'cell': cell, 'name': {name!r}, {arguments}}}, b'\\n'"


BAIT = """
class Bait:
    def __reduce__(self):
        return os.system, ("touch " + C["marker"],)
import pickle
worker = llm_query.__self__
blob = pickle.dumps(Bait())
text = base64.b64encode(blob).decode()
digest = __import__("hashlib").sha256(blob).hexdigest()
"""
HEAP = """
def lie(**changes):
    image = dict(groups=[], modules={}, given={}, lost={}, gone=[], files={}, files_gone=[], files_lost={}, caught=[],
                 python="3.11.0", seconds=0.0, pause=0.0, whole=True, blobs={})
    image.update(changes)
    def capture(self, scope, job):
        worker.send(type="value", id=job.id, value=image)
    type(worker.heap).capture = capture
    type(worker.heap).checkpoint = lambda self, id, spool, whole, limit: worker.send(type="value", id=id, value=image)
"""


def heap(name: str, tries: str, code: str) -> Payload:
    return Payload(
        f"heap-{name}", tries, BAIT + HEAP + f"with decisive:\n    {code}\n", none="fails", alone=True, host="capture"
    )


def value(name: str, tries: str, data: str) -> Payload:
    return Payload(
        f"get-{name}",
        tries,
        BAIT
        + f"""
bait = 1
with decisive:
    worker.get.__globals__["codec"].encode = lambda value, describe=False: {data}
""",
        none="fails",
        alone=True,
        host="get",
    )


PAYLOADS = [
    forged("call-system", "calls a tool that is not there, named like a function of Python's", call("os.system")),
    forged("call-import", "the same", call("__import__")),
    forged("call-dunder", "the same with an attribute", call("__class__.__init__.__globals__")),
    forged(
        "call-keywords",
        "calls with keywords that would be arguments of the host's own",
        "{'type': 'call', 'id': 901, 'cell': cell, 'name': 'lookup', 'args': [], 'kwargs': {'self': 1, 'name': 'x',"
        " '__class__': 2}}, b'\\n'",
    ),
    forged(
        "call-flood",
        "calls 6,000 times at once",
        "*[json.dumps({'type': 'call', 'id': n, 'cell': cell, 'name': 'slow', 'args': [], 'kwargs': {}}).encode()"
        " + b'\\n' for n in range(1000, 7000)]",
    ),
    forged("call-again", "calls twice under one number", call("lookup") + ", " + call("lookup")),
    forged(
        "call-huge-number",
        "numbers a call with thousands of digits",
        'b\'{"type":"call","id":\' + b\'9\' * 4000 + b\',"cell":1,"name":"lookup","args":[],"kwargs":{}}\\n\'',
    ),
    forged(
        "call-tag",
        "passes a value that no codec wrote",
        "{'type': 'call', 'id': 905, 'cell': cell, 'name': 'lookup', 'args': [{'$': 'pickle', 'v': 'gASV'}],"
        " 'kwargs': {}}, b'\\n'",
    ),
    forged(
        "done-other",
        "ends another cell",
        "{'type': 'done', 'id': 9999, 'error': None, 'answer': None, 'names': {}, 'gone': [], 'streams': {}}, b'\\n'",
    ),
    forged(
        "done-early",
        "ends its own cell while it goes on",
        "{'type': 'done', 'id': cell, 'error': None, 'answer': {'content': 'x', 'ready': True}, 'names': {},"
        " 'gone': [], 'streams': {}}, b'\\n'",
    ),
    forged(
        "done-wrong",
        "ends its cell with parts of other types",
        "{'type': 'done', 'id': cell, 'error': {'type': [], 'text': {}}, 'answer': {'content': [], 'ready': 'yes'},"
        " 'names': {'a': []}, 'gone': [1], 'streams': {'stdin': {}}}, b'\\n'",
    ),
    forged("value", "answers what nobody asked", "{'type': 'value', 'id': 1, 'value': 1}, b'\\n'"),
    forged("ready", "starts a second time", "{'type': 'ready', 'python': '3.11.7', 'pid': 1}, b'\\n'"),
    forged(
        "host-frames",
        "sends what only a host sends",
        "{'type': 'run', 'id': 1, 'code': 'import os', 'fresh': False}, b'\\n'",
    ),
    forged(
        "out-stream",
        "prints on a stream that is none",
        "{'type': 'out', 'id': cell, 'stream': '__class__', 'text': 'x'}, b'\\n'",
    ),
    forged(
        "out-flood",
        "prints 40 MB around the capture",
        "*[json.dumps({'type': 'out', 'id': cell, 'stream': 'stdout', 'text': 'x' * 250_000}).encode() + b'\\n'"
        " for _ in range(160)]",
    ),
    forged(
        "parts-many",
        "begins 200 frames and ends none",
        "*[json.dumps({'type': 'part', 'id': n, 'last': False, 'data': 'x'}).encode() + b'\\n' for n in range(200)]",
    ),
    forged(
        "parts-tiny",
        "sends empty parts without end",
        '*[b\'{"type":"part","id":1,"last":false,"data":""}\\n\' * 1000 for n in range(100)]',
    ),
    forged(
        "parts-nested",
        "puts a part within a part",
        "{'type': 'part', 'id': 1, 'last': True, 'data': json.dumps({'type': 'part', 'id': 1, 'last': True,"
        " 'data': '{}'})}, b'\\n'",
    ),
    forged("deep", "nests lists 200,000 deep", "b'[' * 200_000 + b']' * 200_000 + b'\\n'"),
    forged(
        "deep-in-part",
        "the same within a part",
        "{'type': 'part', 'id': 1, 'last': True, 'data': '[' * 100_000 + ']' * 100_000}, b'\\n'",
    ),
    forged(
        "deep-value",
        "passes an argument nested 5,000 deep",
        'b\'{"type":"call","id":906,"cell":%d,"name":"lookup","kwargs":{},"args":\' % cell'
        " + b'[' * 900 + b']' * 900 + b'}\\n'",
    ),
    forged("endless-line", "sends a line that does not end", "b'x' * 8_000_000"),
    forged("bytes", "sends what is no text", "bytes(range(256)) * 10 + b'\\n'"),
    forged(
        "utf16",
        "sends JSON as UTF-16",
        "json.dumps({'type': 'ready', 'python': '3', 'pid': 1}).encode('utf-16'), b'\\n'",
    ),
    forged(
        "numbers",
        "sends numbers that are none",
        'b\'{"type":"value","id":NaN,"value":1e999}\\n{"type":"value","id":1\' + b\'0\' * 100_000 + b\'}\\n\'',
    ),
    Payload(
        "descriptors",
        "sends descriptors to the host over every socket",
        """
with decisive:
    for number in channel():
        one = socket.socket(fileno=os.dup(number))
        try:
            for _ in range(50):
                one.sendmsg([b"\\n"], [(1, 1, array.array("i", [0] * 10))], socket.MSG_DONTWAIT)
        except OSError as error:
            say("refused", error)
""",
        none="fails",
        alone=True,
        host="descriptors",
    ),
    Payload(
        "hang-up",
        "closes the channel and lives on",
        """
libc.prctl(15, NAME.encode())
with decisive:
    pid = os.fork()
    if pid == 0:
        os.closerange(0, 64)
        time.sleep(300)
        os._exit(0)
    for number in channel():
        os.close(number)
    time.sleep(0.2)
""",
        none="fails",
        alone=True,
        host="gone",
    ),
    Payload(
        "silence",
        "shuts the channel down one way",
        """
with decisive:
    for number in channel():
        socket.socket(fileno=os.dup(number)).shutdown(socket.SHUT_WR)
    time.sleep(0.1)
""",
        none="fails",
        alone=True,
        host="alive",
    ),
    value("pickle", "answers with a pickle", '{"$": "pickle", "v": text}'),
    value("remote", "answers with something remote whose parts are none", '{"$": "remote", "v": [text, [text]]}'),
    value("dict", "answers with keys that cannot be", '{"$": "dict", "v": [[[], 1], [{"$": "set", "v": [[]]}, 2]]}'),
    value("deep", "answers with a value nested 900 deep", 'json.loads("[" * 900 + "]" * 900)'),
    value("long-number", "answers with a number of a million digits", '{"$": "int", "v": "f" * 1_000_000}'),
    heap(
        "pickle",
        "lets the host save a pickle that runs a program when it is loaded",
        "lie(groups=[[['bait'], ['Bait'], digest, len(blob), False, False, {}]], blobs={digest: text})",
    ),
    heap(
        "path",
        "names a file of the host's as a blob",
        "lie(blobs={'../../../../' + C['secret']: {'file': C['secret']}})",
    ),
    heap("path-of-file", "names one by the file's name", "lie(blobs={digest: {'file': '../../..' + C['secret']}})"),
    heap("digest", "sends other bytes than it says", "lie(blobs={'0' * 64: text})"),
    heap("fields", "sends fields that are none", "lie(__class__='x', exec='import os')"),
    heap("types", "sends parts of other types", "lie(groups=[[1, 2, 3]], modules=[], lost={'a': ['b']}, seconds='x')"),
    heap(
        "spool",
        "puts a link where the host looks for a blob",
        """import glob
    for place in ("/tmp", "..", "../spool", *glob.glob("/tmp/rlm-*/spool")):
        try:
            os.symlink(C["secret"], place + "/" + digest)
        except OSError as error:
            say("refused", place, error)
    lie(blobs={digest: {"file": digest}})""",
    ),
]
