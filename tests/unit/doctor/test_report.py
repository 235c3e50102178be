"""doctor: what it says about machines of several kinds, and that it only looks."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import msgspec
import pytest

from agenttop import cli
from agenttop.commands.doctor import render
from agenttop.doctor import bpf, system
from agenttop.doctor import report as doctor
from agenttop.doctor.report import Item, Report, banner, examine
from tests.support.trees import Tree
from tests.support.trees.machine import Machine

ROOT = "Name:\tx\nCapInh:\t0000000000000000\nCapPrm:\t000001ffffffffff\nCapEff:\t000001ffffffffff\n"
NOBODY = "Name:\tx\nCapEff:\t0000000000000000\n"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    made = Tree(tmp_path).use(monkeypatch)
    Machine(made).write()
    made.write("proc/self/status", ROOT)
    made.write("proc/self/schedstat", "1 2 3\n")
    return made


def real_bcc(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "bcc").mkdir(parents=True)
    (folder / "bcc/__init__.py").write_text("")
    (folder / "bcc/libbcc.py").write_text("")
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(bpf, "DIST_PACKAGES", (str(folder),))


def test_a_machine_without_btf_says_what_is_lost(tree: Tree) -> None:
    report = examine()
    item = report.item("btf")
    assert item.status == "missing"
    assert "step chains" in (item.lost or "")
    assert not report.chains
    assert "BTF" in report.verdict
    said = banner(report)
    assert said
    assert "BTF" in said
    assert "\n" not in said


def test_every_item_that_is_not_ok_says_what_is_lost(tree: Tree) -> None:
    for report in (examine(), examine()):
        for item in report.items:
            assert item.title
            assert item.detail
            assert (item.lost is None) == (item.status == "ok"), item.key
        assert len({item.key for item in report.items}) == len(report.items)


def test_idle_and_frequency_are_described(tree: Tree) -> None:
    report = examine()
    assert report.item("idle_states").detail == "POLL 0us, C1 2us, C1E 10us, C6 133us (intel_idle)"
    assert report.item("idle_governor").detail == "menu"
    assert report.item("cpufreq").detail == "intel_pstate, governor powersave"
    assert (report.host, report.kernel) == ("lab", "6.1.0-test")


def test_a_machine_without_power_management(tmp_path: Path, tree: Tree) -> None:
    machine = Machine(tree)
    for name in ("cpu0", "cpu1", "cpuidle"):
        machine.remove(f"sys/devices/system/cpu/{name}")
    report = examine()
    for key in ("idle_states", "idle_governor", "cpufreq", "pm_qos"):
        assert report.item(key).status == "missing", key


def test_irq_files_are_counted_by_their_mode(tree: Tree) -> None:
    for number in (1, 2, 3):
        file = tree.write(f"proc/irq/{number}/smp_affinity_list", "0-1\n")
        file.chmod(0o444 if number == 2 else 0o644)
    item = examine().item("irq_affinity")
    assert item.status == "limited"
    assert item.detail == "2 of 3 lines' files writable"


@pytest.mark.parametrize(
    ("files", "key", "status"),
    [
        ({"proc/sys/kernel/io_uring_disabled": "0\n"}, "io_uring", "ok"),
        ({"proc/sys/kernel/io_uring_disabled": "1\n"}, "io_uring", "limited"),
        ({"proc/sys/kernel/io_uring_disabled": "2\n"}, "io_uring", "missing"),
        ({}, "io_uring", "ok"),
        ({}, "psi", "missing"),
        ({"proc/pressure/cpu": "some avg10=0.00\n"}, "psi", "ok"),
        ({}, "uclamp", "missing"),
        ({"proc/sys/kernel/sched_util_clamp_min": "1024\n"}, "uclamp", "ok"),
        ({}, "cgroup", "missing"),
        ({"proc/mounts": "cgroup2 /nowhere cgroup2 rw 0 0\n"}, "cgroup", "ok"),
        ({"proc/sys/kernel/osrelease": "5.14.21-150500\n"}, "kernel", "limited"),
        ({"proc/sys/kernel/osrelease": "5.15.0-1-amd64\n"}, "kernel", "ok"),
        ({"proc/sys/kernel/osrelease": "6.1.0\n"}, "kernel", "ok"),
        ({"proc/sys/kernel/osrelease": "odd\xff\n"}, "kernel", "ok"),
        ({"proc/mounts": "cgroup /nowhere cgroup rw,cpu 0 0\n"}, "cgroup", "limited"),
        ({"sys/kernel/security/lockdown": "none [integrity] confidentiality\n"}, "lockdown", "ok"),
        (
            {"sys/kernel/security/lockdown": "none integrity [confidentiality]\n"},
            "lockdown",
            "missing",
        ),
    ],
)
def test_kernel_features(tree: Tree, files: dict[str, str], key: str, status: str) -> None:
    for path, content in files.items():
        tree.write(path, content)
    assert examine().item(key).status == status


@pytest.mark.parametrize(
    ("uid", "caps", "status", "lost"),
    [
        (0, 0x1FFFFFFFFFF, "ok", None),
        (1000, 1 << 38 | 1 << 39, "limited", "BPF run time, policies"),
        (1000, 1 << 21, "limited", "policies"),
        (1000, 0, "missing", "step chains, policies"),
        (0, 0, "missing", "step chains, policies"),
        (1000, 1 << 39, "missing", "step chains, policies"),
    ],
)
def test_privileges(
    tree: Tree,
    monkeypatch: pytest.MonkeyPatch,
    uid: int,
    caps: int,
    status: str,
    lost: str | None,
) -> None:
    tree.write("proc/self/status", f"Name:\tx\nCapEff:\t{caps:016x}\n")
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    item = examine().item("privileges")
    assert (item.status, item.lost) == (status, lost)


def test_the_wrong_bcc_is_told_from_the_right_one(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_bcc(tmp_path / "dist", monkeypatch)
    assert bpf._bcc(False).status == "ok"
    wrong = tmp_path / "venv"
    (wrong / "bcc").mkdir(parents=True)
    (wrong / "bcc/__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(wrong)])
    item = bpf._bcc(False)
    assert item.status == "missing"
    assert "PyPI's bcc is something else" in item.detail
    assert (item.remedy or "").startswith("pip uninstall bcc")
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(bpf, "DIST_PACKAGES", ())
    assert "not installed" in bpf._bcc(False).detail


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("ID=debian\n", "apt install python3-bpfcc"),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', "apt install python3-bpfcc"),
        ("ID=fedora\n", "dnf install python3-bcc"),
        ('ID="opensuse-leap"\n', "zypper install python3-bcc"),
        ("ID=other\n", "install the distribution's BCC for Python"),
        ("", "install the distribution's BCC for Python"),
    ],
)
def test_the_command_to_install_bcc(tmp_path: Path, text: str, command: str) -> None:
    file = tmp_path / "os-release"
    file.write_text(text)
    assert bpf.install_command(str(file)) == command


def report_of(*items: Item) -> Report:
    privileges = Item(key="privileges", group="system", title="privileges", status="ok")
    if not any(item.key == "privileges" for item in items):
        items = (privileges, *items)
    chains = not any(i.needed and i.status == "missing" for i in items)
    verdict = doctor._verdict(list(items), chains)
    return Report(host="h", kernel="k", chains=chains, verdict=verdict, items=list(items))


def lacking(key: str, remedy: str | None, status: doctor.Status = "missing") -> Item:
    return Item(
        key=key,
        group="bpf",
        title=key,
        status=status,
        detail=f"no {key}",
        lost="step chains",
        remedy=remedy,
        needed=True,
    )


def test_the_banner_names_what_unlocks_the_rest() -> None:
    assert banner(report_of()) is None
    root, bcc = lacking("privileges", "run as root"), lacking("bcc", "apt install python3-bpfcc")
    assert banner(report_of(root)) == "run as root for step chains"
    assert banner(report_of(bcc)) == "apt install python3-bpfcc for step chains"
    both = "run as root and apt install python3-bpfcc for step chains"
    assert banner(report_of(root, bcc)) == both
    # What nobody can mend comes before what would be in vain.
    hopeless = banner(report_of(root, lacking("btf", None)))
    assert hopeless == "no step chains: no btf; showing what /proc and /sys tell"
    partly = report_of(lacking("privileges", "run as root", "limited"))
    assert banner(partly) == "run as root for policies"
    assert report_of().verdict == "everything is there"


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_text_fits_the_terminal(tree: Tree, width: int) -> None:
    text = render(examine(), width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "verdict:" in text


def test_text_keeps_one_line_an_item_where_there_is_no_terminal(tree: Tree) -> None:
    report = examine()
    lines = render(report).splitlines()
    for item in report.items:
        (line,) = [row for row in lines if row.startswith(f"  {item.title} ")]
        assert item.status in line
        assert item.detail in line


def test_json_and_exit_codes(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["schema"], data["version"]) == ("agenttop.doctor", 1)
    report = msgspec.convert(data, Report)
    assert report.item("btf").status == "missing"
    # This tree has no BTF, so a check fails, and a look does not.
    assert cli.main(["doctor", "--check"]) == 1
    assert cli.main(["doctor"]) == 0
    capsys.readouterr()
    assert cli.main(["doctor", "--nonsense"]) == 2


def test_a_hostile_tree_is_shown_as_text(tree: Tree) -> None:
    tree.write("proc/sys/kernel/hostname", "\x1b[2Jevil\n")
    tree.write("sys/devices/system/cpu/cpu0/cpuidle/state1/name", "\x1b[31m[b]\n")
    tree.write("sys/devices/system/cpu/cpu0/cpufreq/scaling_driver", b"\xff\xfe\x07\n")
    tree.write("proc/mounts", b"cgroup2 /\x1b[0m cgroup2 rw 0 0\n")
    tree.write("proc/sys/kernel/io_uring_disabled", "\x1b\n")
    tree.write("proc/sys/kernel/sched_util_clamp_min", "\x1b[1m\n")
    tree.write("sys/kernel/btf/vmlinux", b"\x9f\xeb\1\0" + bytes(range(1, 51)))
    text = render(examine())
    assert all(line.isprintable() for line in text.splitlines())


def test_it_only_looks(tree: Tree) -> None:
    def state() -> dict[str, tuple[int, bytes]]:
        return {
            str(path): (path.stat().st_mtime_ns, path.read_bytes())
            for path in tree.root.rglob("*")
            if path.is_file()
        }

    before = state()
    examine()
    assert state() == before


def test_this_machine_gets_a_whole_report() -> None:
    report = examine()
    assert len([item for item in report.items if item.group == "events"]) >= 20 or (
        report.item("btf").status == "missing"
    )
    assert report.item("schedstat").status in ("ok", "missing")
    assert system.capabilities() <= set(system.CAPABILITIES)
