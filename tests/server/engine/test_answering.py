"""Answers as updates: the log-probabilities told are those of the content's tokens, however a text is cut into them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from afmoe_mlx.generation import StopStrings
from afmoe_mlx.messages import ContentDelta
from afmoe_mlx.server.engine.answering import _Reading
from afmoe_mlx.server.engine.jobs import Piece
from afmoe_mlx.server.engine.rendering import Rendered
from afmoe_mlx.server.question import TokenLogprob
from afmoe_mlx.tokenizer import Tokenizer
from helpers.chat_templates import CHATML
from helpers.tiny_tokenizers import byte_level

TOKENIZER = Tokenizer(byte_level(), chat_templates={"default": CHATML})
TOOLS = [{"type": "function", "function": {"name": "look"}}]
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "it"}}\n</tool_call>'
LONGEST = 9  # bytes of a token
TEXTS = st.sampled_from(["n", "at", "Hé, 😀!", " <tool", "</think", "<tool_call>{", "\n\n", "look", "a longer one "])


def pieces(text: str, cuts: list[int], stop: str) -> list[Piece]:
    """Tokens that are parts of characters too, as an answer has them: held back where a stop text may begin."""
    octets, stops = text.encode(), StopStrings([stop])
    ends = sorted({*(cut % (len(octets) + 1) for cut in cuts), *range(0, len(octets), LONGEST)})
    found, given_so_far = list[Piece](), 0
    for first, last in zip([0, *ends], [*ends, len(octets)], strict=True):
        final = octets[:last].decode("utf-8", "ignore")
        shown = stops.push(final[given_so_far:])
        given_so_far = len(final)
        logprob = TokenLogprob(first, octets[first:last], -1.0)
        found.append(Piece(0, first, shown, 1, 0, len(found) + 1, logprob=logprob))
    return [*found, Piece(0, 0, stops.finish(), 1, 0, len(found) + 1, "stop", logprob=TokenLogprob(0, b"", -1.0))]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["", "<think>\nat last</think>\n\n", "<think>n</think>"]),
    st.lists(TEXTS, min_size=1, max_size=6),
    st.sampled_from(["", CALL]),
    st.lists(st.integers(0, 10**6), max_size=60),
    st.sampled_from(["zzz", "at l!", "\n\n\n"]),
)
def test_logprobs_are_told_with_the_content_of_their_tokens(
    thought: str, texts: list[str], call: str, cuts: list[int], stop: str
) -> None:
    rendered = Rendered([1], {}, TOOLS, "", 0)
    reading, content, told = _Reading(0, rendered, TOKENIZER), b"", list[TokenLogprob]()
    for piece in pieces(thought + "".join(texts) + call, cuts, stop):
        update = reading.update(piece)
        content += b"".join(delta.text.encode() for delta in update.deltas if isinstance(delta, ContentDelta))
        told += update.logprobs
    assert len({logprob.token for logprob in told}) == len(told)
    covered = b"".join(logprob.text for logprob in told)
    assert content in covered or not content
    if told:
        assert len(covered) - len(content) < len(told[0].text) + len(told[-1].text)
