"""An answer goes on in whatever thread asks for its next token, as the thread pool of a web server does."""

from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest

from afmoe_mlx import load, stream_generate
from afmoe_mlx.cache import KVQuantization, PrefixStore
from afmoe_mlx.generation import DraftModel
from helpers.tiny import ARCHITECTURES, tiny_folder

PROMPT = "hello to the world, hello to the world, hello to"
SAMPLED = {"temperature": 1.5, "seed": 3, "xtc_probability": 0.3, "repetition_penalty": 1.1, "top_p": 0.9}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    model, tokenizer = load(tiny_folder(tmp_path_factory.mktemp("model") / "m", request.param, head_dim=32))
    tokenizer.eos_token_ids = frozenset()
    return model, tokenizer


def in_threads(items: Iterator[Any]) -> list[Any]:
    """All items, each asked for in a thread of its own."""
    found: list[Any] = []
    failed: list[BaseException] = []

    def one() -> None:
        try:
            found.append(next(items))
        except BaseException as error:
            failed.append(error)

    while not failed:
        thread = Thread(target=one)
        thread.start()
        thread.join()
    assert isinstance(failed[0], StopIteration), failed[0]
    return found


WAYS = ["plain", "prompt lookup", "draft model", "store", "kv bits", "short chunks"]


@pytest.mark.parametrize(
    ("way", "sampling"), [("plain", {"temperature": 0}), *((way, SAMPLED) for way in WAYS)], ids=str
)
def test_each_token_may_be_asked_for_in_a_thread_of_its_own(loaded: Any, way: str, sampling: dict[str, Any]) -> None:
    model, tokenizer = loaded
    store = PrefixStore(model, block_size=16) if way == "store" else None
    options: dict[str, Any] = {"max_tokens": 14, "store": store, **sampling}
    options |= {"prompt lookup": {"prompt_lookup": 4}, "short chunks": {"prefill_step_size": 5}}.get(way, {})
    if way == "draft model":
        options["draft_model"] = DraftModel(model)
    model.kv_quantization = KVQuantization(8, group_size=32) if way == "kv bits" else None
    try:
        expected = [chunk.token for chunk in stream_generate(model, tokenizer, PROMPT, **options)]
        for _ in range(2 if store is not None else 1):  # from what the first answer has left, too
            chunks = in_threads(stream_generate(model, tokenizer, PROMPT, **options))
            assert [chunk.token for chunk in chunks] == expected
            assert all(chunk.logprobs.max().item() <= 0 for chunk in chunks)
    finally:
        model.kv_quantization = None
