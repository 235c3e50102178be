"""Policies that are held by somebody, or were left applied: who has them, and taking them back."""

from __future__ import annotations

import os
import signal
import time
from typing import Final

from agenttop.errors import UserError
from agenttop.linux import paths
from agenttop.policies import bundles
from agenttop.policies.guardian import lock
from agenttop.policies.guardian.journal import Hold, JournalError, load, open_own, open_state_dir
from agenttop.policies.guardian.lease import kept
from agenttop.policies.guardian.outcome import label, plain, shown, words
from agenttop.policies.guardian.process import REQUEST
from agenttop.policies.knobs import KNOBS

#: A revert takes a second at most (heirs.BOUND_S); a loaded machine gets more.
REVERT_S: Final = 3.0


def revert(name: str | None) -> int:
    """``agenttop policy revert``: have the guardian give them back."""
    names = None if name is None else bundles.expand([name], {})[0]
    try:
        owner = lock.owner(str(paths.state()))
        held = _held()
        if owner is None:
            if held and kept(str(paths.state())):
                raise UserError("it was left applied with --keep: 'agenttop restore' undoes it")
            if held:
                raise UserError("its owner is dead: 'agenttop restore' puts back what it left")
            print("no policy is applied")
            return 0
        if owner.elsewhere:
            raise UserError(str(lock.LockedError(owner)))
        if not owner.guardian:
            print(f"no policy is applied (agenttop with pid {owner.pid} has its guardian ended)")
            return 0
        held = [hold for hold in held if names is None or hold.policy in names]
        if names is not None and not held:
            print(f"{name} holds nothing")
            return 0
        policies = sorted({hold.policy for hold in held})
        # One request for all; else one after the other, as the guardian reads one at a time.
        for policy in [""] if names is None else policies:
            _request(owner.guardian, policy)
            _wait(owner.guardian, {policy} if policy else None)
        stays = {hold.key for hold in _held()}
    except JournalError as error:
        raise UserError(str(error)) from None
    for hold in held:
        told = "could not be restored, is tried again" if hold.key in stays else _became(hold)
        print(f"  {label(hold.kind, hold.target)}: {told}")
    print(f"reverted {', '.join(policies) or 'all'}")
    return int(any(hold.key in stays for hold in held))


def _wait(guardian: int, policies: set[str] | None) -> None:
    """Until these hold nothing that can be restored. Raises UserError."""
    deadline = time.monotonic() + REVERT_S
    while any(policies is None or hold.policy in policies for hold in _held()):
        if time.monotonic() > deadline:
            if os.path.lexists(paths.state() / REQUEST):
                text = f"the guardian, pid {guardian}, did not revert: end it with SIGTERM"
                raise UserError(text)
            return  # It did: what is left could not be restored.
        time.sleep(0.02)


def _became(hold: Hold) -> str:
    """What has become of a setting that is no longer held."""
    try:
        now = KNOBS[hold.kind].read(hold.target)
        if now is None:
            return "has gone"
        if KNOBS[hold.kind].same(now, hold.original):
            return f"restored to {shown(plain(hold.original))}"
    except Exception as error:  # The others are shown all the same.
        return f"cannot be read: {words(error)}"
    return f"now {shown(now)}, as another process has set it: left as it is"


def _request(guardian: int, name: str) -> None:
    """Ask a guardian to give one policy back, or all (see guardian/process.py)."""
    dir_fd = open_state_dir(str(paths.state()))
    assert dir_fd is not None
    try:
        fd = open_own(dir_fd, REQUEST, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(fd, name.encode())
        os.close(fd)
        os.kill(guardian, signal.SIGUSR1)
    except ProcessLookupError:
        pass  # It has just ended, and so reverted.
    finally:
        os.close(dir_fd)


def _held() -> list[Hold]:
    """What the journal says is held. Raises JournalError."""
    dir_fd = open_state_dir(str(paths.state()), create=False)
    if dir_fd is None:
        return []
    try:
        found = load(dir_fd)
    finally:
        os.close(dir_fd)
    if found and found.undated:
        raise JournalError("the journal's first line is damaged: 'agenttop restore' tells of it")
    return found.holds if found and found.this_boot else []


def status() -> int:
    """``agenttop policy status``."""
    try:
        owner, held = lock.owner(str(paths.state())), _held()
        left_applied = kept(str(paths.state()))
    except JournalError as error:
        raise UserError(str(error)) from None
    if owner and owner.elsewhere:
        print(lock.LockedError(owner))
        if not held:
            return 0
        owner = None
    if owner is None and not held:
        print("no policy is applied")
        return 0
    if owner is None and left_applied:
        print("kept: left applied on purpose (--keep); 'agenttop restore' puts it back:")
    elif owner is None:
        print("left by an agenttop that was killed; 'agenttop restore' puts it back:")
    else:
        guardian = f", guardian {owner.guardian}" if owner.guardian else ", no guardian"
        print(f"held by agenttop with pid {owner.pid or 'unknown'}{guardian}")
    for hold in held:
        name = label(hold.kind, hold.target)
        line = f"  {hold.policy}: {name}: {plain(hold.original)} -> {hold.ours[-1]}"
        # A kept one nobody watches: so it is compared now. What is followed by a living
        # agenttop may have either value, and its own screen tells of drift.
        print(line + (_drift(hold) if left_applied else ""))
    return 0


def _drift(hold: Hold) -> str:
    """What has become of a setting since it was left applied; nothing while it holds."""
    try:
        now = KNOBS[hold.kind].drift(hold.target, hold.ours[-1])
    except Exception as error:  # The others are shown all the same.
        return f"; cannot be read: {words(error)}"
    if now is None:
        return ""
    return f"; drifted: now {now}, set by somebody else" if now else "; has gone"
