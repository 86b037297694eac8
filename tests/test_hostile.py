"""Programs and answers that try to harm, to escape or to pass without being right; an honest row follows each.

All go through `trd verify`, with one worker, in a process of its own whose environment holds a secret. A program that
could do damage first checks that it is in a sandbox, and works on files made for it alone.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

import psutil
import pytest
from click.testing import Result
from support.sets import rows_of

from trd_cli.graders.sandbox import refusal
from trd_cli.records import Trajectory
from trd_cli.trajectories.shards import shard_path, write_shard

ROOT = Path(__file__).parent.parent
SECRET = "sk-5d41402abc4b2a76"
# A searching program must not find this; it knows only the pattern `answer-[0-9a-f]{12}`.
HIDDEN = "answer-" + "9c1185a5c5e9"
# A time in seconds that no other process on the machine sleeps.
SLEEP = "86399.25"
SECONDS = {"namespaces": 600, "limits": 450}
# The working directory belongs to all threads.
ONE_AT_A_TIME = Lock()

HONEST = ({"kind": "stdin", "inputs": ["2 3\n"], "outputs": ["5\n"]}, "print(sum(map(int, input().split())))")
STDIN = {"kind": "stdin", "inputs": ["1\n", "2\n"], "outputs": ["42\n", "43\n"]}
CALL = {"kind": "call", "fn_name": "f", "inputs": [[1], [2]], "outputs": [42, [43, 44]]}
FIND = {"kind": "call", "fn_name": "f", "inputs": [[1]], "outputs": [HIDDEN]}
LEFT = {"kind": "stdin", "inputs": ["1\n"], "outputs": ["42\n"]}
ASSERTS = {"kind": "functional", "code": "class Box: pass\nassert f(Box) == 42"}
CHECKS = {"kind": "functional", "code": f"answer = '{HIDDEN}'\nassert Solution().f(1) == answer"}

# Before each program. `message` and `value` write replies as the runner does; `contained` is where harm may be tried.
TOOLS = r"""
import os, re, struct, sys, time
canary = {canary!r}
contained = not os.path.exists(canary)
def outs():
    return [int(n) for n in os.listdir('/proc/self/fd') if int(n) > 2]
def message(pickled):
    return struct.pack('>Q', len(pickled)) + pickled
def say(*pickles):
    for descriptor in outs():
        try: os.write(descriptor, b''.join(map(message, pickles)))
        except OSError: pass
def value(pickled):
    return b'\x80\x04}}\x8c\x05value' + pickled + b's.'
def name(module, name):
    return b'\x8c' + bytes([len(module)]) + module + b'\x8c' + bytes([len(name)]) + name + b'\x93'
def text(name):
    return b'\x8c' + bytes([len(name)]) + name
def builtin(kind):
    return name(b'codec', b'reference') + b'(' + text(b'builtin') + b'K\0' + text(kind) + b'))tR'
DONE, OK = b'\x80\x04}}\x8c\x04done\x88s.', b'\x80\x04}}\x8c\x02ok\x88s.'
def found(text):
    match = re.search(rb'answer-[0-9a-f]{{12}}' if isinstance(text, bytes) else 'answer-[0-9a-f]{{12}}', text)
    return match and (match[0].decode() if isinstance(text, bytes) else match[0])
