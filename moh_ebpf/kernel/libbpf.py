"""The few calls of libbpf that reading and wiring maps takes, through ctypes.

libbpf.so.1 is on every Debian with iproute2. BCC is not needed here: commands that only read
work without it. File descriptors are plain ints, closed by whoever asked for them.
"""

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from moh_ebpf.errors import MohError

BPF_ANY = 0
BPF_NOEXIST = 1

# enum bpf_prog_type, enum bpf_attach_type (linux/bpf.h)
_SCHED_CLS = 3
TCX_INGRESS = 46
TCX_EGRESS = 47

_NAME_LENGTH = 16
_BATCH = 8192


class ProgramInfo(ctypes.Structure):
    """The head of struct bpf_prog_info (linux/bpf.h), as far as it is read here."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("jited_prog_insns", ctypes.c_uint64),
        ("xlated_prog_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * _NAME_LENGTH),
        ("not_read", ctypes.c_uint64 * 14),  # ifindex … prog_tags
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
    )


class _MapInfo(ctypes.Structure):
    """The head of struct bpf_map_info (linux/bpf.h)."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * _NAME_LENGTH),
    )


class _QueryOptions(ctypes.Structure):
    """The head of struct bpf_prog_query_opts (bpf/bpf.h)."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("query_flags", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("prog_ids", ctypes.c_void_p),
        ("count", ctypes.c_uint32),
    )


@dataclass(frozen=True)
class Program:
    """A loaded program: its id, its name (cut to 15 bytes by the kernel), the ids of its maps; how
    often and how long, in ns, it ran while the kernel counted that (kernel.bpf_stats_enabled)."""

    id: int
    name: str
    map_ids: tuple[int, ...]
    runs: int
    run_ns: int


@dataclass(frozen=True)
class Map:
    """An open map; sizes in bytes."""

    fd: int
    id: int
    name: str
    key_size: int
    value_size: int
    max_entries: int


@cache
def _library() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise MohError("libbpf.so.1 is missing", "apt install libbpf1") from error


def call(name: str, *arguments: Any) -> int:
    """Call a libbpf function; what it returns if not negative. Raises OSError with its errno."""
    result: int = getattr(_library(), name)(*arguments)
    if result < 0:
        code = ctypes.get_errno() or -result
        raise OSError(code, os.strerror(code), name)
    return result


def program_fd(program_id: int) -> int:
    """A file descriptor of the program with this id. Raises OSError, ENOENT if there is none."""
    return call("bpf_prog_get_fd_by_id", ctypes.c_uint32(program_id))


def program_info(fd: int) -> Program:
    """What the kernel says of an open program. Raises OSError."""
    ids = (ctypes.c_uint32 * 64)()
    info = ProgramInfo(nr_map_ids=len(ids), map_ids=ctypes.addressof(ids))
    length = ctypes.c_uint32(ctypes.sizeof(info))
    call("bpf_obj_get_info_by_fd", fd, ctypes.byref(info), ctypes.byref(length))
    map_ids = tuple(ids[: info.nr_map_ids])
    return Program(info.id, info.name.decode(), map_ids, info.run_cnt, info.run_time_ns)


def open_map(map_id: int) -> Map:
    """The map with this id, opened. Raises OSError, ENOENT if there is none."""
    fd = call("bpf_map_get_fd_by_id", ctypes.c_uint32(map_id))
    try:
        return map_info(fd)
    except OSError:
        os.close(fd)
        raise


def map_info(fd: int) -> Map:
    """What the kernel says of an open map. Raises OSError."""
    info = _MapInfo()
    length = ctypes.c_uint32(ctypes.sizeof(info))
    call("bpf_obj_get_info_by_fd", fd, ctypes.byref(info), ctypes.byref(length))
    return Map(fd, info.id, info.name.decode(), info.key_size, info.value_size, info.max_entries)


def bind_map(program: int, map_fd: int) -> None:
    """Let a program keep a map alive that it does not use (BPF_PROG_BIND_MAP, Linux 5.10)."""
    call("bpf_prog_bind_map", program, map_fd, None)


def has_tc_programs() -> bool:
    """Does the kernel have BPF programs for tc? It seems not, too, to one without the rights."""
    return call("libbpf_probe_bpf_prog_type", _SCHED_CLS, None) == 1


def has_map_type(kind: int) -> bool:
    """Does the kernel have this enum bpf_map_type? It seems not, too, where memory is short."""
    return call("libbpf_probe_bpf_map_type", kind, None) == 1


def has_helper(helper: int) -> bool:
    """May a tc program call this enum bpf_func_id? Raises OSError."""
    return call("libbpf_probe_bpf_helper", _SCHED_CLS, helper, None) == 1


def has_bind_map() -> bool:
    """Does the kernel have BPF_PROG_BIND_MAP? One that has it minds the descriptor."""
    return _is_known("bpf_prog_bind_map", -1, -1, None)


def has_lookup_batch() -> bool:
    """Does the kernel have BPF_MAP_LOOKUP_BATCH?"""
    count = ctypes.c_uint32(0)
    return _is_known("bpf_map_lookup_batch", -1, None, None, None, None, ctypes.byref(count), None)


def _is_known(name: str, *arguments: Any) -> bool:
    """Does the kernel know the command of this call, made with a bad descriptor?"""
    try:
        call(name, *arguments)
    except OSError as error:
        return error.errno != errno.EINVAL
    return True


def tcx_programs(ifindex: int, attach_type: int) -> list[int]:
    """The ids of the TCX programs (Linux 6.6) at an interface's hook, in the order in which they
    run. None on kernels without TCX, and where libbpf does not know the query."""
    ids = (ctypes.c_uint32 * 64)()
    options = _QueryOptions(
        sz=ctypes.sizeof(_QueryOptions), prog_ids=ctypes.addressof(ids), count=len(ids)
    )
    try:
        call("bpf_prog_query_opts", ifindex, attach_type, ctypes.byref(options))
    except (OSError, AttributeError):
        return []
    return list(ids[: options.count])


def lookup(bpf_map: Map, key: bytes, value_size: int | None = None) -> bytes:
    """The value of a key. Raises OSError, ENOENT if there is none."""
    value = ctypes.create_string_buffer(value_size or bpf_map.value_size)
    call("bpf_map_lookup_elem", bpf_map.fd, key, value)
    return value.raw


def possible_cpus() -> int:
    """The CPUs that the kernel makes room for, there or not. Raises OSError."""
    return call("libbpf_num_possible_cpus")


def lookup_per_cpu(bpf_map: Map, key: bytes) -> list[bytes]:
    """The value of a key on each possible CPU; the kernel pads each to a multiple of 8 bytes."""
    cpus = possible_cpus()
    size = (bpf_map.value_size + 7) & ~7
    values = lookup(bpf_map, key, size * cpus)
    return [values[cpu * size :][: bpf_map.value_size] for cpu in range(cpus)]


def update(bpf_map: Map, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
    """Set the value of a key. Raises OSError, EEXIST with BPF_NOEXIST if there is one."""
    call("bpf_map_update_elem", bpf_map.fd, key, value, ctypes.c_uint64(flags))


def delete(bpf_map: Map, key: bytes) -> None:
    """Remove a key. Raises OSError, ENOENT if it is not there."""
    call("bpf_map_delete_elem", bpf_map.fd, key)


class TestRunOptions(ctypes.Structure):
    """struct bpf_test_run_opts (bpf/bpf.h)."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


