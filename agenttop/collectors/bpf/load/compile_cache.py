"""What the compiler makes of the C sources, and a cache of it.

Compiling takes LLVM most of a second; the result depends on the text alone
(which holds the running kernel's offsets), so it is kept: in
/var/cache/agenttop for root, else in the user's cache. A file that is not
ours alone, or not whole, is not used; the kernel's verifier has the last word
in any case.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from agenttop.collectors.bpf import layout, syscall
from agenttop.linux import paths

_FORMAT: Final = 1
#: What ``keep`` names its files.
_NAME: Final = re.compile(r"[0-9a-f]{32}\.json")
_MAX_BYTES: Final = 8 << 20
#: A ld_imm64 instruction whose value is a map (BPF_PSEUDO_MAP_FD in the source register).
_LOAD_IMM64: Final = 0x18
_PSEUDO_MAP_FD: Final = 1


@dataclass(frozen=True)
class MapSpec:
    """What a map is made from (the fields of struct bpf_map_info)."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    #: Ids in ``Compiled.btf``; task-local storage wants them.
    btf_key: int
    btf_value: int

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """As kernel.create_map wants it."""
        return self.type, self.key_size, self.value_size, self.max_entries, self.flags


@dataclass(frozen=True)
class Compiled:
    """Maps, and programs that name them by their place in ``maps``."""

    maps: list[MapSpec]
    programs: dict[str, bytes]
    btf: bytes

    def create_maps(self) -> list[int]:
        """New maps in the kernel, in order. Raises OSError."""
        btf = syscall.load_btf(self.btf) if self.btf else 0
        try:
            return [
                syscall.create_map(
                    one.name,
                    one.shape,
                    (btf, one.btf_key, one.btf_value) if one.btf_value else None,
                )
                for one in self.maps
            ]
        finally:
            if btf:
                os.close(btf)

    def code(self, name: str, maps: Sequence[int]) -> bytes:
        """A program's instructions with the maps' descriptors in place."""
        return _replaced(self.programs[name], dict(enumerate(maps)))


def compile_text(module: Any, text: str, maps: Sequence[str], programs: Sequence[str]) -> Compiled:
    """Have BCC (``module``) compile. Raises what BCC raises, or OSError.

    BCC also generates code that prints a map's value element by element,
    never used here; for the 10,240 of an agent's histograms that took half of
    the whole time. So it sees a value of one number, and gives the map that
    size; ``layout.VALUE_SIZES`` has the real one.
    """
    os.environ["BCC_KERNEL_SOURCE"] = str(Path(__file__).parents[1] / "shim")
    done = module.BPF(text=text, cflags=["-Wno-everything"])
    fds = {name: int(module.lib.bpf_table_fd(done.module, name.encode())) for name in maps}
    places = {fd: place for place, fd in enumerate(fds.values())}
    specs: list[MapSpec] = []
    btf = b""
    for name, fd in fds.items():
        spec, btf_id = syscall.map_info(fd)
        with_btf = spec[0] == syscall.MAP_TASK_STORAGE
        if with_btf:
            btf = syscall.btf_of(btf_id)
        made = MapSpec(name, *spec[:5], *(spec[5:] if with_btf else (0, 0)))
        specs.append(replace(made, value_size=layout.VALUE_SIZES.get(name, made.value_size)))

    def code(name: str) -> bytes:
        function = name.encode()
        start = module.lib.bpf_function_start(done.module, function)
        size = module.lib.bpf_function_size(done.module, function)
        return _replaced(ctypes.string_at(start, size), places)

    return Compiled(specs, {name: code(name) for name in programs}, btf)


def _replaced(code: bytes, numbers: dict[int, int]) -> bytes:
    """Each map reference gets another number. Raises KeyError for an unknown one."""
    out = bytearray(code)
    at = 0
    while at < len(out):
        if out[at] == _LOAD_IMM64:
            if out[at + 1] >> 4 == _PSEUDO_MAP_FD:
                old = int.from_bytes(out[at + 4 : at + 8], "little")
                out[at + 4 : at + 8] = numbers[old].to_bytes(4, "little")
            at += 8  # it is two instructions long
        at += 8
    return bytes(out)


# --------------------------------------------------------------------------- the cache


def cache_folder() -> Path | None:
    """AGENTTOP_CACHE, else /var/cache/agenttop for root and the user's own for others.

    None for a user without a home, who keeps nothing.
    """
    if given := os.environ.get("AGENTTOP_CACHE"):
        return Path(given)
    return Path("/var/cache/agenttop") if os.geteuid() == 0 else paths.user_cache()


def _open_folder(make: bool) -> int:
    """The folder, if it is ours and nobody else may write there. Raises OSError."""
    folder = cache_folder()
    if folder is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    if make:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    about = os.fstat(fd)
    if about.st_uid != os.geteuid() or about.st_mode & 0o022:
        os.close(fd)
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    return fd


def _key(text: str, programs: Sequence[str]) -> str:
    told = json.dumps([_FORMAT, text, list(programs)])
    return hashlib.sha256(told.encode()).hexdigest()


def recall(text: str, programs: Sequence[str]) -> Compiled | None:
    """What was kept for this text; None if there is nothing, or nothing to be trusted."""
    key = _key(text, programs)
    try:
        folder = _open_folder(make=False)
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(f"{key[:32]}.json", flags, dir_fd=folder)
        finally:
            os.close(folder)
        with open(fd, "rb") as file:
            about = os.fstat(fd)
            ours = about.st_uid == os.geteuid() and about.st_nlink == 1
            if not ours or about.st_mode & 0o022 or not stat.S_ISREG(about.st_mode):
                return None
            body = file.read(_MAX_BYTES)
        seal, _, rest = body.partition(b"\n")
        if seal.decode() != hashlib.sha256(key.encode() + rest).hexdigest():
            return None
        stored = json.loads(rest)
        return Compiled(
            [MapSpec(**one) for one in stored["maps"]],
            {name: base64.b64decode(code) for name, code in stored["programs"].items()},
            base64.b64decode(stored["btf"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(compiled: Compiled, text: str, programs: Sequence[str]) -> None:
    """Keep it for the next start; where that can't be done, the next start compiles again."""
    key = _key(text, programs)
    rest = json.dumps(
        {
            "maps": [asdict(one) for one in compiled.maps],
            "programs": {n: base64.b64encode(c).decode() for n, c in compiled.programs.items()},
            "btf": base64.b64encode(compiled.btf).decode(),
        }
    ).encode()
    seal = hashlib.sha256(key.encode() + rest).hexdigest().encode()
    try:
        folder = _open_folder(make=True)
    except OSError:
        return
    temporary = f".{key[:32]}.{os.getpid()}"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600, dir_fd=folder)
        with open(fd, "wb") as file:
            file.write(seal + b"\n" + rest)
        os.rename(temporary, f"{key[:32]}.json", src_dir_fd=folder, dst_dir_fd=folder)
        _tidy(folder)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
    finally:
        os.close(folder)


def _tidy(folder: int, most: int = 12) -> None:
    """Only the newest stay: each kernel and each version of the sources has its own."""
    ours = [name for name in os.listdir(folder) if _NAME.fullmatch(name)]
    ages = {name: os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime for name in ours}
    for old in sorted(ours, key=ages.__getitem__, reverse=True)[most:]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(old, dir_fd=folder)
