"""Which command lines are agents, and which only look like it."""

from __future__ import annotations

import pytest

from agenttop.agents.rules import Rules
from agenttop.linux.process import ProcInfo


def process(cmdline: str | list[str], comm: str | None = None, pid: int = 4242) -> ProcInfo:
    argv = tuple(cmdline.split() if isinstance(cmdline, str) else cmdline)
    comm = comm if comm is not None else argv[0].rpartition("/")[2][:15]
    return ProcInfo(pid, 1, comm, argv, 1000, ("/user.slice",), 100, 1, False)


@pytest.fixture(scope="module")
def builtin() -> Rules:
    from agenttop.agents.rules import BUILTIN

    return Rules.load(str(BUILTIN))


HOME = "/home/ada"
AGENTS = [
    # coding agents
    ("claude", "claude", "claude"),
    ("claude --dangerously-skip-permissions -p fix_it", "claude", "claude"),
    (f"{HOME}/.local/bin/claude --resume", "claude", "claude"),
    ("node /usr/local/bin/claude --continue", "claude", "claude"),
    (
        "node --no-warnings --enable-source-maps "
        "/usr/lib/node_modules/@anthropic-ai/claude-code/cli.js -p hello",
        "claude",
        "claude",
    ),
    ("/usr/local/lib/node_modules/@openai/codex/vendor/x/codex/codex exec", "codex", "codex"),
    ("node /usr/local/bin/codex --full-auto", "codex", "codex"),
    ("node --no-warnings=DEP0040 /usr/local/bin/gemini -p hi", "gemini", "gemini"),
    ("npx -y @google/gemini-cli@latest", "gemini", "gemini"),
    (f"{HOME}/.venv/bin/python3 {HOME}/.venv/bin/aider --model sonnet", "aider", "aider"),
    ("/usr/bin/python3.12 -m aider --yes", "aider", "aider"),
    ("uv run aider", "aider", "aider"),
    ("uv tool run --from aider-chat aider --yes", "aider", "aider"),
    (f"{HOME}/.local/bin/cursor-agent --use-system-ca x/index.js", "cursor-agent", "cursor-agent"),
    ("opencode serve --port 4096", "opencode", "opencode"),
    ("bun /usr/lib/node_modules/opencode-ai/bin/opencode", "opencode", "opencode"),
    ("goose session --name x", "goose", "goose"),
    ("/opt/goose/goosed agent", "goose", "goose"),
    ("python -m openhands.server.listen", "openhands", "openhands"),
    ("node /usr/bin/copilot", "copilot", "copilot"),
    ("node /opt/node_modules/@sourcegraph/amp/dist/main.js", "amp", "amp"),
    ("node /usr/lib/node_modules/@qwen-code/qwen-code/dist/index.js", "qwen-code", "qwen-code"),
    ("crush -d", "crush", "crush"),
    ("gptme hello", "coding agent", "gptme"),
    # MCP servers
    ("uvx mcp-server-git --repository /src", "mcp", "mcp-server-git"),
    ("uv tool uvx mcp-server-fetch==1.2", "mcp", "mcp-server-fetch"),
    ("uv --directory /src/weather run mcp-server-weather", "mcp", "mcp-server-weather"),
    ("python3 -m mcp_server_git", "mcp", "mcp_server_git"),
    (
        "npx -y @modelcontextprotocol/server-filesystem@0.6 /src",
        "mcp",
        "@modelcontextprotocol/server-fi…"[:32],
    ),
    (
        f"node {HOME}/.npm/_npx/a1/node_modules/.bin/mcp-server-filesystem /src",
        "mcp",
        "mcp-server-filesystem",
    ),
    ("node /src/weather-mcp/build/index.js", "mcp", "weather-mcp"),
    ("python /src/mcp-weather/server.py", "mcp", "mcp-weather"),
    ("uv run --with mcp mcp run server.py", "mcp", "mcp"),
    ("node /usr/lib/node_modules/@playwright/mcp/cli.js", "mcp", "@playwright/mcp"),
    ("github-mcp-server stdio", "mcp", "github-mcp-server"),
    # frameworks
    ("/venv/bin/python /venv/bin/langgraph dev --port 2024", "framework", "langgraph"),
    ("uvicorn langgraph_api.server:app --port 8000", "framework", "langgraph_api"),
    ("python -m crewai.cli run", "framework", "crewai"),
    ("/venv/bin/python3 /venv/bin/crewai run", "framework", "crewai"),
    ("python research_crewai.py", "framework", "research_crewai.py"),
    ("python3 -u langgraph_agent.py --topic x", "framework", "langgraph_agent.py"),
    ("autogenstudio ui --port 8081", "framework", "autogenstudio"),
    ("adk web", "framework", "adk"),
    ("python -m google.adk.cli web", "framework", "google.adk.cli"),
    ("python -X dev -m smolagents.cli", "framework", "smolagents"),
    # model servers
    ("/usr/local/bin/ollama serve", "ollama", "ollama"),
    ("/usr/local/bin/ollama runner --model /x --port 1", "ollama", "ollama"),
    ("/opt/llama.cpp/build/bin/llama-server -m q.gguf", "llama.cpp", "llama.cpp"),
    ("python -m llama_cpp.server --model x", "llama.cpp", "llama.cpp"),
    ("python3 /usr/local/bin/vllm serve meta/llama", "vllm", "vllm"),
    ("python3 -m vllm.entrypoints.openai.api_server", "vllm", "vllm"),
    ("VLLM::EngineCore", "vllm", "vllm"),
    ("python3 -m sglang.launch_server --port 1", "sglang", "sglang"),
    ("text-generation-launcher --model-id x", "tgi", "tgi"),
    ("python -m mlx_lm.server", "mlx", "mlx"),
    # agenttop's own
    ("agenttop loop --gate epoll", "loop", "agenttop"),
    ("/venv/bin/python3 /venv/bin/agenttop loop", "loop", None),
    ("python -m agenttop loop --gate read", "loop", None),
]

