"""Close a sandbox around this process, then serve requests (see runner). Runs as a script; standard library only.

    python -s -S -P jail.py     a prepared parent: each message on its standard input, a socket, asks for one sandbox

A parent has loaded what every sandbox needs and never a program. A message is a JSON object of OPTIONS, sent with the
descriptors from which the new process reads requests and to which it writes replies; the parent replies with that
process's number. The message {"end": number} ends it. Messages and replies end with a line.

    python -s -S -P jail.py OPTIONS     one sandbox that another program has closed (bwrap)

OPTIONS: `level` ("namespaces", "limits", or "bwrap" if that has closed it already), `root` (an empty directory), `work`
(the directory in which programs work: `/tmp` or below it), `shown` (directories that stay visible, read-only), `site`
(directories of packages), `memory` and `file_size` in bytes, `processes`, `seconds` of CPU, `environment` (variables
besides those of the parent), and `other` (two more descriptors, see runner.Pipes) or null.

Level "namespaces", Linux: new user, mount, process, network, IPC and host-name namespaces. The new file system holds
the visible directories, read-only, and an empty /tmp of at most `file_size` bytes. The only network is a loopback that
is down. All processes end with this one. Level "limits" is for kernels that refuse namespaces: a session of its own, no
core files, and resource limits.

The processes: this one starts the keeper and maps its user ids once the keeper is in the namespaces (a process cannot
map more than one by itself). The keeper starts the first process of the new process namespace, which starts the runner.
Any signal may end the runner, and all that it started ends with the first process.
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
# Descriptors of the pipes to another sandbox.
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
    """Make a mount and all mounts below it read-only, or undo that for the mount alone."""
    attributes = (ctypes.c_uint64 * 4)(*((0, _MOUNT_ATTR_RDONLY) if undo else (_MOUNT_ATTR_RDONLY, 0)), 0, 0)
    flags = 0 if undo else _AT_RECURSIVE
    result = libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, path.encode(), flags, ctypes.byref(attributes), 32)
    _check(result, f"mount_setattr {path}")


def _build_root(libc: ctypes.CDLL, options: dict) -> None:
    """Build a file system of the visible directories, devices and an empty /tmp, and make it the only one."""
    root = options["root"]
    _mount(libc, "none", "/", "", _MS_REC | _MS_PRIVATE)
    _mount(libc, "tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    # Mounted before the visible directories, which may lie below it.
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
    with contextlib.suppress(OSError):  # a container that hides parts of /proc forbids a new one
        _mount(libc, "proc", f"{root}/proc", "proc", _MS_NOSUID | _MS_NODEV)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"{root}/dev/{name}")
    os.symlink("/proc/self/fd", f"{root}/dev/fd")
    # In a user namespace of its own a program could mount any number of file systems.
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
    """Give the keeper's namespace its user ids and return whether there are two.

    As root they are root's own id and nobody, otherwise our own id alone.
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
    """Drop all capabilities, so that none comes back by running a program."""
    for number in range(64):
        if libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
            break
    # This comes after the loop because it takes away the right to drop capabilities.
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
    """Return in a child; the parent waits for it and ends with the same code."""
    child = os.fork()
    if child == 0:
        return
    # The child's pipes must end with the child.
    for descriptor in range(3):
        os.close(descriptor)
    while True:
        ended, status = os.wait()
        if ended == child:
            os._exit(0 if status == 0 else 1)


def _enter_namespaces(options: dict) -> None:
    """Return in the runner's process inside the namespaces; the processes around it stay behind and wait."""
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
    """Reap processes in the keeper until the judge ends it, and with it all processes below it."""
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
        # Daemons stay below this process, which can find and end them even if the runner is gone.
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        if os.fork():
            _reap_for_ever()
        _die_with_parent(libc)


def _seal_ourselves(libc: ctypes.CDLL, sealed: bool) -> None:
    """Keep other processes of the user out of this one's memory, or undo it: a sealed process cannot get user ids."""
    libc.prctl(_PR_SET_DUMPABLE, 0 if sealed else 1, 0, 0, 0)


def main() -> None:
    """Serve as the parent of sandboxes until standard input closes; with OPTIONS become a sandbox."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import runner

    runner.prepare()
    sys.path[:1] = []
    libc = _libc() if sys.platform == "linux" else None
    if libc:
        _die_with_parent(libc)
        with contextlib.suppress(OSError):  # if memory runs out, the kernel must end a program
            _write("/proc/self/oom_score_adj", "1000")
    if len(sys.argv) > 1:
        options = json.loads(sys.argv[1])
        _become_sandbox(runner, options, options["other"] or [])
    # The owner's bounds are for one row.
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
    """Return one line and the descriptors that came with it; nothing at the end."""
    message, descriptors, _, _ = socket.recv_fds(channel, 1 << 16, 4)
    while message and not message.endswith(b"\n"):
        message += channel.recv(1 << 16) or b"\n"
    return message, list(descriptors)


def _take(descriptors: list[int]) -> None:
    """In the child, make the descriptors standard input and output and `_OTHERS`, and close all others."""
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
    """End a child of this process; its number is still its own, because nobody has waited for it."""
    for end in (os.kill, os.killpg):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            end(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)


def _become_sandbox(runner: types.ModuleType, options: dict, others: list[int]) -> None:
    """In the child, close the sandbox around this process and serve; never return."""
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
