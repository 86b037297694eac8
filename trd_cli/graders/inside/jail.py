"""Started as a script: closes the sandbox around itself, then serves requests (see runner). Standard library only.

    python -s -S -P jail.py     a prepared parent: each message on its standard input, a socket, asks for one sandbox

It has loaded what every sandbox needs and never a program. A message is a JSON object of OPTIONS with the descriptors
that the new process reads requests from and writes replies to; the reply is that process's number. A message {"end":
number} ends it. Messages and replies end with a line.

    python -s -S -P jail.py OPTIONS     one sandbox, where another program has closed it (bwrap)

OPTIONS: `level` ("namespaces", "limits", or "bwrap" where that has closed it already), `root` (an empty
directory), `work` (where programs work: `/tmp` or below it), `shown` (directories that stay visible, read-only), `site`
(directories of packages), `memory` and `file_size` in bytes, `processes`, `seconds` of CPU, `environment` (variables
besides those of the parent), and `other` (two more descriptors, see runner.Pipes) or null.

Level "namespaces", Linux: new user, mount, process, network, IPC and host-name namespaces. The file system is a new,
small one: the directories shown, read-only, and an empty /tmp that holds at most `file_size` bytes. There is no network
but a loopback that is down. All processes end when this one does. Level "limits" is what remains where the kernel
refuses that: a session of its own, no core files, and resource limits.

The processes: this one starts the keeper, which enters the namespaces and is given its user ids by this one (a process
cannot map more than one by itself); the keeper starts the first process of the new process namespace, and that one
starts the runner, so that the runner may fall to any signal and everything it started falls with the first process.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import json
import os
import resource
import signal
import socket
import sys
import types

_NAMESPACES = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_NOSUID, _MS_NODEV = 4096, 16384, 1 << 18, 2, 4
# Where the pipes to another sandbox are.
_OTHERS = (50, 51)
_PR_SET_DUMPABLE = 4
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP, _PR_SET_CHILD_SUBREAPER = 1, 38, 24, 36
_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1
_MNT_DETACH = 2
_DEVICES = ("null", "zero", "full", "random", "urandom")
_NOBODY = 65534


class Refused(OSError):
    """The kernel does not allow this level here."""


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        raise Refused(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _mount(libc: ctypes.CDLL, source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    result = libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode())
    _check(result, f"mount {target}")


def _read_only(libc: ctypes.CDLL, path: str, undo: bool = False) -> None:
    """Make a mount, and all that was mounted below it with it, read-only; or undo that of the mount alone."""
    attributes = (ctypes.c_uint64 * 4)(*((0, _MOUNT_ATTR_RDONLY) if undo else (_MOUNT_ATTR_RDONLY, 0)), 0, 0)
    flags = 0 if undo else _AT_RECURSIVE
    result = libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, path.encode(), flags, ctypes.byref(attributes), 32)
    _check(result, f"mount_setattr {path}")


def _build_root(libc: ctypes.CDLL, options: dict) -> None:
    """A file system of what is shown, devices and an empty /tmp; then it is the only one there is."""
    root = options["root"]
    _mount(libc, "none", "/", "", _MS_REC | _MS_PRIVATE)
    _mount(libc, "tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    # Before what is shown, which may lie below it.
    os.mkdir(f"{root}/tmp")
    _mount(libc, "tmpfs", f"{root}/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={options['file_size']},mode=1777")
    for path in options["shown"]:
        inside = root + path
        if os.path.islink(path):
            os.makedirs(os.path.dirname(inside), exist_ok=True)
            os.symlink(os.readlink(path), inside)
            continue
        if os.path.isfile(path):
            _touch(inside)
        else:
            os.makedirs(inside, exist_ok=True)
        _mount(libc, path, inside, "", _MS_BIND | _MS_REC)
        _read_only(libc, inside)
    for name in _DEVICES:
        inside = _touch(f"{root}/dev/{name}")
        _mount(libc, f"/dev/{name}", inside, "", _MS_BIND)
    for name in ("proc", "old", "dev/shm"):
        os.makedirs(f"{root}/{name}")
    if options["work"] != "/tmp":
        os.mkdir(root + options["work"])
        os.chmod(root + options["work"], 0o1777)
    with contextlib.suppress(OSError):  # a container that hides parts of /proc does not allow a new one
        _mount(libc, "proc", f"{root}/proc", "proc", _MS_NOSUID | _MS_NODEV)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"{root}/dev/{name}")
    os.symlink("/proc/self/fd", f"{root}/dev/fd")
    # In a user namespace of its own a program could mount file systems without bound.
    with contextlib.suppress(OSError):
        _write("/proc/sys/user/max_user_namespaces", "0")
    os.chdir(root)
    _check(libc.pivot_root(b".", b"old"), "pivot_root")
    os.chdir("/")
    _check(libc.umount2(b"/old", _MNT_DETACH), "umount /old")
    os.rmdir("/old")
    _read_only(libc, "/")
    _read_only(libc, "/tmp", undo=True)
    _mount(libc, options["work"], "/dev/shm", "", _MS_BIND)


def _touch(path: str) -> str:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
    return path


def _map_ids(keeper: int) -> bool:
    """Give the keeper's namespace its user ids:

    root's own and nobody where we may, else our own. Whether there are two.
    """
    lines = [f"0 {os.geteuid()} 1\n1 {_NOBODY} 1\n"] if os.geteuid() == 0 else []
    for text in [*lines, f"0 {os.geteuid()} 1\n"]:
        with contextlib.suppress(OSError):
            _write(f"/proc/{keeper}/uid_map", text)
            break
    else:
        raise Refused(1, "the user ids cannot be mapped")
    with contextlib.suppress(OSError):
        _write(f"/proc/{keeper}/setgroups", "deny")
        _write(f"/proc/{keeper}/gid_map", f"0 {os.getegid()} 1\n")
    return text in lines


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _die_with_parent(libc: ctypes.CDLL) -> None:
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _drop_capabilities(libc: ctypes.CDLL, as_nobody: bool) -> None:
    """No capability is left, and none comes back by running a program."""
    for number in range(64):
        if libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
            break
    # Not before: it takes the right to drop the others away.
    if as_nobody:
        os.setresuid(1, 1, 1)
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _check(libc.capset(ctypes.byref(header), ctypes.byref(data)), "capset")
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def _limit(options: dict) -> None:
    kinds = {
        "RLIMIT_AS": options["memory"],
        "RLIMIT_CPU": options["seconds"],
        "RLIMIT_FSIZE": options["file_size"],
        "RLIMIT_NPROC": options["processes"],
        "RLIMIT_NOFILE": 256,
        "RLIMIT_CORE": 0,
    }
    for name, value in kinds.items():
        kind = getattr(resource, name, None)
        if kind is None or value is None:
            continue
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # macOS has no working RLIMIT_AS.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (value, value))


def _fork_and_wait() -> None:
    """Go on in a child; the parent ends with it, with the same code."""
    child = os.fork()
    if child == 0:
        return
    # What the child reads and writes must end with it.
    for descriptor in range(3):
        os.close(descriptor)
    while True:
        ended, status = os.wait()
        if ended == child:
            os._exit(0 if status == 0 else 1)


def _enter_namespaces(options: dict) -> None:
    """Returns in the runner's process, inside; the processes around it stay behind to wait."""
    libc = _libc()
    ready, mapped = os.pipe(), os.pipe()
    keeper = os.fork()
    if keeper:
        os.close(ready[1])
        os.close(mapped[0])
        if os.read(ready[0], 1):
            os.write(mapped[1], b"2" if _map_ids(keeper) else b"1")
        for descriptor in range(3):
            os.close(descriptor)
        os.waitpid(keeper, 0)
        os._exit(0)
    os.close(ready[0])
    os.close(mapped[1])
    _die_with_parent(libc)
    _check(libc.unshare(_NAMESPACES), "unshare")
    os.write(ready[1], b".")
    ids = os.read(mapped[0], 1)
    if not ids:
        raise Refused(1, "the user ids cannot be mapped")
    for descriptor in (ready[1], mapped[0]):
        os.close(descriptor)
    os.setgid(0)
    os.setuid(0)
    _die_with_parent(libc)
    _fork_and_wait()  # into the new process namespace, as its first process
    _die_with_parent(libc)
    _build_root(libc, options)
    _fork_and_wait()
    _drop_capabilities(libc, as_nobody=ids == b"2")


