"""Kernel work of a known length: programs of the tests' own that burn it where they are attached.

So the size of a cause that no user can time (a softirq's run, an interrupt
that comes late) is known by whoever made it.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from agenttop.collectors.bpf import syscall
from agenttop.collectors.bpf.load import source
from agenttop.collectors.bpf.load.btf import Btf
from agenttop.collectors.bpf.load.compile_cache import compile_text
from agenttop.collectors.bpf.load.loader import LoadError, bcc

#: More than a step without takes, less than what the verifier lets a loop turn.
BURN_NS = 200_000

_BURN = """
/* How often, and for how long in all, ns. */
BPF_ARRAY(burnt, u64, 2);

static __always_inline void burnt_add(u32 which, u64 more)
{
	u64 *sum = burnt.lookup(&which);

	if (sum)
		__sync_fetch_and_add(sum, more);
}

static __always_inline void burn(void)
{
	u64 begun = bpf_ktime_get_ns(), end = begun + BURN_NS, now = begun;
	int i;

#pragma clang loop unroll(disable)
	for (i = 0; i < 6000; i++) {
		bpf_ktime_get_ns();
		bpf_ktime_get_ns();
		bpf_ktime_get_ns();
		now = bpf_ktime_get_ns();
		if ((s64)(now - end) >= 0)
			break;
	}
	burnt_add(0, 1);
	burnt_add(1, now - begun);
}

/* A socket filter: the whole packet may pass. */
int packet(void *ctx)
{
	burn();
	return -1;
}

/* softirq_entry(vec): NET_RX_SOFTIRQ. */
int softirq(u64 *ctx)
{
	if (ctx[0] == 3)
		burn();
	return 0;
}

/* workqueue_execute_start */
int work(u64 *ctx)
{
	burn();
	return 0;
}

static __always_inline int hog(u64 task)
{
	u32 comm = 0;

	bpf_probe_read_kernel(&comm, sizeof(comm), (void *)task + OFF_COMM);
	return comm == 0x67687461;	/* "athg" */
}

/* sched_switch(preempt, prev, next), with interrupts off. */
int hogs(u64 *ctx)
{
	if (hog(ctx[1]) && hog(ctx[2]))
		burn();
	return 0;
}
"""
_PROG_SOCKET_FILTER = 1


class Burner:
    """A program in the kernel, and what it has burnt by its own clock."""

    def __init__(self, name: str, kind: int) -> None:
        try:
            module = bcc()
        except LoadError as error:
            pytest.skip(str(error))
        comm = Btf.load().field_offset("task_struct", "comm")
        head = f"#define BURN_NS {BURN_NS}ULL\n#define OFF_COMM {comm}\n"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BCC_KERNEL_SOURCE", str(Path(source.__file__).parents[1] / "shim"))
            made = compile_text(module, head + _BURN, ("burnt",), (name,))
        (self._map,) = made.create_maps()
        self.fd = syscall.load_program(made.code(name, (self._map,)), name, kind)

    def mean(self) -> float:
        """Of one burning since the last call, ns."""
        value = ctypes.create_string_buffer(8)
        sums = []
        for which in range(2):
            assert syscall.map_lookup_into(self._map, struct.pack("<I", which), value)
            sums.append(int.from_bytes(value.raw, "little"))
            syscall.map_update(self._map, struct.pack("<I", which), bytes(8))
        return sums[1] / sums[0]

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._map)


@contextmanager
def _burner(name: str, tracepoint: str | None) -> Iterator[Burner]:
    kind = syscall.PROG_RAW_TRACEPOINT if tracepoint else _PROG_SOCKET_FILTER
    burner = Burner(name, kind)
    try:
        link = syscall.attach_raw_tracepoint(burner.fd, tracepoint) if tracepoint else None
        try:
            yield burner
        finally:
            if link is not None:
                os.close(link)
    finally:
        burner.close()


def at_packets() -> AbstractContextManager[Burner]:
    """A socket filter (SO_ATTACH_BPF) that burns at each packet that it lets in."""
    return _burner("packet", None)


def before_softirqs() -> AbstractContextManager[Burner]:
    """Each NET_RX softirq is entered late, for programs that are attached meanwhile."""
    return _burner("softirq", "softirq_entry")


def before_work() -> AbstractContextManager[Burner]:
    """Whatever a work queue runs begins late; for programs attached earlier, it takes longer."""
    return _burner("work", "workqueue_execute_start")


def between_hogs() -> AbstractContextManager[Burner]:
    """A CPU on which processes named "athg" take turns lets interrupts wait."""
    return _burner("hogs", "sched_switch")
