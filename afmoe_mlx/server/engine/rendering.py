"""Questions become prompts: by the chat template, within the context; and who reads their answers is made ready."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import ContextFullError, InputError
from ...generation import CONSTRAINT, NO_LIMIT, ConstraintOptions, Plan, check_options, check_token_ids, encode_prompt
from ...messages import AnswerReader, for_template
from ...messages.reasoning import OPEN, closing_of, opened_by
from ...messages.tool_formats import format_of
from ...models import ModelConfig
from ...tokenizer import Tokenizer
from ...tokenizer.encoding import CHARACTERS_PER_TOKEN
from ..errors import ContextLengthError, RequestError
from ..question import Question
from .client_lines import without_client_lines


@dataclass(frozen=True)
class Rendered:
    """A question as the engine takes it."""

    prompt: list[int]
    options: Mapping[str, Any]
    """Those of `BatchAnswers.add`."""
    tools: Sequence[Mapping[str, Any]]
    """Those that may be called."""
    beginning: str | None
    """What of the answer the prompt holds already; None: the answer is a text, and read as nothing else."""
    top_logprobs: int | None
    parallel_tool_calls: bool = True
    tells_progress: bool = False

    @property
    def rules(self) -> ConstraintOptions:
        """What the answer is held to, made once for all answers of a request."""
        found: ConstraintOptions = self.options["rules"]
        return found

    @property
    def most_tokens(self) -> int:
        """Of the prompt and the answer."""
        return len(self.prompt) + int(self.options["max_tokens"])

    def reader(self, tokenizer: Tokenizer) -> AnswerReader | None:
        """What takes the answer apart; None where it is taken as it is."""
        return None if self.beginning is None else AnswerReader(tokenizer, self.tools, beginning=self.beginning)


class Renderer:
    """Renders questions for one model. It may be used in several threads."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        config: ModelConfig,
        limit: Callable[[int, int], int],
        max_tokens: int,
        template_variables: Mapping[str, Any],
    ) -> None:
        """limit: tokens that the answer to a prompt of so many may have, where so many are wanted. max_tokens,
        template_variables: of a question that says nothing of them.
        """
        self._tokenizer, self._config, self._context = tokenizer, config, config.max_position_embeddings
        self._limit, self._max_tokens, self._variables = limit, max_tokens, template_variables

    def render(self, questions: Sequence[Question]) -> list[Rendered]:
        """Each question's prompt and what goes with it. Raises what makes a `RequestError`, where there can be none."""
        found: list[Rendered] = []
        for i, question in enumerate(questions):
            prompt = rules = None
            if i and _asked(question) == _asked(questions[i - 1]):
                prompt = found[-1].prompt
            if i and _held(question) == _held(questions[i - 1]):
                rules = found[-1].rules
            found.append(self._rendered(question, prompt, rules))
        return found

    def _rendered(self, question: Question, prompt: list[int] | None, rules: ConstraintOptions | None) -> Rendered:
        """prompt, rules: the question's, if they are known."""
        options = {name: value for name, value in question.options.items() if value is not None}
        options.setdefault("max_tokens", self._max_tokens)
        tools = None if options.get("tool_choice") == "none" else question.tools
        if options.get("tool_choice") is not None:
            options["tools"] = tools
        held = {name: options.pop(name) for name in CONSTRAINT if name in options}
        check_options(**options)
        options["rules"] = ConstraintOptions(**held) if rules is None else rules
        if prompt is None:
            prompt = self._encoded(question, tools)
        room = self._context - len(prompt)
        if room <= 0:
            raise ContextLengthError(len(prompt), self._context - 1)
        wanted = options["max_tokens"]
        options["max_tokens"] = self._limit(len(prompt), room if wanted == NO_LIMIT else min(wanted, room))
        Plan.of(self._config, self._tokenizer, prompt, **options)  # refuses here what it would in the engine
        beginning = None
        if question.prompt is None:
            last = question.messages[-1]
            beginning = _text(last) if question.continues else opened_by(self._tokenizer, prompt)
        return Rendered(
            prompt,
            options,
            tools or (),
            beginning,
            question.top_logprobs,
            question.parallel_tool_calls,
            question.tells_progress,
        )

    def prepare(self, rendered: Sequence[Rendered]) -> None:
        """Make constraints for once: no answer that is being written is to wait for what they need, or fail by them."""
        for question in rendered:
            if question.rules.is_given:
                plan = Plan.of(self._config, self._tokenizer, question.prompt, **question.options)
                plan.rules.begin(plan.tokenizer, self._config.vocab_size, question.prompt)()

    def count(self, question: Question) -> int:
        """Tokens of a question's prompt."""
        tools = None if question.options.get("tool_choice") == "none" else question.tools
        return len(self._encoded(question, tools))

    def _encoded(self, question: Question, tools: Sequence[Mapping[str, Any]] | None) -> list[int]:
        if question.prompt is not None:
            text = question.prompt
            if isinstance(text, str):
                self._check_length(text)
            prompt = encode_prompt(self._tokenizer, text)
            check_token_ids(prompt, self._config.vocab_size, "the prompt")
            if not prompt:
                raise InputError("the prompt is empty: expected at least one token")
            return prompt
        text = self._text_of(question, tools)
        self._check_length(text)
        return self._tokenizer.encode(text, add_special_tokens=False)  # a template writes its own special tokens

    def _text_of(self, question: Question, tools: Sequence[Mapping[str, Any]] | None) -> str:
        messages = without_client_lines(question.messages)
        if not messages:
            raise InputError("there are no messages: expected one at least")
        if len(messages) > self._context:  # each has a token at least: a template would take long over so many
            raise ContextLengthError(len(messages), self._context - 1)
        if tools and format_of(self._tokenizer) is None:
            raise RequestError(400, "this model's chat template knows no tools: ask without them", param="tools")
        begun = []
        if question.continues:
            begun = [{"role": "assistant", "content": _text(messages.pop())}]
        template = self._tokenizer.tool_template if tools else self._tokenizer.chat_template
        variables = {**self._variables, **question.template_variables}
        variables = {name: value for name, value in variables.items() if name in (template or "")}
        return self._tokenizer.apply_chat_template(
            [*for_template(messages, self._tokenizer), *begun],
            tools=tools or None,
            tokenize=False,
            add_generation_prompt=not begun,
            continue_final_message=bool(begun),
            **variables,
        )

    def _check_length(self, text: str) -> None:
        """Before all of a text is encoded that certainly has too many tokens."""
        try:
            self._tokenizer.check_length(text, self._context)
        except ContextFullError:  # how many is a guess: a client judges by it how much to leave out
            tokens = max(self._context + 1, len(text) // CHARACTERS_PER_TOKEN)
            raise ContextLengthError(tokens, self._context - 1) from None


def _asked(question: Question) -> tuple[Any, ...]:
    """All that a question's prompt is made of."""
    is_called = question.options.get("tool_choice") != "none"
    variables = question.template_variables
    return question.messages, question.prompt, question.tools, variables, question.continues, is_called


def _held(question: Question) -> tuple[Any, ...]:
    """All that an answer is held to."""
    return question.tools, *(question.options.get(name) for name in CONSTRAINT)


def _text(message: Mapping[str, Any]) -> str:
    """The text of an answer that is gone on with, its reasoning first, which is open if nothing follows it."""
    content = message.get("content")
    if isinstance(content, list | tuple) and all(isinstance(part, Mapping) and "text" in part for part in content):
        content = "".join(str(part["text"]) for part in content)
    if message.get("role") != "assistant" or not isinstance(content, str):
        raise InputError("the last message is no answer with a text: only such a one can be gone on with")
    reasoning = message.get("reasoning_content")
    if not reasoning:
        return content
    begun = OPEN + ("" if reasoning.startswith("\n") else "\n") + reasoning
    return begun + closing_of(reasoning) + content if content else begun
