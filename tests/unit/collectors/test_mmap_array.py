"""Memory that is shared with the kernel, by whoever looks at it."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agenttop.collectors.bpf.read.mmap_array import mapped

NUMBERS = np.dtype("<u8")


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("mapped")
    os.ftruncate(fd, 1 << 16)
    yield fd
    os.close(fd)


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:mapped")


def test_a_mapping_costs_no_descriptor_and_ends_with_its_last_array(memory: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    arrays = [mapped(memory, NUMBERS, 512, 4096) for _ in range(50)]
    assert len(os.listdir("/proc/self/fd")) == before
    arrays[0][:2] = 7, 8
    assert os.pread(memory, 16, 4096) == arrays[1][:2].tobytes()
    part = arrays[0][1:].reshape(7, 73)
    del arrays
    gc.collect()
    assert mappings() == 1
    assert part[0, 0] == 8
    del part
    gc.collect()
    assert mappings() == 0


def test_what_cannot_be_mapped_is_an_error(memory: int) -> None:
    with pytest.raises(OSError) as caught:
        mapped(memory, NUMBERS, 1, 1)
    assert caught.value.errno == errno.EINVAL
