"""The emulator's side of a CPU that comes later: plugged in over QMP.

QMP (docs/interop/qmp-spec.rst of QEMU) is JSON over a socket, one object a line.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, Final

PATIENCE_S: Final = 60.0


class PlugError(Exception):
    """No CPU was plugged in; one line that says why."""


class Monitor:
    """QEMU's monitor, on a socket that ``-qmp unix:PATH,server=on,wait=off`` made."""

    def __init__(self, path: Path) -> None:
        """Raises OSError and PlugError."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_S)
        try:
            self._socket.connect(str(path))
            self._file = self._socket.makefile("rb")
            self._file.readline()  # its greeting
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def execute(self, command: str, **arguments: object) -> Any:
        """What the command returns. Raises OSError and PlugError."""
        message = {"execute": command, "arguments": arguments}
        self._socket.sendall(json.dumps(message).encode() + b"\n")
        while line := self._file.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise PlugError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:  # Anything else is an event.
                return answer["return"]
        raise PlugError(f"{command}: the emulator has ended")

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def plug(path: Path) -> str:
    """Plug in the first CPU that there is a place for; the place. Raises OSError and PlugError."""
    monitor = Monitor(path)
    try:
        places = monitor.execute("query-hotpluggable-cpus")
        free = [one for one in places if "qom-path" not in one]
        if not free:
            raise PlugError("there is no place for another CPU")
        first = min(free, key=lambda one: sorted(one["props"].items(), reverse=True))
        monitor.execute("device_add", driver=first["type"], id="later", **first["props"])
    finally:
        monitor.close()
    return ", ".join(f"{name} {number}" for name, number in sorted(first["props"].items()))