"""

# Harmless at every level: they stay in their own processes, or the limits are made for them.
EVERYWHERE: dict[str, tuple[dict, str]] = {
    "an endless loop": (STDIN, "while True: pass"),
    "an endless loop in a call": (CALL, "def f(x):\n    while True: pass"),
    "an endless loop at import": (CALL, "while True: pass"),
    "an endless loop under a test program": (CHECKS, "class Solution:\n    def f(self, x):\n        while True: pass"),
    "an endless loop in C": (CALL, "def f(x): return sum(iter(int, 1))"),
    "50 GB": (STDIN, "x = bytearray(50 << 30)\nprint(42)"),
    "50 GB in small parts": (CALL, "def f(x):\n    a = []\n    while True: a.append(bytearray(1 << 20))"),
    "deep recursion": (CALL, "def f(x): return f(x)"),
    "deep recursion without a limit": (
        CALL,
        "import sys\nsys.setrecursionlimit(1 << 30)\ndef f(x): return sorted([x, x], key=f)",
    ),
    "os._exit": (CALL, "def f(x): os._exit(0)"),
    "os._exit in a script": (STDIN, "os._exit(0)"),
    "exit before anything": (CALL, "sys.exit(0)"),
    "SystemExit in a call": (CALL, "def f(x): raise SystemExit(0)"),
    "KeyboardInterrupt at import": (CALL, "raise KeyboardInterrupt"),
    "a BaseException of its own": (
        CALL,
        "class B(BaseException):\n    def __str__(self): os._exit(0)\ndef f(x): raise B",
    ),
    "half of a surrogate pair raised": (CALL, "def f(x): raise ValueError('\\ud800')"),
    "half of a surrogate pair returned": (CALL, "def f(x): return '\\udfff'"),
    "SIGKILL to itself": (STDIN, "os.kill(os.getpid(), 9)"),
    "SIGKILL to itself in a call": (CALL, "def f(x): os.kill(os.getpid(), 9)"),
    "SIGKILL to its parent": (STDIN, "os.kill(os.getppid(), 9)\ntime.sleep(60)"),
    "SIGKILL to its parent in a call": (CALL, "def f(x):\n    os.kill(os.getppid(), 9)\n    time.sleep(60)"),
    "SIGSTOP to its parent": (STDIN, "os.kill(os.getppid(), 19)\ntime.sleep(60)"),
    "signals ignored": (
        CALL,
        "import signal\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\ndef f(x):\n    while True: pass",
    ),
    "threads that outlive it": (
        CALL,
        "import threading\ndef loop():\n    while True: pass\nfor _ in range(3): threading.Thread(target=loop).start()\ndef f(x): return 0",
    ),
    "a script whose threads outlive it": (
        STDIN,
        "import threading\nthreading.Thread(target=time.sleep, args=(60,)).start()\nprint(41)",
    ),
    "an atexit handler that loops": (
        STDIN,
        "import atexit\n@atexit.register\ndef loop():\n    while True: pass\nprint(42)",
    ),
    "a __del__ that loops": (
        CALL,
        "class D:\n    def __del__(self):\n        while True: pass\ndef f(x):\n    D()\n    return 42",
    ),
    "a daemon": (
        CALL,
        f"if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        os.execvp('sleep', ['sleep', '{SLEEP}'])\n    os._exit(0)\ndef f(x): return 0",
    ),
    "a daemon and os._exit": (
        CALL,
        f"if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        os.execvp('sleep', ['sleep', '{SLEEP}'])\n    os._exit(0)\ntime.sleep(0.2)\nos._exit(0)",
    ),
    "a daemon that keeps the output open": (
        STDIN,
        "print(42, flush=True)\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(600)\nos._exit(0)",
    ),
    "a daemon that goes on writing": (
        STDIN,
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        while True: os.write(1, b'42\\n')\nos._exit(0)",
    ),
    "standard output flooded": (STDIN, "while True: os.write(1, b'4' * 65536)"),
    "standard error flooded": (STDIN, "for _ in range(2000): os.write(2, b'4' * 65536)\nprint(41)"),
    "the reply pipe flooded": (CALL, "def f(x):\n    say(*[b'4' * 60000] * 1000)\n    return 0"),
    "replies made up": (CALL, "def f(x):\n    say(OK, OK, *[DONE, value(b'K*')] * 100)\n    return 0"),
    "replies made up at import": (CALL, "say(OK, *[DONE, value(b'K*')] * 100)\ndef f(x): return 42"),
    "a reply before it is asked": (STDIN, "say(OK, b'\\x80\\x04}(\\x8c\\x06stdout\\x8c\\x02428su.')"),
    "a reply in JSON": (
        CALL,
        "def f(x):\n    for d in outs():\n        try: os.write(d, b'{\"value\": 42}\\n')\n        except OSError: pass\n    time.sleep(60)",
    ),
    "a reply of which half never comes": (
        CHECKS,
        "class Solution:\n    def f(self, x):\n        for d in outs():\n            try: os.write(d, b'\\0\\0')\n            except OSError: pass\n        time.sleep(60)",
    ),
    "a reply of 2 ** 63 bytes": (
        CALL,
        "def f(x):\n    for d in outs():\n        try: os.write(d, struct.pack('>Q', 1 << 63))\n        except OSError: pass\n    time.sleep(60)",
    ),
    "a message that calls": (
        CALL,
        "def f(x):\n    say(DONE, value(name(b'os', b'getpid') + b')R'))\n    time.sleep(60)",
    ),
    "a message that calls a method": (
        CALL,
        "def f(x):\n    say(DONE, value(name(b'builtins', b'str.upper') + b'\\x8c\\x01a\\x85R'))\n    time.sleep(60)",
    ),
    "a message that replaces ==": (
        CALL,
        "def f(x):\n    say(DONE, value(name(b'codec', b'Opaque') + b'N}\\x8c\\x06__eq__' + name(b'builtins', b'str') + b's\\x86b0' + name(b'codec', b'Opaque') + b')R'))\n    time.sleep(60)",
    ),
    "a message that replaces Fraction's ==": (
        CALL,
        "def f(x):\n    say(DONE, value(name(b'fractions', b'Fraction') + b'N}\\x8c\\x06__eq__' + name(b'builtins', b'str') + b's\\x86b0' + name(b'fractions', b'Fraction') + b'K\\x01K\\x01\\x86R'))\n    time.sleep(60)",
    ),
    "a message of a fraction without end": (
        CALL,
        "def f(x):\n    say(DONE, value(name(b'fractions', b'Fraction') + b'\\x8c\\x0c1e3000000000\\x85R'))\n    time.sleep(60)",
    ),
    "a message of an array": (
        CALL,
        "def f(x):\n    say(DONE, value(name(b'codec', b'numpy_scalar') + b'\\x8c\\x07float64](K\\x01K\\x02e\\x86R'))\n    time.sleep(60)",
    ),
    "a class made by a message": (
        ASSERTS,
        """
