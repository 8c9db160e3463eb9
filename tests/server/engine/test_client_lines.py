"""Lines that clients change from session to session are no part of a prompt; nothing else is left out."""

from typing import Any

import pytest

from afmoe_mlx.server.engine.client_lines import without_client_lines

LINE = "x-anthropic-billing-header: cc_version=2.1.33.{}; cc_entrypoint=cli; cch={};"
USER = {"role": "user", "content": LINE}


def parts(*texts: str) -> list[Any]:
    return [{"type": "text", "text": text} for text in texts]


@pytest.mark.parametrize(
    ("content", "left"),
    [
        (LINE, None),
        (f"{LINE}\nBe brief.", "Be brief."),
        (f"{LINE}\n\nBe brief.\n", "Be brief.\n"),
        (f"Be brief.\n{LINE}\nBe kind.", "Be brief.\nBe kind."),
        (parts(LINE, "Be brief."), parts("Be brief.")),
        (parts(LINE), None),
        (f"Never say {LINE}", f"Never say {LINE}"),
        (None, None),
        ([*parts("x"), {"type": "image"}], [*parts("x"), {"type": "image"}]),
    ],
)
@pytest.mark.parametrize("role", ["system", "developer"])
def test_they_are_left_out_of_system_messages(role: str, content: Any, left: Any) -> None:
    message = {"role": role, "content": content, "name": "n"}
    found = without_client_lines([message, USER])
    if left is None and content is not None:
        assert found == [USER]
    else:
        assert found == [message | {"content": left}, USER]
