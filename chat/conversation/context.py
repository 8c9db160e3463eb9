"""A full context: how many of the oldest turns have to be dropped for the conversation to go on."""

from .conversation import Conversation

LITTLE_ROOM = 128  # tokens for an answer, below which it is asked whether to make room, or an eighth of a small context
ROOM_SHARE = 4  # what part of the context is made free, so that not every turn asks again


def turns_to_drop(conversation: Conversation, text: str, *, replaces: bool) -> int:
    """The fewest of the oldest turns to drop for `text` and its answer to fit; all that would help if none suffices.

    replaces: the message takes the place of the last one. 0 if dropping does not help. The conversation stays as it is.
    """
    messages = conversation.messages
    wanted = conversation.context_limit // ROOM_SHARE

    def room_without(turns: int) -> int:
        conversation.restore(messages)
        if replaces:
            conversation.undo()
        conversation.drop_oldest(turns)
        return conversation.room_for(text)

    try:
        most = conversation.turns - replaces
        if most < 1 or room_without(most) <= 0:
            return 0
        low, high = 0, most
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if room_without(middle) >= wanted else (middle, high)
        return high
    finally:
        conversation.restore(messages)
