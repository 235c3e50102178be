"""Whether a process of ours that is silent has been killed or stopped: known before it is gone.

A process that was killed closes its files before anybody is told of its end,
and with BPF programs among them that takes up to a second (do_exit in
kernel/exit.c: exit_files comes before exit_notify). /proc/PID/stat says at
once that it is exiting, and that it is stopped.

Engine and guardian both import this; it stays small.
"""

from __future__ import annotations

#: A silence that is worth a look, s: the engine sends a beat 4 times a second.
SILENT_S = 0.3
#: A process that has been stopped and silent for this long is given up, s.
STOPPED_S = 1.0

EXITING, STOPPED, RUNS = "exiting", "stopped", "runs"
#: include/linux/sched.h: PF_EXITING.
_PF_EXITING = 0x4


def look(pid: int) -> str:
    """EXITING, also when it has ended; STOPPED by SIGSTOP, a terminal or a tracer; else RUNS."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        state, flags = fields[0], int(fields[6])
    except (OSError, ValueError, IndexError):
        return EXITING
    if state in (b"Z", b"X") or flags & _PF_EXITING:
        return EXITING
    return STOPPED if state in (b"T", b"t") else RUNS


def lost(pid: int, silence_s: float) -> str | None:
    """ "killed" or "stopped" if that is why ``pid`` has been silent for so long, else None."""
    if silence_s < SILENT_S:
        return None
    state = look(pid)
    if state == EXITING:
        return "killed"
    return "stopped" if state == STOPPED and silence_s >= STOPPED_S else None
