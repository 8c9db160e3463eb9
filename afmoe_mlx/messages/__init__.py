"""Messages and answers, apart from any one interface.

prompts: messages become a prompt's tokens; answers: what a model wrote becomes content, reasoning and tool calls;
reasoning: what of it was reasoning, and goes back closed; tool_formats: how models write calls; openai_form: messages
as chat templates take them.
"""

from .answers import Answer, AnswerReader, ToolCall, read_answer
from .calls import ArgumentsDelta, CallEnd, CallStart, ContentDelta, Delta, ReasoningDelta
from .openai_form import for_template

__all__ = [
    "Answer",
    "AnswerReader",
    "ArgumentsDelta",
    "CallEnd",
    "CallStart",
    "ContentDelta",
    "Delta",
    "ReasoningDelta",
    "ToolCall",
    "for_template",
    "read_answer",
]