def _reap_for_ever() -> None:
    """What the keeper does until the judge ends it, and with it all that is below it."""
    for descriptor in range(3):
        os.close(descriptor)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            signal.pause()


def _enter_limits(options: dict) -> None:
    if sys.platform == "linux":
        libc = _libc()
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if options["level"] == "bwrap":
            return
        # A daemon stays below this process, where it is found and ended, even if the runner is gone.
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        if os.fork():
            _reap_for_ever()
        _die_with_parent(libc)


def _seal_ourselves(libc: ctypes.CDLL, sealed: bool) -> None:
    """Keep other processes of the user out of this one's memory, or undo it:

    what is sealed cannot be given user ids.
    """
    libc.prctl(_PR_SET_DUMPABLE, 0 if sealed else 1, 0, 0, 0)


def main() -> None:
    """Serve as the parent of sandboxes until the other end of standard input is closed;

    with OPTIONS become a sandbox.
    """
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import runner

    runner.prepare()
    sys.path[:1] = []
    libc = _libc() if sys.platform == "linux" else None
    if libc:
        _die_with_parent(libc)
        with contextlib.suppress(OSError):  # where memory runs out, it is a program that the kernel ends
            _write("/proc/self/oom_score_adj", "1000")
    if len(sys.argv) > 1:
        options = json.loads(sys.argv[1])
        _become_sandbox(runner, options, options["other"] or [])
    # Its owner's bounds are of a row.
    for kind in (resource.RLIMIT_CPU, resource.RLIMIT_AS):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (resource.getrlimit(kind)[1],) * 2)
    if libc:
        _seal_ourselves(libc, sealed=True)
    gc.freeze()
    channel = socket.socket(fileno=0)
    while True:
        message, descriptors = _received(channel)
        if not message:
            os._exit(0)
        request = json.loads(message)
        if "end" in request:
            _end(request["end"])
            channel.send(b"ended\n")
            continue
        child = os.fork()
        if child == 0:
            channel.detach()
            _take(descriptors)
            if libc:
                _seal_ourselves(libc, sealed=False)
            _become_sandbox(runner, request, list(_OTHERS)[: len(descriptors) - 2])
        for descriptor in descriptors:
            os.close(descriptor)
        channel.send(b"%d\n" % child)


