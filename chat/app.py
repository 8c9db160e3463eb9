"""`afmoe-mlx chat`: makes a model ready, takes up what was saved, and answers once or as long as the user likes."""

from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from afmoe_mlx.generation import check_options
from afmoe_mlx.terminal import note

from . import one_shot, settings
from .conversation import Conversation
from .engine import EngineSource, lasting_name
from .history import History
from .keyboard import silent_keyboard
from .loop import Chat, View
from .paths import data_folder
from .reader import can_edit_lines, make_reader
from .session import Session
from .sessions import SessionFolder, prefix_directory
from .signals import orderly_end


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asks for."""

    model: str | None
    """None: the one that the saved conversation was had with, or the demo."""
    source: EngineSource
    options: Mapping[str, Any]
    """Those of `stream_generate`; None where the command line says nothing."""
    question: str | None
    """Answered once, after what stands on stdin; None: a chat on a terminal, or what stands on stdin alone."""
    as_json: bool
    view: View
    system_prompt: str | None
    thinks: bool
    """Whether the model may reason before it answers."""
    resume: str | None
    """The name of a saved conversation to go on with; "": the last one; None: a new one."""
    saves: bool
    keeps_history: bool
    prompt_cache_dir: str | None
    disk_cache: bool | None


def run(request: Request) -> int:
    """Chat until the user leaves, or answer once; the exit status."""
    check_options(**_given(request.options))
    question = one_shot.question(request.question)
    with ExitStack() as resources:
        session = None
        if request.resume is not None:
            session = resources.enter_context(SessionFolder().open(request.resume or None))
        is_saved = session is not None or (question is None and request.saves)
        directory = prefix_directory(request.prompt_cache_dir, wanted=request.disk_cache, is_saved=is_saved)
        source = replace(request.source, directory=directory, keeps=question is None)
        name = request.model or (session.model if session is not None else "") or "demo"
        # what is typed meanwhile is for the line editor, which takes Enter for what it is
        with silent_keyboard() if question is None and can_edit_lines() else nullcontext():
            conversation = _conversation(name, source, request)
        resources.callback(_flush, conversation)
        if question is None:
            with orderly_end():
                _chat(conversation, session, request, name=name, source=source)
            return 0
        return _answer_once(conversation, session, request, question)


def _conversation(name: str, source: EngineSource, request: Request) -> Conversation:
    options = {**request.options, "max_tokens": request.options.get("max_tokens") or settings.MAX_TOKENS}
    if source.draft_model is None:
        options.pop("num_draft_tokens", None)
    engine = source.first(name, options)
    conversation = Conversation(
        engine.model,
        engine.tokenizer,
        options=engine.options,
        store=engine.store,
        context=source.context,
        template_variables={} if request.thinks else {"enable_thinking": False},
    )
    if not request.thinks and not conversation.knows_variable("enable_thinking"):
        note(f"{name} has no switch for its reasoning: --no-think changes nothing", dim=True)
    return conversation


def _chat(
    conversation: Conversation, session: Session | None, request: Request, *, name: str, source: EngineSource
) -> None:
    history = History(data_folder() / "history.jsonl" if request.keeps_history else None)
    reader = make_reader(history, lambda text: chat.complete(text))
    chat = Chat(
        conversation,
        Console(highlight=False),
        reader,
        model_name=name,
        source=source,
        saves=request.saves,
        view=request.view,
    )
    chat.greet()
    if session is not None:
        chat.take_up(session, _chosen(request))
    if request.system_prompt is not None:
        conversation.set_system(request.system_prompt)
    chat.loop()


def _answer_once(conversation: Conversation, session: Session | None, request: Request, question: str) -> int:
    if session is not None:
        for warning in session.warnings:
            note(f"warning: {session.name}: {warning}")
        conversation.restore(session.messages)
        conversation.options.update(settings.usable(session.settings) | _chosen(request))
    if request.system_prompt is not None:
        conversation.set_system(request.system_prompt)
    code = one_shot.answer(conversation, question, request.view, as_json=request.as_json)
    if session is not None:
        session.save(conversation, model=None if request.model is None else lasting_name(request.model))
    return code


def _flush(conversation: Conversation) -> None:
    """Wait until what was computed is on the disk."""
    if conversation.store is not None:
        conversation.store.flush()


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _chosen(request: Request) -> dict[str, Any]:
    """The settings that the command line names: they win over those of a session."""
    return {name: value for name, value in _given(request.options).items() if name in settings.MEANINGS}
