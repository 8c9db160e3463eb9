"""`ChatBody`: a request for chat completions, and the questions that it comes to."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ..effort import reasoning_budget, template_variables
from ..fields import Count, Effort, Flag, Limit, Several, TopLogprobs
from ..question import Question
from ..tools import choice_beside
from .body import AnswerBody
from .messages import Message
from .response_format import ResponseFormat
from .tools import ToolChoice, chosen, functions_of

# What a template is given in any case, or that is no variable of one.
_RESERVED = {"messages", "tools", "add_generation_prompt", "continue_final_message", "tokenize", "self"}


class ChatBody(AnswerBody):
    """The fields of a request."""

    messages: Annotated[Several[Message], Field(min_length=1)]
    max_completion_tokens: Limit | None = None
    logprobs: Flag | None = None
    top_logprobs: TopLogprobs | None = None
    tools: Several[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: Flag | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = None
    reasoning_budget: Count | None = None
    modalities: Several[Literal["text"]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: Flag | None = None
    return_progress: Flag | None = None

    @field_validator("chat_template_kwargs")
    @classmethod
    def _are_variables(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if taken := sorted((value or {}).keys() & _RESERVED):
            raise ValueError(f"{taken[0]} is no variable that can be chosen")
        return value

    @model_validator(mode="after")
    def _asks_for_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    @model_validator(mode="after")
    def _asks_for_progress(self) -> Self:
        if self.return_progress and not self.stream:
            raise ValueError("return_progress needs stream: true")
        return self

    @property
    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def questions(self, request: str) -> list[Question]:
        """One for each answer. request: its id, for the log."""
        functions = functions_of(self.tools or (), request)
        offered = functions if self.tool_choice != "none" else []
        form = None if self.response_format is None else self.response_format.enforced_schema
        added = {
            "json_schema": form,
            "tool_choice": choice_beside(form, chosen(self.tool_choice), offered, "response_format"),
            "reasoning_budget": self._budget(),
        }
        messages = [message.as_sent() for message in self.messages]
        return [
            Question(
                messages=messages,
                tools=offered or None,
                options=self.options(choice) | {k: v for k, v in added.items() if v is not None},
                template_variables=template_variables(self.reasoning_effort) | (self.chat_template_kwargs or {}),
                continues=bool(self.continue_final_message),
                parallel_tool_calls=self.parallel_tool_calls is not False,
                tells_progress=bool(self.return_progress),
                top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            )
            for choice in range(self.answers)
        ]

    def _budget(self) -> int | None:
        return reasoning_budget(self.reasoning_effort) if self.reasoning_budget is None else self.reasoning_budget