def _received(channel: socket.socket) -> tuple[bytes, list[int]]:
    """One line and the descriptors that came with it; nothing at the end."""
    message, descriptors, _, _ = socket.recv_fds(channel, 1 << 16, 4)
    while message and not message.endswith(b"\n"):
        message += channel.recv(1 << 16) or b"\n"
    return message, list(descriptors)


def _take(descriptors: list[int]) -> None:
    """In the child: have the descriptors given as standard input and output and as `_OTHERS`, and no other one."""
    os.setsid()
    apart = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 100) for descriptor in descriptors]
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 2)
    for descriptor, place in zip(apart, (0, 1, *_OTHERS), strict=False):
        os.dup2(descriptor, place)
    kept = {0, 1, 2, *_OTHERS[: len(descriptors) - 2]}
    for descriptor in {nothing, *descriptors, *apart} - kept:
        os.close(descriptor)


def _end(child: int) -> None:
    """End a child of this process, which has not been waited for, so that its number is still its own."""
    for end in (os.kill, os.killpg):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            end(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)


def _become_sandbox(runner: types.ModuleType, options: dict, others: list[int]) -> None:
    """In the child: close the sandbox around this process and serve. Never returns."""
    try:
        os.environ.update(options["environment"])
        other = runner.Pipes(*others) if others else None
        if sys.platform == "linux":
            _die_with_parent(_libc())
        try:
            if options["level"] == "namespaces":
                _enter_namespaces(options)
                os.chdir(options["work"])
            else:
                _enter_limits(options)
                os.chdir(options["root"])
            _limit(options)
        except OSError as error:
            runner.Pipes(0, 1).send({"refused": str(error)})
            os._exit(1)
        pipes = runner.Pipes(os.dup(0), os.dup(1))
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(nothing, descriptor)
        os.close(nothing)
        sys.path += options["site"]
        runner.serve(pipes, other)
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
