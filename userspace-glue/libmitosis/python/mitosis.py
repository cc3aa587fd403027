# SPDX-License-Identifier: MIT OR GPL-2.0-only
"""Remote fork for Python programs, over libmitosis_fork.so.

    import mitosis

    seed = mitosis.prepare()
    if isinstance(seed, mitosis.Child):
        print("child", seed.number, "goes on here")
    else:
        print("resume me:", seed, seed.capability.hex())

The library is looked for as the loader does, or at MITOSIS_FORK_LIBRARY. docs/libmitosis.md has the
rules of what a child keeps.
"""

from __future__ import annotations

import ctypes
import os
import threading
from dataclasses import dataclass
from typing import NoReturn, Optional, Union

__all__ = [
    "Child",
    "Image",
    "MitosisError",
    "Seed",
    "SeedInfo",
    "connect",
    "disconnect",
    "open_seed",
    "ping",
    "prepare",
    "seeds",
    "stats",
]

DEFAULT_SERVICE = 2

_FREEZE_STRICT_FILES = 1
_PREPARE_WAIT = 2
_OPEN_EAGER = 1
_OPEN_PRIVATE = 2
_RESUME_SKIP_FILES = 1


class MitosisError(OSError):
    """A call of the library that failed; the text says what to do about it."""


class _SeedId(ctypes.Structure):
    _fields_ = [("id", ctypes.c_uint32), ("generation", ctypes.c_uint32)]


