"""`afmoe-mlx chat`: loads a model, resumes a session, and chats or answers once."""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

from rich.console import Console

from afmoe_mlx import device
from afmoe_mlx.command_line.length import check_length
from afmoe_mlx.command_line.requests.answering import ChatRequest, or_demo
from afmoe_mlx.command_line.template import read_template, template_variables
from afmoe_mlx.command_line.tools import check_template, read_tools
from afmoe_mlx.generation import check_options
from afmoe_mlx.terminal import is_terminal, note

from . import one_shot
from .commands import command as commands
from .conversation import settings
from .conversation.conversation import Conversation
from .conversation.engine import EngineSource, lasting_name
from .keyboard.completion import Complete
from .keyboard.history import History
from .keyboard.reader import PlainReader, Reader
from .keyboard.signals import orderly_end
from .loop import Chat, View
from .paths import data_folder
from .person import PersonAtTerminal
from .screen.silence import silent_keyboard
from .screen.status import count
from .sessions.folder import SessionFolder, prefix_directory
from .sessions.session import Session
from .tools.agent import Agent
from .tools.permissions import Permissions
from .tools.toolbox import Toolbox

if TYPE_CHECKING:
    from .tools.mcp_client import McpClient

PATIENCE = 0.5  # seconds of waiting for MCP servers that need no word


def run(request: ChatRequest) -> int:
    """Chat until the user leaves, or answer once; the exit status."""
    model = None if request.model is None and request.resume is not None else or_demo(request.model)
    check_options(**_given(request.stream_options))
    template, variables = read_template(request.chat_template), template_variables(request.chat_template_config)
    question = one_shot.question(request.question)
    tools = read_tools(request.tools) or []
    with ExitStack() as resources:
        client = None if request.mcp is None else resources.enter_context(_servers(request.mcp))
        session = None
        if request.resume is not None:
            session = resources.enter_context(SessionFolder().open(request.resume or None))
        is_saved = session is not None or (question is None and not request.no_save)
        directory = prefix_directory(request.prompt_cache_dir, wanted=request.wants_disk_cache, is_saved=is_saved)
        name = model or (session.model if session is not None else "") or "demo"
        source = EngineSource(
            name=name,
            revision=request.revision,
            draft_model=request.draft_model,
            chat_template=template,
            kv=request.kv,
            experts_in_memory=request.experts_in_memory,
            adapters=request.adapters,
            on_hosts=request.on_hosts(),
            context=request.context,
            force=request.force,
            directory=directory,
            keeps=question is None,
        )
        check_length(question or "", name, revision=request.revision)
        # what is typed meanwhile is for the line editor, which takes Enter for what it is
        with silent_keyboard() if question is None and can_edit_lines() else nullcontext():
            conversation = _conversation(source, request, variables)
            if client is not None or tools:
                check_template(conversation.tokenizer, option="--mcp" if client is not None else "--tools")
            toolbox = _toolbox(client, tools)
            conversation.tools = toolbox.schemas
        # from one answer to the next too: to bring back what macOS has taken takes a while
        resources.enter_context(device.resident())
        resources.callback(_flush, conversation)
        if question is None:
            with orderly_end():
                _chat(conversation, session, request, toolbox, name=name, source=source)
            return 0
        return _answer_once(conversation, session, request, toolbox, question)


def _conversation(source: EngineSource, request: ChatRequest, variables: Mapping[str, Any]) -> Conversation:
    engine = source.first(request.stream_options)
    conversation = Conversation(
        engine.model,
        engine.tokenizer,
        options=engine.options,
        store=engine.store,
        context=source.context,
        template_variables={**variables, "enable_thinking": False} if request.no_think else variables,
    )
    if request.no_think and not conversation.knows_variable("enable_thinking"):
        note(f"{engine.name} has no switch for its reasoning: --no-think changes nothing", dim=True)
    return conversation


def _servers(path: str) -> "McpClient":
    from .tools.mcp_client import McpClient
    from .tools.server_file import read_servers

    return McpClient(read_servers(path))


def _toolbox(client: "McpClient | None", tools: Sequence[Mapping[str, Any]]) -> Toolbox:
    """The tools to offer; a line on stderr for each server that is not there."""
    if client is not None:
        if not client.wait(PATIENCE):
            note("MCP servers are being started…", dim=True)
            client.wait()
        for server in client.servers.values():
            if server.trouble:
                note(f"warning: MCP server {server.name}: {server.trouble}")
    toolbox = Toolbox(client)
    toolbox.use(tools)
    return toolbox


def _permissions(toolbox: Toolbox, request: ChatRequest) -> Permissions:
    permissions = Permissions()
    permissions.allow(request.allow_tool or (), toolbox)
    return permissions


def _chat(
    conversation: Conversation,
    session: Session | None,
    request: ChatRequest,
    toolbox: Toolbox,
    *,
    name: str,
    source: EngineSource,
) -> None:
    history = History(None if request.no_history else data_folder() / "history.jsonl")
    reader = make_reader(history, lambda text: chat.complete(text))
    console = Console(highlight=False)
    chat = Chat(
        conversation,
        console,
        reader,
        commands,
        model_name=name,
        source=source,
        saves=not request.no_save,
        view=_view(request),
        agent=Agent(toolbox, _permissions(toolbox, request), PersonAtTerminal(console, reader)),
        adapters=request.adapter_path or (),
    )
    chat.greet()
    if toolbox.tools:
        chat.say(f"{count(len(toolbox.tools), 'tool')} that it may call: /tools lists them.")
    if session is not None:
        chat.take_up(session, _chosen(request))
    if request.system_prompt is not None:
        conversation.set_system(request.system_prompt)
    chat.loop()


def make_reader(history: History, complete: Complete) -> Reader:
    """The line editor where there can be one, else plain lines."""
    if not can_edit_lines():
        return PlainReader()
    from .keyboard.line_editor import LineEditor

    return LineEditor(history, complete)


def can_edit_lines() -> bool:
    """Whether stdin and stdout are a terminal that can do more than print."""
    if os.environ.get("TERM", "dumb") in ("dumb", "unknown", ""):
        return False
    return is_terminal(sys.stdin, sys.stdout)


def _answer_once(
    conversation: Conversation, session: Session | None, request: ChatRequest, toolbox: Toolbox, question: str
) -> int:
    if session is not None:
        for warning in session.warnings:
            note(f"warning: {session.name}: {warning}")
        conversation.restore(session.messages)
        conversation.options.update(settings.usable(session.settings) | _chosen(request))
    if request.system_prompt is not None:
        conversation.set_system(request.system_prompt)
    permissions = _permissions(toolbox, request)
    code = one_shot.answer(conversation, question, _view(request), toolbox, permissions, as_json=request.as_json)
    if session is not None:
        session.save(conversation, model=None if request.model is None else lasting_name(request.model))
    return code


def _flush(conversation: Conversation) -> None:
    """Wait until what was computed is on the disk."""
    if conversation.store is not None:
        conversation.store.flush()


def _view(request: ChatRequest) -> View:
    return View(markdown=not request.no_markdown)


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _chosen(request: ChatRequest) -> dict[str, Any]:
    """The settings that the command line names: they win over those of a session."""
    return {name: value for name, value in _given(request.stream_options).items() if name in settings.MEANINGS}
