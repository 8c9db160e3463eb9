"""Clients of other makers, and how each is told to do a task alone: what is in its home, its environment, its command.

`$url`, `$key`, `$model`, `$home`, `$folder` and `$task` stand for what a run has. None asks for updates or sends
telemetry, as far as it can be told not to.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

WRITTEN = "hello.txt"


@dataclass(frozen=True)
class Agent:
    """A client in one of its protocols."""

    name: str
    protocol: str
    """"chat", "responses" or "messages"."""
    package: str
    """Where it comes from: npm's or PyPI's name."""
    says: Sequence[str]
    """What the model answers, in turn: a call that writes the file, then that it is done."""
    command: Sequence[str]
    files: Mapping[str, str] = field(default_factory=dict)
    """By their paths in its home."""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def program(self) -> str:
        return self.command[0]


def calling(name: str, **arguments: str) -> list[str]:
    """A tool call as a model writes it, and what it says thereafter."""
    return [f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>", "Done."]


def opencode(protocol: str, package: str) -> Agent:
    model = {"name": "$model", "limit": {"context": 131072, "output": 8192}}
    provider = {"npm": package, "name": "local", "options": {"baseURL": "$url/v1", "apiKey": "$key"}}
    settings = {
        "autoupdate": False,
        "share": "disabled",
        "provider": {"local": {**provider, "models": {"$model": model}}},
    }
    return Agent(
        "opencode",
        protocol,
        "opencode-ai",
        calling("write", filePath="$folder/hello.txt", content="hi\n"),
        ["opencode", "run", "-m", "local/$model", "$task"],
        {".config/opencode/opencode.json": json.dumps(settings)},
        {"OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1"},
    )


CODEX = """\
model = "$model"
model_provider = "local"
check_for_update_on_startup = false
[analytics]
enabled = false
[model_providers.local]
name = "local"
base_url = "$url/v1"
env_key = "LOCAL_API_KEY"
wire_api = "responses"
"""


def codex() -> Agent:
    return Agent(
        "codex",
        "responses",
        "@openai/codex",
        calling("exec_command", cmd="echo hi > hello.txt"),
        ["codex", "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "$task"],
        {".codex/config.toml": CODEX},
        {"LOCAL_API_KEY": "$key"},
    )


def claude_code() -> Agent:
    return Agent(
        "claude-code",
        "messages",
        "@anthropic-ai/claude-code",
        calling("Write", file_path="$folder/hello.txt", content="hi\n"),
        ["claude", "-p", "$task", "--allowedTools", "Write", "Bash"],
        environment={
            "ANTHROPIC_BASE_URL": "$url",
            "ANTHROPIC_API_KEY": "$key",
            "ANTHROPIC_MODEL": "$model",
            "CLAUDE_CODE_MAX_CONTEXT_TOKENS": "131072",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
    )


def qwen_code(protocol: str, auth: str, environment: Mapping[str, str]) -> Agent:
    return Agent(
        "qwen-code",
        protocol,
        "@qwen-code/qwen-code",
        calling("write_file", file_path="$folder/hello.txt", content="hi\n"),
        ["qwen", "--auth-type", auth, "-y", "-p", "$task"],
        {".qwen/settings.json": json.dumps({"privacy": {"usageStatisticsEnabled": False}})},
        environment,
    )


def cline(protocol: str, provider: str) -> Agent:
    settings = {"provider": provider, "apiKey": "$key", "model": "$model", "baseUrl": "$url/v1"}
    known = {"settings": settings, "updatedAt": "2026-01-01T00:00:00.000Z", "tokenSource": "manual"}
    providers = {"version": 1, "lastUsedProvider": provider, "providers": {provider: known}}
    return Agent(
        "cline",
        protocol,
        "cline",
        calling("editor", path="$folder/hello.txt", new_text="hi\n"),
        ["cline", "--json", "--auto-approve", "true", "$task"],
        {".cline/data/settings/providers.json": json.dumps(providers)},
        {"CLINE_NO_AUTO_UPDATE": "1", "CLINE_SESSION_BACKEND_MODE": "local"},  # else a daemon stays behind
    )


CONTINUE = """\
name: local
version: 0.0.1
schema: v1
models:
  - name: $model
    provider: PROVIDER
    model: $model
    apiBase: $url/v1
    apiKey: $key
    roles: [chat]
    capabilities: [tool_use]
"""


def cn(protocol: str, provider: str) -> Agent:
    return Agent(
        "cn",
        protocol,
        "@continuedev/cli",
        calling("Write", filepath="$folder/hello.txt", content="hi\n"),
        ["cn", "--config", "$home/config.yaml", "--auto", "-p", "$task"],
        {"config.yaml": CONTINUE.replace("PROVIDER", provider)},
        {"CONTINUE_TELEMETRY_ENABLED": "0"},
    )


LLM_MODELS = """\
- model_id: $model
  model_name: $model
  api_base: $url/v1
  api_key_name: local
  supports_tools: true
  supports_schema: true
"""
LLM_FUNCTION = """\
def write_file(path: str, content: str) -> str:
    "Write a file."
    with open(path, "w") as file:
        file.write(content)
    return "written"
"""


def llm() -> Agent:
    return Agent(
        "llm",
        "chat",
        "llm",
        calling("write_file", path="hello.txt", content="hi\n"),
        ["llm", "-m", "$model", "--functions", LLM_FUNCTION, "$task"],
        {"llm/extra-openai-models.yaml": LLM_MODELS, "llm/keys.json": '{"local": "$key"}'},
        {"LLM_USER_PATH": "$home/llm"},
    )


def aider() -> Agent:
    quiet = ["--no-check-update", "--no-show-release-notes", "--no-show-model-warnings", "--analytics-disable"]
    alone = ["--yes-always", "--no-git", "--no-detect-urls", "--no-fancy-input", "--no-gitignore"]
    return Agent(
        "aider",
        "chat",
        "aider-chat",
        ["hello.txt\n```\nhi\n```\n"],
        ["aider", "--model", "openai/$model", "--edit-format", "whole", *quiet, *alone, "--message", "$task", WRITTEN],
        environment={"OPENAI_API_BASE": "$url/v1", "OPENAI_API_KEY": "$key"},
    )


OPENAI = {"OPENAI_BASE_URL": "$url/v1", "OPENAI_API_KEY": "$key", "OPENAI_MODEL": "$model"}
ANTHROPIC = {"ANTHROPIC_BASE_URL": "$url", "ANTHROPIC_API_KEY": "$key", "ANTHROPIC_MODEL": "$model"}
AGENTS = [
    opencode("chat", "@ai-sdk/openai-compatible"),
    opencode("messages", "@ai-sdk/anthropic"),
    opencode("responses", "@ai-sdk/openai"),
    codex(),
    claude_code(),
    qwen_code("chat", "openai", OPENAI),
    qwen_code("messages", "anthropic", ANTHROPIC),
    cline("chat", "openai-compatible"),
    cline("messages", "anthropic"),
    cn("chat", "openai"),
    cn("messages", "anthropic"),
    llm(),
    aider(),
]