class _Options(ctypes.Structure):
    _fields_ = [
        ("lease_ms", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]


class _Seed(ctypes.Structure):
    _fields_ = [
        ("id", _SeedId),
        ("capability", ctypes.c_ubyte * 16),
        ("descriptor_len", ctypes.c_uint64),
        ("vmas", ctypes.c_uint32),
        ("chunks", ctypes.c_uint32),
        ("pid", ctypes.c_int32),
        ("child", ctypes.c_uint32),
    ]


class _SeedInfo(ctypes.Structure):
    _fields_ = [
        ("seed", _SeedId),
        ("pid", ctypes.c_int32),
        ("uid", ctypes.c_uint32),
        ("age_ms", ctypes.c_uint64),
        ("lease_left_ms", ctypes.c_uint64),
        ("descriptor_len", ctypes.c_uint64),
        ("vmas", ctypes.c_uint32),
        ("chunks", ctypes.c_uint32),
        ("regions", ctypes.c_uint32),
        ("opened", ctypes.c_uint32),
        ("comm", ctypes.c_char * 16),
    ]


_STATS = (
    "seeds prepared unprepared images children regions seed_pages cached_pages faults faults_zero "
    "faults_cached faults_read faults_rpc faults_failed pages_read connections"
).split()


class _Stats(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in _STATS] + [("reserved", ctypes.c_uint64 * 4)]


_Gid = ctypes.c_ubyte * 16


def _load() -> ctypes.CDLL:
    path = os.environ.get("MITOSIS_FORK_LIBRARY", "libmitosis_fork.so")
    library = ctypes.CDLL(path, use_errno=True)
    library.mitosis_error.restype = ctypes.c_char_p
    library.mitosis_open.restype = ctypes.c_void_p
    library.mitosis_open.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        _SeedId,
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_uint32,
    ]
    library.mitosis_image_descriptor.restype = ctypes.c_void_p
    library.mitosis_image_descriptor.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t)]
    library.mitosis_image_close.argtypes = [ctypes.c_void_p]
    library.mitosis_image_close.restype = None
    library.mitosis_resume.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32]
    library.mitosis_freeze.argtypes = [
        ctypes.c_uint64,
        ctypes.c_uint32,
        ctypes.POINTER(ctypes.c_uint32),
    ]
    library.mitosis_await_frozen.argtypes = [
        ctypes.c_uint64,
        ctypes.c_int32,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    return library


_library = _load()


def _failed() -> MitosisError:
    number = ctypes.get_errno()
    return MitosisError(number, _library.mitosis_error().decode(errors="replace"))


def _checked(returned: int) -> int:
    if returned < 0:
        raise _failed()
    return returned


def _gid(machine: str) -> ctypes.Array[ctypes.c_ubyte]:
    gid = _Gid()
    if _library.mitosis_gid(os.fsencode(machine), gid) < 0:
        raise ValueError(f"{machine!r} is neither a GID nor an IP address")
    return gid


@dataclass(frozen=True)
class Child:
    """Who a child is."""

    number: int


@dataclass(frozen=True)
class Seed:
    """A seed that this process has prepared. Use it in a `with` statement, or unprepare() it."""

    id: int
    generation: int
    capability: bytes
    pid: int
    descriptor_len: int
    vmas: int
    chunks: int

    def __str__(self) -> str:
        return f"{self.id}.{self.generation}"

    def unprepare(self) -> None:
        """Ends the seed."""
        seed = _Seed(id=_SeedId(self.id, self.generation), pid=self.pid)
        _checked(_library.mitosis_unprepare(ctypes.byref(seed)))

    def __enter__(self) -> Seed:
        return self

    def __exit__(self, *_: object) -> None:
        self.unprepare()


@dataclass(frozen=True)
class SeedInfo:
    """What is known of a seed of this machine."""

    id: int
    generation: int
    pid: int
    uid: int
    comm: str
    age_ms: int
    lease_left_ms: Optional[int]
    descriptor_len: int
    vmas: int
    chunks: int
    regions: int
    opened: int


def prepare(
    lease_ms: int = 0, strict_files: bool = False, wait: bool = False
) -> Union[Seed, Child]:
    """Makes a seed of this process; returns it, and again in each of its children a Child.

    Does not wait until the seed has frozen, unless told to (strict_files does as well): its descriptor_len,
    vmas and chunks may be 0 then.

    The copy is made by os.fork(), with Python's own handlers, so that a child has the thread that
    called this and no other.
    """
    flags = _FREEZE_STRICT_FILES if strict_files else 0
    token = ctypes.c_uint64()
    _checked(_library.mitosis_token(ctypes.byref(token)))
    number = ctypes.c_uint32()
    seed = _Seed()
    waiting = _PREPARE_WAIT if wait or strict_files else 0
    options = _Options(lease_ms=lease_ms, flags=waiting)
    pid = os.fork()
    if pid == 0:
        if _library.mitosis_freeze(token, flags, ctypes.byref(number)) != 1:
            os._exit(ctypes.get_errno())
        # Python has noted the thread's id as well.
        set_native_id = getattr(threading.current_thread(), "_set_native_id", None)
        if set_native_id is not None:
            set_native_id()
        return Child(number.value)
    _checked(
        _library.mitosis_await_frozen(token, pid, ctypes.byref(options), ctypes.byref(seed))
    )
    return Seed(
        id=seed.id.id,
        generation=seed.id.generation,
        capability=bytes(seed.capability),
        pid=seed.pid,
        descriptor_len=seed.descriptor_len,
        vmas=seed.vmas,
        chunks=seed.chunks,
    )


def seeds() -> list[SeedInfo]:
    """The seeds of this machine: one's own, or as root all."""
    room = 64
    while True:
        infos = (_SeedInfo * room)()
        count = _checked(_library.mitosis_list(infos, room))
        if count <= room:
            break
        room = count + 64
    return [
        SeedInfo(
            id=info.seed.id,
            generation=info.seed.generation,
            pid=info.pid,
            uid=info.uid,
            comm=info.comm.decode(errors="replace"),
            age_ms=info.age_ms,
            lease_left_ms=info.lease_left_ms or None,
            descriptor_len=info.descriptor_len,
            vmas=info.vmas,
            chunks=info.chunks,
            regions=info.regions,
            opened=info.opened,
        )
        for info in infos[:count]
    ]


class Image:
    """A seed, opened on the machine where it is to go on."""

    def __init__(self, handle: int) -> None:
        self._handle: Optional[int] = handle

    @property
    def descriptor(self) -> bytes:
        """The descriptor's bytes (docs/descriptor.md)."""
        length = ctypes.c_size_t()
        start = _library.mitosis_image_descriptor(self._open(), ctypes.byref(length))
        return ctypes.string_at(start, length.value)

    def resume(self, child: int = 0, skip_files: bool = False) -> NoReturn:
        """Replaces this process by a child of the seed; returns only by raising."""
        flags = _RESUME_SKIP_FILES if skip_files else 0
        _library.mitosis_resume(self._open(), child, flags)
        raise _failed()

    def close(self) -> None:
        """Closes the image; children go on."""
        if self._handle is not None:
            _library.mitosis_image_close(self._handle)
            self._handle = None

    def _open(self) -> int:
        if self._handle is None:
            raise ValueError("the image is closed")
        return self._handle

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_seed(
    machine: str,
    id: int,
    generation: int = 0,
    capability: Optional[bytes] = None,
    *,
    service: int = DEFAULT_SERVICE,
    eager: bool = False,
    private: bool = False,
    prefetch: int = 0,
) -> Image:
    """Fetches a seed's descriptor; `machine` is a GID or an IP address."""
    if capability is not None and len(capability) != 16:
        raise ValueError("a capability has 16 bytes")
    flags = (_OPEN_EAGER if eager else 0) | (_OPEN_PRIVATE if private else 0)
    handle = _library.mitosis_open(
        _gid(machine),
        service,
        _SeedId(id, generation),
        _Gid(*capability) if capability is not None else None,
        flags,
        prefetch,
    )
    if not handle:
        raise _failed()
    return Image(handle)


def connect(machine: str, service: int = DEFAULT_SERVICE) -> None:
    """Connects to a machine before that is needed."""
    _checked(_library.mitosis_connect(_gid(machine), service))


def disconnect(machine: str, service: int = DEFAULT_SERVICE) -> None:
    """Drops the connections to a machine."""
    _checked(_library.mitosis_disconnect(_gid(machine), service))


def ping(machine: str, service: int = DEFAULT_SERVICE) -> int:
    """How long a machine takes to answer, in ns."""
    took = ctypes.c_uint64()
    _checked(_library.mitosis_ping(_gid(machine), service, ctypes.byref(took)))
    return took.value


def stats() -> dict[str, int]:
    """What the module of this machine has and has done."""
    found = _Stats()
    _checked(_library.mitosis_stats(ctypes.byref(found)))
    return {name: getattr(found, name) for name in _STATS}
