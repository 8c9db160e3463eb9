"""Messages and answers, apart from any one interface.

prompts: messages become a prompt's tokens; answers: what a model wrote becomes content, reasoning and tool calls;
reasoning: what of it was reasoning, and goes back closed; tool_formats: how models write calls.
"""

from .answers import Answer, AnswerReader, ToolCall, read_answer
from .calls import ArgumentsDelta, CallEnd, CallStart, ContentDelta, Delta, ReasoningDelta

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
    "read_answer",
]