def f(x):
    a_class = builtin(b'type') + b'(' + text(b'A') + builtin(b'object') + b'\\x85}' + text(b'__eq__') + builtin(b'bool')
    say(value(a_class + b'stR)R'))
    time.sleep(60)
""",
    ),
    "a class of the tests changed by a message": (
        ASSERTS,
        """
def f(x):
    a_class = name(b'codec', b'reference') + b'(' + text(b'yours') + b'K\\0' + text(b'') + b'))tR'
    say(value(a_class + b'N}' + text(b'__eq__') + builtin(b'bool') + b's\\x86b)R'))
    time.sleep(60)
""",
    ),
    "a message of all memory": (
        CALL,
        "def f(x):\n    say(DONE, value(name(b'builtins', b'bytes') + b'\\x8a\\x05\\0\\0\\0\\0\\x10\\x85R'))\n    time.sleep(60)",
    ),
    "always equal": (
        CALL,
        "class A:\n    def __eq__(self, other): return True\n    __ne__ = lambda self, other: False\n    __hash__ = None\ndef f(x): return A()",
    ),
    "an int that is always equal": (
        CALL,
        "class A(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\ndef f(x): return A(7)",
    ),
    "a str that is always equal": (
        CHECKS,
        "class A(str):\n    def __eq__(self, other): return True\n    __hash__ = str.__hash__\nclass Solution:\n    def f(self, x): return A('no')",
    ),
    "a list and a dict that are always equal": (
        CALL,
        "class A(list):\n    def __eq__(self, other): return True\nclass B(dict):\n    def __eq__(self, other): return True\ndef f(x): return A([1]) if x == 2 else B()",
    ),
    "a class that lies": (
        CALL,
        "class A:\n    __class__ = property(lambda self: int)\n    def __int__(self): return 42\n    def __eq__(self, other): return True\ndef f(x): return A()",
    ),
    "like numpy": (
        CALL,
        "class float64:\n    __module__ = 'numpy'\n    def item(self): return A()\nclass A(float):\n    def __eq__(self, other): return True\nfloat64.__module__ = 'numpy'\ndef f(x): return float64()",
    ),
    "builtins replaced": (
        CALL,
        "import builtins\nfor n in ('len', 'isinstance', 'print', 'open', 'exec', 'compile', 'all', 'type', 'str'): setattr(builtins, n, lambda *a, **k: True)\ndef f(x): return 41",
    ),
    "modules replaced": (
        CALL,
        "import pickle\nfor m in ('json', 'pickle', 'codec', 'runner', 'os'): sys.modules[m] = None\npickle.dumps = lambda *a, **k: b'42'\ndef f(x): return 41",
    ),
    "the codec replaced": (
        CALL,
        "import codec, runner\ncodec.dumps = lambda m: memoryview(message(value(b'K*')))\nrunner._Program.answer = lambda *a: {'value': 42}\ndef f(x): return 41",
    ),
    "the comparison replaced": (
        STDIN,
        "import runner, decimal\nrunner._run = lambda *a: {'stdout': '42', 'status': 0}\ndecimal.Decimal.__new__ = 0",
    ),
    "a signalling NaN": (STDIN, "print('sNaN')"),
    "a signalling NaN in a call": (CALL, "from decimal import Decimal\ndef f(x): return Decimal('sNaN')"),
    "bytes that are no UTF-8": (STDIN, "os.write(1, b'42\\xff\\xfe\\n')"),
    "null bytes in the output": (STDIN, "os.write(1, b'42\\0\\n')"),
    "null bytes in the source": (STDIN, "print(42)\0"),
    "10 MB of source": (STDIN, "x = 1\n" * (10 << 17) * 1 + "#" * (9 << 20)),
    "a line of 1 MB": (CALL, "x = '" + "a" * 1_000_000 + "'\ndef f(x): return 0"),
    "5,000 parentheses": (CALL, "def f(x): return " + "(" * 5000 + ")" * 5000),
    "5,000 brackets": (CALL, "def f(x): return " + "[" * 5000 + "]" * 5000),
    "an integer of ten million digits": (CALL, "def f(x): return 10 ** 10 ** 7"),
    "an integer of 5,000 digits": (CALL, "def f(x): return 10 ** 5000"),
    "a result 100,000 deep": (CALL, "def f(x):\n    a = []\n    for _ in range(100_000): a = [a]\n    return a"),
    "a result that contains itself": (CALL, "def f(x):\n    a = []\n    a.append(a)\n    return a"),
    "a result that contains one list 2 ** 40 times": (
        CALL,
        "def f(x):\n    a = [42]\n    for _ in range(40): a = [a, a]\n    return a",
    ),
    "a list of nodes in a circle": (CALL, "def f(x):\n    node = ListNode(42)\n    node.next = node\n    return node"),
    "a generator": (CALL, "def f(x):\n    while True: yield 42"),
    "a class for a function": (
        CALL,
        "class f:\n    def __init__(self, x): pass\n    def __reduce__(self): return (eval, ('42',))",
    ),
    "all descriptors closed": (CALL, "def f(x):\n    os.closerange(0, 300)\n    return 42"),
    "10,000 files": (STDIN, "files = [open('/dev/null') for _ in range(10_000)]\nprint(42)"),
    "a core dump": (CALL, "import ctypes\ndef f(x): ctypes.string_at(0)"),
    "its environment": (
        FIND | {"outputs": [SECRET]},
        "def f(x): return next((v for v in os.environ.values() if v.startswith('sk-')), str(sorted(os.environ)))",
    ),
    "its own memory": (
        FIND,
        "import gc, sys\ndef f(x):\n    frame = sys._getframe()\n    texts = [o for o in gc.get_objects()]\n    while frame:\n        texts.append(frame.f_locals)\n        frame = frame.f_back\n    for o in texts:\n        try: text = found(repr(o)[:100_000])\n        except Exception: continue\n        if text: return text",
    ),
    "its own memory under a test program": (
        CHECKS,
        "import gc\nclass Solution:\n    def f(self, x): return next((t for t in map(found, map(repr, gc.get_objects()[:50_000])) if t), 'none')",
    ),
    "the memory it was forked with": (
        FIND,
        "def f(x):\n    with open('/proc/self/maps') as maps, open('/proc/self/mem', 'rb', 0) as memory:\n        for line in maps:\n            span, rights = line.split()[:2]\n            start, end = (int(n, 16) for n in span.split('-'))\n            if 'r' not in rights or 'v' in line[-6:]: continue\n            try:\n                memory.seek(start)\n                text = found(memory.read(end - start))\n            except (OSError, ValueError, OverflowError): continue\n            if text: return text\n    return 'none'",
    ),
    "the channel of its parent": (
        LEFT,
        "import socket\nsent = 0\nfor n in range(256):\n    try:\n        with socket.socket(fileno=os.dup(n)) as channel:\n            channel.send(b'{\"end\": 1}\\n')\n            sent = 42\n    except OSError: pass\nprint(sent)",
    ),
    "the environment it was forked with": (
        FIND | {"outputs": [SECRET]},
        "def f(x):\n    text = open('/proc/self/environ').read()\n    return next((word for word in re.split('[\\0=]', text) if word.startswith('sk-')), 'none')",
    ),
    "a module left behind": (
        LEFT,
        "import builtins, types\nsys.modules['left'] = types.ModuleType('left')\nbuiltins.left = sys.left = os.left = 1\nfor n in ('left', '.left'): open(n, 'w').close()\nprint(41)",
    ),
    "a module of another row": (
        LEFT,
        "import builtins\nprint(42 if 'left' in sys.modules or any(hasattr(m, 'left') for m in (builtins, sys, os)) or os.listdir('.') else 41)",
    ),
    "a random state set": (LEFT, "import random\nrandom.seed(7)\nprint(41)"),
    "the random state of another row": (
        LEFT,
        "import random\nfirst = random.random()\nrandom.seed(7)\nprint(42 if first == random.random() else 41)",
    ),
    "SIGKILL to what it was forked from": (
        STDIN,
        "pid = os.getppid()\nwhile pid > 1:\n    try:\n        above = int(open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()[1])\n        if 'jail.py' not in open(f'/proc/{pid}/cmdline').read(): break\n        os.kill(pid, 9)\n        pid = above\n    except OSError: break\ntime.sleep(60)",
    ),
    "limits raised": (
        STDIN,
        "import resource\nfor kind in (resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):\n    soft, hard = resource.getrlimit(kind)\nprint(soft, hard)",
    ),
}

# Run only where the user's files and processes are out of reach.
CONFINED: dict[str, tuple[dict, str]] = {
    "SIGKILL to everyone": (CALL, "def f(x):\n    if contained: os.kill(-1, 9)\n    return 0"),
    "SIGKILL to process 1": (CALL, "def f(x):\n    if contained: os.kill(1, 9)\n    return 0"),
    "SIGKILL to every process it sees": (
        STDIN,
        "for n in os.listdir('/proc'):\n    if n.isdigit() and contained:\n        try: os.kill(int(n), 9)\n        except OSError: pass",
    ),
    "a fork bomb": (
        STDIN,
        "n = 0\ntry:\n    while n < 2000 and contained:\n        if os.fork() == 0:\n            os.closerange(1, 256)\n            time.sleep(60)\n        n += 1\nexcept OSError: pass\nprint('children', n)",
    ),
    "files outside deleted": (
        STDIN,
        "import shutil\nshutil.rmtree(canary, ignore_errors=True)\nprint(42 if os.path.exists(canary) else 0)",
    ),
    "files outside written": (
        STDIN,
        "wrote = 0\nfor place in (canary, {home!r}, {root!r}, '/', '/usr', '/etc', sys.prefix):\n    try:\n        open(place + '/trd-hostile-was-here', 'w').close()\n        wrote = 42\n    except OSError: pass\nprint(wrote)",
    ),
    "files of the sandbox written": (
        STDIN,
        "try:\n    open(os.__file__, 'a').close()\n    print(42)\nexcept OSError as error: print(error)",
    ),
    "the tests on the disk": (
        FIND,
        "def f(x):\n    for top in ({root!r}, canary, {home!r}, '/tmp', '/dev/shm', '/var/tmp', '/mnt', '/run', '/proc/1/root', '/proc/1/cwd'):\n        for where, _, files in os.walk(top):\n            for file in files:\n                try: text = found(open(os.path.join(where, file), 'rb').read(1 << 20))\n                except (OSError, MemoryError): continue\n                if text: return text",
    ),
    "the memory of other processes": (
        FIND,
        "def f(x):\n    for pid in filter(str.isdigit, os.listdir('/proc')):\n        for part in ('environ', 'cmdline', 'maps', 'mem'):\n            try:\n                if int(pid) != os.getpid(): text = found(open(f'/proc/{{pid}}/{{part}}', 'rb').read(1 << 20))\n                else: continue\n            except OSError: continue\n            if text: return text\n    return 'none'",
    ),
    "writing into other processes": (
        FIND,
        "import ctypes\ndef f(x):\n    libc = ctypes.CDLL(None)\n    return 'none' if all(libc.ptrace(16, pid, 0, 0) < 0 for pid in range(1, 40) if pid != os.getpid() ) else {hidden!r}",
    ),
    "a connection by TCP": (
        STDIN,
        "import socket\ntry:\n    socket.create_connection(('1.1.1.1', 53), 1)\n    print(42)\nexcept OSError as error: print(error)",
    ),
    "a connection to the grader's machine": (
        STDIN,
        "import socket\ntry:\n    socket.create_connection(('127.0.0.1', {port}), 1)\n    print(42)\nexcept OSError as error: print(error)",
    ),
    "a name looked up": (
        STDIN,
        "import socket\ntry:\n    socket.getaddrinfo('example.com', 80)\n    print(42)\nexcept OSError as error: print(error)",
    ),
    "a socket file": (
        STDIN,
        "import socket\ntry:\n    socket.socket(socket.AF_UNIX).connect(canary + '/socket')\n    print(42)\nexcept OSError as error: print(error)",
    ),
    "an abstract socket": (
        STDIN,
        "import socket\ntry:\n    socket.socket(socket.AF_UNIX).connect('\\0trd-hostile-{port}')\n    print(42)\nexcept OSError as error: print(error)",
    ),
    "/tmp filled": (
        STDIN,
        "written = 0\ntry:\n    for n in range(20):\n        with open(f'/tmp/{{n}}', 'wb') as file:\n            for _ in range(200): written += file.write(bytes(1 << 20))\nexcept OSError: pass\nprint(42 if written > 300 << 20 else written)",
    ),
    "/dev/shm filled": (
        STDIN,
        "written = 0\ntry:\n    for n in range(20):\n        with open(f'/dev/shm/{{n}}', 'wb') as file:\n            for _ in range(200): written += file.write(bytes(1 << 20))\nexcept OSError: pass\nprint(42 if written > 300 << 20 else written)",
    ),
    "limits raised above": (
        STDIN,
        "import resource\nraised = 0\nfor kind in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):\n    try:\n        resource.setrlimit(kind, (resource.RLIM_INFINITY,) * 2)\n        raised = 42\n    except (ValueError, OSError): pass\nprint(raised)",
    ),
    "namespaces of its own": (
        STDIN,
        "import ctypes\nlibc = ctypes.CDLL(None)\nprint(42 if any(libc.unshare(flag) == 0 for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000)) else 0)",
    ),
    "a mount": (
        STDIN,
        "import ctypes\nlibc = ctypes.CDLL(None)\ntries = libc.mount(b'none', b'/tmp', b'tmpfs', 0, None), libc.umount2(b'/proc', 2), libc.mount(None, b'/usr', None, 32 | 4096, None)\nprint(42 if 0 in tries else 0)",
    ),
    "root again": (
        STDIN,
        "gained = 0\nfor user in (0, 1000):\n    try:\n        os.setuid(user)\n        gained = os.getuid() != 1 and 42\n    except OSError: pass\nprint(gained if {root_runs} else 0)",
    ),
    "answers from installed packages": (
        FIND,
        "def f(x):\n    try:\n        from trd_cli.graders.evalplus_tasks import tasks\n        return {hidden!r} if tasks('humaneval', 'v0.1.10') else 'none'\n    except BaseException as error: return str(error)",
    ),
}


@dataclass(frozen=True)
class Ran:
    """Verdicts of the hostile rows and of the honest ones after them, and everything that was left behind."""

    rows: dict[str, Trajectory]
    honest: dict[str, Trajectory]
    seconds: float
    temporary: Path
    canary: Path


def program(tests: dict, source: str) -> tuple[str, str]:
    return f"So:\n```python\n{source}\n```\n", json.dumps(tests)


def level_or_skip(level: str) -> None:
    reason = refusal(level)
    if reason is not None:
        pytest.skip(f"--sandbox {level}: {reason}")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, ok: Callable[..., Result]) -> Trajectory:
    directory = tmp_path_factory.mktemp("template")
    ok("data", "make", "arithmetic", "--n", 1, "--out", directory / "p.parquet")
    ok("sample", "-m", "scripted", "-p", directory / "p.parquet", "--out", directory / "y_o")
    return rows_of(directory / "y_o")[0]


def verified(rows: list[Trajectory], directory: Path, *options: object) -> list[Trajectory]:
    """Return the rows after `trd verify` in a process of its own, with a secret in its environment."""
    (directory / "set").mkdir()
    (directory / "tmp").mkdir()
    write_shard(shard_path(directory / "set", 0), rows)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "trd_cli",
            "verify",
            directory / "set",
            "--workers",
            "1",
            "--max-errors",
            "1000",
            *map(str, options),
        ],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(directory / "tmp"), "TRD_TEST_SECRET": SECRET, "OPENAI_API_KEY": SECRET},
        capture_output=True,
        text=True,
        timeout=700,
    )
    assert done.returncode == 0, done.stderr
    return rows_of(directory / "set")


@pytest.fixture(scope="module")
def ran_at(tmp_path_factory: pytest.TempPathFactory, template: Trajectory) -> dict[str, Ran]:
    """Return what ran at each level that this machine allows; side by side, since most programs wait for their end."""
    levels = [level for level in SECONDS if refusal(level) is None]
    with ThreadPoolExecutor() as threads:
        running = {n: threads.submit(run_all, n, tmp_path_factory.mktemp("hostile"), template) for n in levels}
        return {level: running[level].result() for level in levels}


@pytest.fixture(scope="module", params=SECONDS)
def ran(request: pytest.FixtureRequest, ran_at: dict[str, Ran]) -> Ran:
    level_or_skip(request.param)
    return ran_at[request.param]


def run_all(level: str, directory: Path, template: Trajectory) -> Ran:
    """Grade all programs for a level, each followed by an honest one."""
    canary = directory / "canary"
    canary.mkdir()
    (canary / "file").write_text("alive")
    listeners = [socket.socket(), socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
    listeners[0].bind(("127.0.0.1", 0))
    port = listeners[0].getsockname()[1]
    # Binding through the directory: a socket's path has 107 characters at most.
    with ONE_AT_A_TIME, chdir(canary):
        listeners[1].bind("socket")
    listeners[2].bind(f"\0trd-hostile-{port}")
    for listener in listeners:
        listener.listen()
    known = {
        "home": str(Path.home()),
        "root": str(ROOT),
        "port": port,
        "hidden": HIDDEN,
        "root_runs": os.geteuid() == 0,
    }
    table = {name: (tests, source) for name, (tests, source) in EVERYWHERE.items()}
    if level == "namespaces":
        table |= {name: (t, s.format(**known)) for name, (t, s) in CONFINED.items()}
    tools = TOOLS.format(canary=str(canary))
    pairs = [pair for tests, source in table.values() for pair in (program(tests, tools + source), program(*HONEST))]
    rows = [
        replace(template, trajectory_id=f"{i:032x}", task="code", response=response, tests=tests)
        for i, (response, tests) in enumerate(pairs)
    ]
    began = time.monotonic()
    graded = verified(rows, directory, "--sandbox", level, "--test-timeout", 1, "--code-timeout", 10, "--memory", 1)
    seconds = time.monotonic() - began
    for listener in listeners:
        listener.close()
    return Ran(
        dict(zip(table, graded[::2], strict=True)),
        dict(zip(table, graded[1::2], strict=True)),
        seconds,
        directory / "tmp",
        canary,
    )


def test_no_hostile_program_is_right_and_each_is_one_that_failed(ran: Ran) -> None:
    wrong = {n: (r.verdict, r.verdict_detail) for n, r in ran.rows.items() if r.verdict != "incorrect"}
    # A forged reply holds the first expected value, which the test knows, but not the second; so none is right.
    assert wrong == {}


def test_the_row_after_a_hostile_program_is_graded_right(ran: Ran) -> None:
    assert {n: r.verdict_detail for n, r in ran.honest.items() if r.verdict != "correct"} == {}


def test_each_ends_within_its_limits(ran: Ran) -> None:
    """If only the pool's own limit ended a row, it would be a timeout and take more than a minute."""
    level = "namespaces" if len(ran.rows) > len(EVERYWHERE) else "limits"
    assert ran.seconds < SECONDS[level]


