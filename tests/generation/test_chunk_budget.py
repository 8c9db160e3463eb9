"""How much of a prompt is read between steps follows what that is felt to take."""

from afmoe_mlx.generation.chunk_budget import ChunkBudget


def test_a_budget_follows_what_chunks_are_felt_to_take() -> None:
    now = 0.0
    budget = ChunkBudget(0.1, lambda: now)
    for started_tokens, seconds in [(0, 1), (0, 1), (128, 1), (128, 1), (128, 1.256), (128, 1.256)]:
        now += seconds
        budget.read(started_tokens)
    assert budget.tokens == 32  # 2 ms a token
    for _ in range(30):
        now += 1 + 0.0001 * 128
        budget.read(128)
    assert 570 <= budget.tokens <= 600


def test_a_budget_takes_no_chunk_for_quicker_than_it_is_however_soon_it_is_felt() -> None:
    now = 0.0
    budget = ChunkBudget(0.1, lambda: now)
    for _ in range(3):
        for started_tokens in (0, 0, 0, 0, 64, 64, 64, 64):
            now += 1 + 0.0005 * started_tokens  # at once
            budget.read(started_tokens)
            assert budget.tokens <= 128
    assert budget.tokens >= 64
