"""Put back what an agenttop left changed that was killed together with its guardian.

Works from the journal in /run/agenttop, compares each setting with what
agenttop had written, and leaves alone what somebody else has set since.
"""

from __future__ import annotations

import argparse
import os

from agenttop import paths
from agenttop.errors import UserError
from agenttop.policies import lock, machine
from agenttop.policies.journal import NAME, JournalError, open_state_dir
from agenttop.policies.undo import recover


def configure(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--readonly", action="store_true", help="refused: it would write")


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
        if dir_fd is None or (owner is None and not os.path.lexists(os.path.join(state, NAME))):
            print("nothing to restore")
            return 0
        try:
            held = lock.acquire(state)
            try:
                outcomes = recover(dir_fd)
            finally:
                lock.release(held)
        finally:
            os.close(dir_fd)
    except (JournalError, lock.LockedError) as error:
        raise UserError(str(error)) from None
    for outcome in outcomes or ():
        print(outcome.text)
    if not outcomes:
        print("nothing to restore")
    if any(not outcome.settled for outcome in outcomes or ()):
        print(f"what could not be restored stays in {state}/{NAME}: try again")
        return 1
    return 0