def test_no_process_is_left(ran: Ran) -> None:
    def left() -> list[list[str]]:
        found = []
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
            except psutil.Error:
                continue
            if any(str(ran.temporary) in word or word == SLEEP for word in words):
                found.append(words)
        return found

    deadline = time.monotonic() + 5
    while left() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left() == []


def test_nothing_outside_is_changed(ran: Ran) -> None:
    assert (ran.canary / "file").read_text() == "alive"
    assert sorted(path.name for path in ran.canary.iterdir()) == ["file", "socket"]
    for place in (Path.home(), ROOT, Path("/"), Path("/usr"), Path("/etc"), Path(sys.prefix)):
        assert not (place / "trd-hostile-was-here").exists()


def test_no_sandbox_leaves_its_directory(ran: Ran) -> None:
    assert [path.name for path in ran.temporary.iterdir() if path.name.startswith("trd-sandbox-")] == []


def test_the_secret_of_the_environment_is_seen_by_no_program(ran: Ran) -> None:
    assert not any(SECRET in (row.verdict_detail or "") for row in ran.rows.values())
    assert "PATH" in ran.rows["its environment"].verdict_detail


def test_a_fork_bomb_gets_few_children(ran: Ran) -> None:
    if "a fork bomb" not in ran.rows:
        pytest.skip("the number of processes has no limit at level limits")
    words = ran.rows["a fork bomb"].verdict_detail.replace("\\n", " ").replace("'", " ").split()
    assert 10 < int(words[words.index("children") + 1]) < 100