NOT_AGENTS = [
    "vim claude.md",
    "vim /home/ada/.claude/settings.json",
    "grep -r ollama .",
    "grep claude",
    "less codex",
    "tail -f /var/log/ollama.log",
    "man gemini",
    "bash -c claude\\ -p",
    "sh -c npx\\ @modelcontextprotocol/server-x",
    "python3 -c import\\ langgraph",
    "python3 -m pytest tests/test_langgraph.py",
    "pytest -k crewai",
    "/usr/bin/python3 /usr/bin/pytest vllm",
    "pip install crewai",
    "python3 -m pip install vllm",
    "uv pip install aider-chat",
    "npm install @openai/codex",
    "npm install -g @anthropic-ai/claude-code",
    "apt-get install goose",
    "goose -dir migrations postgres up",
    "goose postgres dbstring up",
    "git clone https://github.com/openai/codex",
    "git log -- claude",
    "docker run ollama/ollama",
    "systemctl status ollama",
    "journalctl -u vllm",
    "cat mcp-server-git",
    "node /src/claude/server.js",
    "python3 /src/claude/manage.py runserver",
    "node -e claude",
    "node /src/app/dist/index.js",
    "ssh-agent -s",
    "gpg-agent --daemon",
    "/usr/sbin/waagent -daemon",
    "python3 -u /usr/sbin/waagent -daemon",
    "zabbix_agentd -f",
    "dockerd",
    "postgres: writer process",
    "sshd: ada@pts/0",
    "/usr/lib/systemd/systemd --user",
    "-bash",
    "code /src/crush",
    "agenttop",
    "agenttop demo",
    "agenttop snapshot --agent comm:loop",
    "/venv/bin/python /venv/bin/agenttop live",
    "python -m agenttop.engine",
    "python -m agenttop serve",
]


@pytest.mark.parametrize(("cmdline", "rule", "name"), AGENTS, ids=[a[0] for a in AGENTS])
def test_real_command_lines_of_agents_match(
    builtin: Rules, cmdline: str, rule: str, name: str | None
) -> None:
    info = process(cmdline)
    found = builtin.match(info)
    assert found is not None
    assert found.name == rule
    if name is not None:
        assert found.name_of(info) == name


@pytest.mark.parametrize("cmdline", NOT_AGENTS)
def test_command_lines_that_only_mention_agents_do_not_match(builtin: Rules, cmdline: str) -> None:
    argv = cmdline.replace("\\ ", "\0").split()
    assert builtin.match(process([word.replace("\0", " ") for word in argv])) is None


def test_a_rewritten_title_is_read_word_by_word(builtin: Rules) -> None:
    info = process(["npm exec @modelcontextprotocol/server-memory --x"], comm="npm exec @model")
    found = builtin.match(info)
    assert found is not None
    assert found.name == "mcp"


def test_a_renamed_process_is_known_by_its_comm(builtin: Rules) -> None:
    found = builtin.match(process("/usr/bin/thing", comm="atloop"))
    assert found is not None
    assert found.name == "loop"
    assert found.name_of(process("agenttop loop", comm="coder")) == "coder"


def test_kernel_threads_never_match() -> None:
    rules = Rules.load(patterns=["comm:."])
    thread = ProcInfo(2, 0, "kthreadd", (), 0, ("/",), 0, 1, True)
    assert rules.match(thread) is None
    assert rules.match(thread._replace(kernel=False, cmdline=("x",))) is not None
