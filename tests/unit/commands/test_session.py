"""snapshot and -b against an engine of the test's own: figures, files, signals, errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agenttop import cli
from agenttop.commands import session as headless
from agenttop.errors import UserError
from agenttop.model.options import EngineOptions
from agenttop.model.sample import Command, Failure, Message
from agenttop.stream.recording import Recording, Writer
from tests.support.places import ROOT
from tests.support.synth import Synth


class FakeEngine:
    """Always has the next Sample ready; one second passes per Sample."""

    def __init__(self, options: EngineOptions, synth: Synth | None = None) -> None:
        self.options = options
        self.synth = synth or Synth()
        self.closed = 0
        self.left: int | None = None
        self.failure: str | None = None
        self.loading = 2
        self._ends = os.pipe()
        os.write(self._ends[1], b".")

    def fileno(self) -> int:
        return self._ends[0]

    def read(self) -> list[Message]:
        if self.left == 0:
            return [Failure(self.failure or "")]
        if self.left is not None:
            self.left -= 1
        sample = self.synth.sample()
        if self.loading > 0:
            self.loading -= 1
            host = self.synth._host()
            host.missing = {"chains": "loading the kernel side"}
            sample.host, sample.agents = host, []
        elif self.loading == 0:
            self.loading = -1
            sample.host = self.synth._host()
        return [sample]

    def send(self, command: Command) -> None:
        raise AssertionError("nothing is to be asked of it")

    def close(self) -> None:
        self.closed += 1
        for end in self._ends:
            os.close(end)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[FakeEngine]:
    """The engines that were started."""
    started: list[FakeEngine] = []

    def start(options: EngineOptions) -> FakeEngine:
        started.append(FakeEngine(options))
        return started[-1]

    monkeypatch.setattr(headless, "start", start)
    monkeypatch.setenv("COLUMNS", "100")
    return started


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], None]:
    """The next engine fails after so many Samples."""

    def set_(samples: int, text: str) -> None:
        def start(options: EngineOptions) -> FakeEngine:
            engine = FakeEngine(options)
            engine.left, engine.failure = samples, text
            return engine

        monkeypatch.setattr(headless, "start", start)

    return set_


def test_json_is_over_the_time_asked_for(
    engines: list[FakeEngine], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["snapshot", "--for", "45", "--format", "json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["interval_ns"] == 45 * 10**9  # longer than the rolling window
    assert document["agents"][0]["step"]["count"] > 45 * 700
    assert document["host"]["missing"] == {"freq": "no cpufreq driver"}
    assert [engine.closed for engine in engines] == [1]


def test_text_goes_to_stdout(engines: list[FakeEngine], capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["snapshot", "--for", "3", "-s", "pid"]) == 0
    out = capfd.readouterr().out
    assert "over 3.0 s" in out
    table = out.partition("AGENT ")[2].partition("CHAIN")[0]
    names = [line.split()[0] for line in table.splitlines()[1:] if line]
    assert names == ["coder", "retriever", "voice", "toolcaller", "indexer"]


def test_a_short_measurement_gets_its_samples_in_time(engines: list[FakeEngine]) -> None:
    assert cli.main(["snapshot", "--for", "0.5", "--level", "full"]) == 0
    assert engines[0].options.delay_s == 0.5
    assert engines[0].options.level == "full"


def test_batch_prints_blocks_and_ends(
    engines: list[FakeEngine], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["-b", "-n", "3", "-d", "2", "--window", "5"]) == 0
    out = capfd.readouterr().out
    assert out.count("agenttop 0.") == 3
    assert engines[0].options.delay_s == 2
    assert [engine.closed for engine in engines] == [1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_sample_is_written_leaves_a_recording_whole(
    engines: list[FakeEngine],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    put = Writer._put

    def interrupted(self: Writer, data: bytes) -> None:
        if self.samples == 5:
            signal.raise_signal(number)
        put(self, data)

    monkeypatch.setattr(Writer, "_put", interrupted)
    path = tmp_path / "a.rec"
    ended = cli.main(["record", "-o", str(path)])
    assert ended == (0 if number == signal.SIGINT else 128 + number)
    with Recording(path) as recording:
        assert [sample.seq for sample in recording] == [0, 1, 2, 3, 4, 5]
        assert not recording.cut
    assert [engine.closed for engine in engines] == [1]


def test_an_engine_that_fails_is_one_line(
    limit: Callable[[int, str], None], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    limit(4, "no BPF after all")
    old = tmp_path / "old.json"
    old.write_text("precious")
    assert cli.main(["snapshot", "--for", "60", "-o", str(old)]) == 2
    captured = capfd.readouterr()
    assert captured.err == "agenttop: no BPF after all\n"
    assert old.read_text() == "precious"
    assert os.listdir(tmp_path) == ["old.json"]


def test_a_file_is_replaced_whole_with_its_mode(
    engines: list[FakeEngine], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "real.json"
    target.write_text("old")
    target.chmod(0o640)
    assert cli.main(["snapshot", "--for", "2", "--format", "json", "-o", str(target)]) == 0
    assert json.loads(target.read_text())["schema"] == "agenttop.snapshot"
    assert target.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["real.json"]
    assert capfd.readouterr().out == ""


def test_a_device_is_written_to_not_replaced(engines: list[FakeEngine]) -> None:
    assert cli.main(["snapshot", "--for", "2", "-o", os.devnull]) == 0
    assert not Path(os.devnull).is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--for", "0"], "0 is not within"),
        (["--for", "-1"], "-1 is not within"),
        (["--for", "nan"], "nan is not within"),
        (["--for", "inf"], "inf is not within"),
        (["--for", "1e12"], "is not within"),
        (["--for", "long"], "'long'"),
        (["-d", "0"], "0 is not within"),
        (["--format", "xml"], "'xml'"),
        (["--sort", "beauty"], "--sort beauty: no such key"),
        (["--hdr"], "--format json"),
        (["-o", "/nonexistent/file"], "No such file or directory"),
        (["-o", "/"], "is a directory"),
        (["--no-bpf", "--level", "full"], "--level full needs BPF"),
        (["--agent", "nonsense"], "'nonsense' is no pattern"),
        (["--agents", "/nonexistent/rules.yaml"], "/nonexistent/rules.yaml"),
        (["--format", "svg", "--theme", "no-such"], "no-such"),
        (["--what"], ": --what"),
    ],
)
def test_a_wrong_option_is_one_line_before_anything_starts(
    engines: list[FakeEngine],
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    assert cli.main(["snapshot", *arguments]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("agenttop: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err
    assert engines == []


def test_sort_help_lists_the_keys(
    engines: list[FakeEngine], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["snapshot", "-s", "help"]) == 0
    assert {"slow_p99", "steps", "name"} <= {
        line.split()[0] for line in capfd.readouterr().out.splitlines()
    }
    assert engines == []


def test_an_engine_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headless, "SILENCE_S", -1.99)

    class Silent(FakeEngine):
        def read(self) -> list[Message]:
            return []

    engine = Silent(EngineOptions())
    monkeypatch.setattr(headless, "start", lambda options: engine)
    from agenttop.store.store import Store

    with (
        pytest.raises(UserError, match="said nothing"),
        headless.Session(engine.options, Store()) as session,
    ):
        next(session.samples())
    assert engine.closed == 1


# --------------------------------------------------------------------------- as processes

PROGRAM = textwrap.dedent(
    """
    import sys, time
    sys.path.insert(0, {tests!r})
    from tests.unit.commands.test_session import FakeEngine
    from agenttop import cli
    from agenttop.commands import session as headless

    class Engine(FakeEngine):
        def read(self):
            time.sleep(0.02)
            return super().read()
        def close(self):
            super().close()
            print("engine closed", file=sys.stderr, flush=True)

    headless.start = Engine
    sys.exit(cli.main(sys.argv[1:]))
    """
).format(tests=str(ROOT))


@pytest.fixture
def program() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_quietly_and_stops_the_engine(
    program: Callable[..., subprocess.Popen[str]], number: signal.Signals
) -> None:
    process = program("-b", "-n", "1000000")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert err == "engine closed\n"
    assert process.returncode == 128 + number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_not_lost_where_python_drops_exceptions(number: signal.Signals) -> None:
    """As in the callback that the end of an import's lock is."""

    class Ends:
        def __del__(self) -> None:
            signal.raise_signal(number)

    def work() -> int:
        Ends()
        time.sleep(20)
        return 0

    handlers = [signal.getsignal(each) for each in (number, signal.SIGALRM)]
    assert headless.quietly(work) == 128 + number
    assert [signal.getsignal(each) for each in (number, signal.SIGALRM)] == handlers


def test_an_old_encoding_gets_plain_ascii(
    program: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    for arguments in (["-b", "-n", "2"], ["snapshot", "--for", "2"]):
        out, err = program(*arguments).communicate(timeout=20)
        assert err == "engine closed\n"
        assert "us " in out
        assert out.isascii()


def test_a_closed_pipe_ends_it_quietly(program: Callable[..., subprocess.Popen[str]]) -> None:
    process = program("-b")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == "engine closed\n"
    assert process.wait(20) == 0


def test_a_signal_leaves_the_old_file(
    program: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    target = tmp_path / "old"
    target.write_text("precious")
    process = program("snapshot", "--for", "80000", "-o", str(target))
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)
    process.terminate()
    process.communicate(timeout=20)
    assert target.read_text() == "precious"
    assert os.listdir(tmp_path) == ["old"]