def test_run(program: int, frame: bytes) -> int:
    """Run a tc program on a frame, as if that had come by the loopback interface of this thread's
    network namespace (BPF_PROG_TEST_RUN); what it returns. Raises OSError."""
    data = ctypes.create_string_buffer(frame, len(frame))
    options = TestRunOptions(
        sz=ctypes.sizeof(TestRunOptions),
        data_in=ctypes.addressof(data),
        data_size_in=len(frame),
        repeat=1,
    )
    call("bpf_prog_test_run_opts", program, ctypes.byref(options))
    return ctypes.c_int32(options.retval).value


def entries(bpf_map: Map) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a hash in batches: all keys of one, and all values.

    A batch is one system call (BPF_MAP_LOOKUP_BATCH, Linux 5.6). A live map changes while it is
    read: what comes or goes meanwhile may be missed, nothing is seen half. Raises OSError.
    """
    lookup_batch: Callable[..., int] = _library().bpf_map_lookup_batch
    capacity = min(_BATCH, max(bpf_map.max_entries, 256))
    cursor = ctypes.create_string_buffer(max(bpf_map.key_size, 8))
    start = None
    while True:
        keys = ctypes.create_string_buffer(capacity * bpf_map.key_size)
        values = ctypes.create_string_buffer(capacity * bpf_map.value_size)
        count = ctypes.c_uint32(capacity)
        ctypes.set_errno(0)
        result = lookup_batch(bpf_map.fd, start, cursor, keys, values, ctypes.byref(count), None)
        code = 0 if result >= 0 else ctypes.get_errno() or -result
        if code == errno.ENOSPC:  # A bucket longer than the whole batch.
            capacity *= 2
            continue
        if code not in (0, errno.ENOENT):
            raise OSError(code, os.strerror(code), "bpf_map_lookup_batch")
        read = count.value
        yield keys.raw[: read * bpf_map.key_size], values.raw[: read * bpf_map.value_size]
        if code == errno.ENOENT:  # The end of the map.
            return
        start = cursor