def test_core_files_are_not_written(ran: Ran) -> None:
    assert "ended" in ran.rows["a core dump"].verdict_detail
    assert list(ran.temporary.rglob("core*")) == []


MATH = {
    "a tower": r"\boxed{9^{9^{9^{9}}}}",
    "100,000 characters": r"\boxed{" + "1+" * 50_000 + "1}",
    "100,000 characters without a box": "x^2+" * 25_000,
    "5,000 braces": r"\boxed{" + "{" * 5000 + "12" + "}" * 5000 + "}",
    "braces that open": r"\boxed{" + "{" * 5000,
    "braces that close": r"\boxed{12" + "}" * 5000 + r"\boxed{" + "}" * 3 + "{",
    "5,000 fractions": r"\boxed{" + r"\frac{1}{" * 5000 + "2" + "}" * 5000 + "}",
    "emoji": "\\boxed{\U0001f642\U0001f642^\U0001f642}",
    "null bytes": "\\boxed{\0 1\0 3}",
    "a factorial of a factorial": r"\boxed{((10!)!)!}",
    "a program": r"\boxed{__import__('os').getpid()}",
}


def test_hostile_answers_of_mathematics_are_contained(
    template: Trajectory, tmp_path_factory: pytest.TempPathFactory
) -> None:
    responses = [text for answer in MATH.values() for text in (answer, r"\boxed{\frac{24}{2}}")]
    rows = [
        replace(template, trajectory_id=f"{i:032x}", response=response, reference_answer="12")
        for i, response in enumerate(responses)
    ]
    began = time.monotonic()
    graded = verified(rows, tmp_path_factory.mktemp("math"), "--timeout", 4)
    assert time.monotonic() - began < 120
    assert {name: row.verdict for name, row in zip(MATH, graded[::2], strict=True) if row.verdict == "correct"} == {}
    assert {row.verdict for row in graded[1::2]} == {"correct"}
