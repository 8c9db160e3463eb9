"""Encoding texts of any size: a long one keeps no Ctrl-C waiting, and one that cannot fit is found before the work.

And a single token's bytes.
"""

import re
from functools import cache

import tokenizers
from tokenizers.models import BPE

from ..interrupts import interruptible

# Characters from which a text is long: shorter ones are encoded in no time that anybody, or another thread, notices.
LONG = 1 << 14

# Characters of a token, by which it is guessed how much of a text has to be encoded to tell that it does not fit.
CHARACTERS_PER_TOKEN = 4


def encode(backend: tokenizers.Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """The token ids of a text; TypeError if it cannot be written as UTF-8."""
    if not isinstance(text, str) or len(text) < LONG:
        return backend.encode(text, add_special_tokens=add_special_tokens).ids
    # unlike `encode`, a batch lets other threads run
    return interruptible(lambda: backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)


def exceeds(backend: tokenizers.Tokenizer, text: str, limit: int) -> bool:
    """Whether a long text certainly has more tokens than `limit`; False where only encoding all of it can tell.

    Certain is what is longer than so many of the longest token, and what begins with more tokens than that, as far as
    what follows cannot change them. Characters that a normalizer drops count as any others.
    """
    size = max(CHARACTERS_PER_TOKEN * limit, LONG)
    if len(text) <= size:
        return False
    longest = max(map(len, backend.get_vocab(with_added_tokens=True)), default=1)
    if _spells_all(backend) and len(text) > limit * longest:
        return True
    while size < len(text):
        cut = 4 * longest  # tokens that an added token, cut in two, may have: one for each byte
        if _settled(backend, text[:size]) - cut > limit:
            return True
        size *= 2
    return False


def _spells_all(backend: tokenizers.Tokenizer) -> bool:
    """Whether any character has tokens of its own: others may make one of any number that they do not know."""
    model = backend.model
    return isinstance(model, BPE) and (model.unk_token is None or model.byte_fallback)


def _settled(backend: tokenizers.Tokenizer, beginning: str) -> int:
    """How many tokens the beginning of a text has before its last word, which may go on."""
    try:
        words = interruptible(lambda: backend.encode_batch([beginning], add_special_tokens=False)[0].word_ids)
    except TypeError:  # no UTF-8: encoding all of it says so
        return 0
    return words.index(words[-1]) if words else 0


def token_bytes(backend: tokenizers.Tokenizer, token_id: int) -> bytes:
    """The bytes of a token, b"" of an id that there is not."""
    token = backend.id_to_token(token_id)
    if token is None:
        return b""
    text = backend.decode([token_id], skip_special_tokens=False)
    if "\ufffd" not in text:
        return text.encode()
    if byte := re.fullmatch("<0x([0-9A-F]{2})>", token):
        return bytes.fromhex(byte[1])
    alphabet = _byte_alphabet()  # a part of a character
    return bytes(alphabet[char] for char in token) if all(char in alphabet for char in token) else text.encode()


@cache
def _byte_alphabet() -> dict[str, int]:
    """How byte-level vocabularies spell bytes: those that print as themselves, the others from U+0100 on, in order."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
