"""Put back what an agenttop left changed that was killed together with its guardian.

Works from the journal in /run/agenttop, compares each setting with what
agenttop had written, and leaves alone what somebody else has set since. What
cannot be restored stays in the journal until it is, or until ``--forget``.
"""

from __future__ import annotations

import argparse
import os

from agenttop.errors import UserError
from agenttop.linux import paths
from agenttop.policies.guardian import lock, machine
from agenttop.policies.guardian.journal import NAME, JournalError, aside, open_state_dir
from agenttop.policies.guardian.undo import forget, recover

#: How long threads that start meanwhile are looked for: on a machine that is too busy for them
#: to get on with it, it takes that long. Nothing else waits for this process.
PATIENCE_S = 10.0


def configure(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--readonly", action="store_true", help="refused: it would write")
    parser.add_argument(
        "--forget",
        action="store_true",
        help="drop what cannot be restored, such as of a device that is gone for good; names it",
    )


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if something could not be restored."""
    if args.readonly:
        raise UserError("restore: refused, --readonly writes nothing ('policy status' tells)")
    if reason := machine.refusal():
        raise UserError(f"restore: refused, nothing has been touched: {reason}")
    state = str(paths.state())
    try:
        owner = lock.owner(state)
        dir_fd = open_state_dir(state, create=False)
        if dir_fd is None:
            print("nothing to restore")
            return 0
        try:
            left = os.path.lexists(os.path.join(state, NAME)) or aside(dir_fd)
            if owner is None and not left:
                print("nothing to restore")
                return 0
            return _restore(state, dir_fd, args.forget)
        finally:
            os.close(dir_fd)
    except (JournalError, lock.LockedError) as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"restore: {state}: {error.strerror}") from None


def _restore(state: str, dir_fd: int, drop: bool) -> int:
    """Exit code. Raises JournalError, LockedError and OSError."""
    held = lock.acquire(state)
    try:
        before = aside(dir_fd)
        outcomes = recover(dir_fd, bound_s=PATIENCE_S) or []
        forgotten = forget(dir_fd) if drop else []
    finally:
        lock.release(held)
    lines = [outcome.text for outcome in outcomes]
    if drop:
        print("\n".join([*lines, *forgotten]) or "nothing to restore")
        return 0
    lines += [f"{name}: it may be of an earlier boot, nothing of it is restored" for name in before]
    print("\n".join(lines) or "nothing to restore")
    if before or any(not outcome.settled for outcome in outcomes):
        print(
            f"what could not be restored stays in {state}:"
            " try again, or drop it with 'agenttop restore --forget'"
        )
        return 1
    return 0
