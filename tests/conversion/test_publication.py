"""A converted model goes to the Hub with a card that says what it is, and what fails leaves it where it was."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import metadata_load

from afmoe_mlx import convert, load_model, upload
from afmoe_mlx.calibration import Calibration
from afmoe_mlx.checkpoint.files import find_weights, read_config_json, read_headers
from afmoe_mlx.checkpoint.hub import resolve
from afmoe_mlx.conversion.model_card import bits_per_weight, formats_of, read_metadata, write_model_card
from afmoe_mlx.conversion.publication import check_upload
from afmoe_mlx.conversion.source import open_source
from afmoe_mlx.errors import CheckpointError, ConfigError, HubError
from afmoe_mlx.evaluation import evaluate
from helpers.command_line import invoke
from helpers.hub_server import REPO, FakeHub, use_hub
from helpers.tiny import tiny_folder

TARGET = "someone/tiny-4bit"
WIDE = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64}
QUALITY = {"perplexity": 12.34567, "kl_mean": 0.01, "kl_p99": 0.25, "top1_agreement": 0.98765, "expert_overlap": None}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    from huggingface_hub import close_session

    monkeypatch.setattr("afmoe_mlx.checkpoint.shards.PAUSES", ())
    with FakeHub(tmp_path / "served") as server:
        use_hub(monkeypatch, server.url, tmp_path / "home")
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server
        close_session()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("plain") / "model", **WIDE)


@pytest.fixture
def model(plain: Path, tmp_path: Path) -> Path:
    return convert(plain, tmp_path / "converted")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def card(folder: Path, **changes: Any) -> str:
    write_model_card(folder, TARGET, **{"source": REPO, "commit": "abc123"} | changes)
    return (folder / "README.md").read_text()


def test_what_is_uploaded_is_what_was_made(hub: FakeHub, model: Path) -> None:
    address = upload(model, TARGET)
    assert address == f"{hub.url}/{TARGET}"
    assert {name: body for name, body in hub.content(TARGET).items() if name != ".gitattributes"} == contents(model)


def test_a_conversion_may_upload_what_it_has_made(hub: FakeHub, plain: Path, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="expected owner/name"):
        convert(plain, tmp_path / "none", upload_repo="tiny")
    assert not (tmp_path / "none").exists()
    folder = convert(plain, tmp_path / "some", recipe="mixed_4_6", upload_repo=TARGET)
    uploaded = hub.content(TARGET)
    assert {name: body for name, body in uploaded.items() if name != ".gitattributes"} == contents(folder)
    assert b"`mixed_4_6`" in uploaded["README.md"]


def test_what_was_uploaded_loads(hub: FakeHub, model: Path) -> None:
    upload(model, TARGET)
    assert load_model(TARGET)[1] == load_model(model)[1]


def test_a_second_upload_sends_no_weights_again(hub: FakeHub, model: Path) -> None:
    upload(model, TARGET)
    hub.requests.clear()
    upload(model, TARGET)
    assert [item for item in hub.requests if item.method == "PUT"] == []


def test_an_upload_that_breaks_off_keeps_the_folder_and_says_how_to_go_on(hub: FakeHub, model: Path) -> None:
    card(model, source=None, commit=None)
    before = contents(model)
    hub.failing = {"/lfs/": 403}
    with pytest.raises(HubError, match=rf"answered 403.*hf upload {TARGET} {model} \.") as error:
        upload(model, TARGET)
    assert "\n" not in str(error.value)
    assert contents(model) == before
    hub.failing = {}
    upload(model, TARGET)
    assert hub.content(TARGET).keys() >= before.keys()


def test_who_is_not_logged_in_is_told_to_and_keeps_the_folder(
    hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=rf"answered 401: run `hf auth login`\).*hf upload {TARGET} {model} \.") as error:
        upload(model, TARGET)
    assert "\n" not in str(error.value)


def test_what_cannot_be_uploaded_is_one_line_and_gets_no_card(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="expected owner/name"):
        upload(model, "tiny")
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises((CheckpointError, ConfigError)) as error:
            upload(folder, TARGET)
        assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("README.md"))
    assert hub.refs == {}


def test_from_python_the_card_says_what_was_given(hub: FakeHub, plain: Path, tmp_path: Path) -> None:
    commit = hub.add(REPO, contents(plain) | {"README.md": CARD})
    calibrate = Calibration(text=tmp_path / "mine.txt", tokens=40)
    (tmp_path / "mine.txt").write_text("A text to calibrate a model with. " * 3)
    folder = convert(REPO, tmp_path / "out", recipe="mixed_4_6", calibrate=calibrate)
    quality = evaluate(folder, reference=REPO, max_tokens=64).to_json()
    address = upload(folder, TARGET, source=REPO, recipe="mixed_4_6", calibrate=calibrate, quality=quality)
    assert address == f"{hub.url}/{TARGET}"
    text = hub.content(TARGET)["README.md"].decode()
    for words in (f"base_model: {REPO}", commit, "license: mit", "`mixed_4_6`", "gptq, 40 tokens of mine.txt"):
        assert words in text
    assert f"{quality['kl_mean']:.5f}" in text
    assert str(tmp_path) not in text


def test_an_upload_without_a_network_is_one_line(hub: FakeHub, model: Path) -> None:
    hub.stop()
    with pytest.raises(HubError, match=rf"ConnectError.*hf upload {TARGET}") as error:
        upload(model, TARGET)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("repo", "token", "words"),
    [
        (TARGET, None, "not logged in: run `hf auth login`"),
        (TARGET, "hf_expired", "refuses the token"),
        ("another/tiny", "hf_secret", "logged in as someone: expected someone or our-org as owner"),
        ("tiny", "hf_secret", "expected owner/name"),
        ("a/b/c", "hf_secret", "expected owner/name"),
        ("someone/two words", "hf_secret", "expected owner/name"),
    ],
)
def test_who_may_not_upload_learns_it_beforehand(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, repo: str, token: str | None, words: str
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=words) as error:
        check_upload(repo)
    assert "\n" not in str(error.value)
    assert hub.refs == {}


@pytest.mark.parametrize("status", [401, 429, 500])
def test_a_hub_in_trouble_is_one_line_beforehand(hub: FakeHub, status: int) -> None:
    hub.failing = {"whoami": status}
    with pytest.raises(HubError, match="token" if status == 401 else str(status)):
        check_upload(TARGET)


def test_a_token_that_may_only_read_is_one_line_beforehand(hub: FakeHub) -> None:
    hub.role = "read"
    with pytest.raises(HubError, match="the token may only read: run `hf auth login`"):
        check_upload(TARGET)


def test_without_a_network_nothing_begins(hub: FakeHub) -> None:
    hub.stop()
    with pytest.raises(HubError, match=f"cannot upload to {TARGET}: the connection failed"):
        check_upload(TARGET)


def test_who_may_upload_passes(hub: FakeHub) -> None:
    check_upload(TARGET)
    check_upload(TARGET.capitalize())
    check_upload("our-org/tiny")
    assert hub.refs == {}


def test_a_card_says_what_was_made_of_what_and_how(model: Path) -> None:
    text = card(model, recipe="4bit", calibration="awq, 4096 tokens")
    for words in (REPO, "`abc123`", "`4bit`", "4 bits in groups of 64", "awq, 4096 tokens", "Bits per weight", TARGET):
        assert words in text
    metadata = metadata_load(model / "README.md")
    assert metadata == {
        "base_model": REPO,
        "base_model_relation": "quantized",
        "library_name": "mlx",
        "pipeline_tag": "text-generation",
        "tags": ["mlx", "afmoe-mlx", "afmoe"],
    }


def test_a_card_names_what_was_merged_and_is_then_of_a_finetune(model: Path) -> None:
    text = card(model, adapters=["facts", "style"])
    assert "| Adapter | `facts`, `style` |" in text
    assert "with an adapter merged" in text
    assert (metadata_load(model / "README.md") or {})["base_model_relation"] == "finetune"


def test_a_card_carries_the_sources_license_language_and_tags(model: Path) -> None:
    inherited = {"license": "apache-2.0", "language": ["en", "de"], "tags": ["moe", "mlx"], "base_model": "x/y"}
    card(model, inherited=inherited | {"widget": [{"text": "hi"}], "license_name": "a\nb: c", "license_link": 7})
    metadata = metadata_load(model / "README.md")
    assert metadata is not None
    assert (metadata["license"], metadata["language"]) == ("apache-2.0", ["en", "de"])
    assert metadata["tags"] == ["mlx", "afmoe-mlx", "afmoe", "moe"]
    assert metadata["base_model"] == REPO
    assert metadata.keys().isdisjoint({"widget", "license_name", "license_link"})


def test_a_card_of_a_local_model_names_no_repository(model: Path) -> None:
    text = card(model, source=None, commit=None)
    assert "local checkpoint" in text
    assert "Source revision" not in text
    assert "base_model" not in (metadata_load(model / "README.md") or {})


def test_a_card_has_the_figures_of_an_evaluation(model: Path) -> None:
    text = card(model, quality=QUALITY)
    for words in ("| Perplexity | 12.3457 |", "0.01000", "98.77%", "99th percentile | 0.25000"):
        assert words in text
    assert "experts" not in text
    assert "## Quality" not in card(model)


def test_what_is_no_evaluation_is_refused(model: Path) -> None:
    with pytest.raises(HubError, match="none of perplexity"):
        card(model, quality={"loss": 1.0})


def test_a_card_is_the_same_for_the_same_model(plain: Path, tmp_path: Path) -> None:
    cards = {card(convert(plain, tmp_path / name), quality=QUALITY) for name in ("a", "b")}
    assert len(cards) == 1


@pytest.mark.parametrize(
    "options",
    [{"bits": 4}, {"bits": 8, "group_size": 32}, {"mode": "mxfp4"}, {"quantize": False}, {"recipe": "mixed_4_6"}],
)
def test_bits_per_weight_count_everything_stored(plain: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    folder = convert(plain, tmp_path / "out", **options)
    weights = sum(tensor.size for tensor in _arrays(plain).values())
    stored = sum(tensor.nbytes for tensor in _arrays(folder).values())
    headers = read_headers(find_weights(folder))
    formats = formats_of(headers, read_config_json(folder).get("quantization") or {})
    assert bits_per_weight(headers, formats) == pytest.approx(8 * stored / weights)


def _arrays(folder: Path) -> dict[str, Any]:
    import mlx.core as mx

    return {name: array for path in find_weights(folder) for name, array in mx.load(str(path)).items()}


def test_a_mixed_recipe_is_told_in_words(plain: Path, tmp_path: Path) -> None:
    text = card(convert(plain, tmp_path / "out", recipe="mixed_4_6"))
    assert re.search(r"[46] bits in groups of 64 \(\d\d%\); [46] bits in groups of 64 \(\d\d%\)", text)
    assert "not quantized" in card(convert(plain, tmp_path / "plain", quantize=False))


CARD = b"---\nlicense: mit\ntags: [moe]\n---\n# Tiny\n"


def test_the_sources_card_is_read_from_the_hub_or_the_folder(hub: FakeHub, plain: Path, tmp_path: Path) -> None:
    hub.add(REPO, contents(plain) | {"README.md": CARD})
    path = open_source(REPO).card()
    assert path is not None
    assert read_metadata(path) == {"license": "mit", "tags": ["moe"]}
    assert open_source(resolve(REPO)).card() == path
    hub.add(REPO, contents(plain))
    assert open_source(REPO).card() is None
    assert open_source(plain).card() is None


@pytest.mark.parametrize(
    "text", ["", "# none", "---\n- a\n---\n", "---\na: [\n---\n", "---\n!!python/name:os.system\n---\n"]
)
def test_a_card_that_cannot_be_read_gives_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert read_metadata(tmp_path / "README.md") == {}
    assert read_metadata(tmp_path / "none.md") == {}


def test_the_command_uploads_what_it_made_with_a_card_of_what_it_made_it_from(
    hub: FakeHub, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afmoe_mlx.evaluation.evaluate", partial(evaluate, max_tokens=64))
    commit = hub.add(REPO, contents(plain) | {"README.md": CARD})
    arguments = ["convert", "--hf-path", REPO, "--mlx-path", str(tmp_path / "out"), "-q", "--upload-repo", TARGET]
    done = invoke([*arguments, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["uploaded_to"] == f"{hub.url}/{TARGET}"
    assert hub.content(TARGET).items() >= contents(tmp_path / "out").items()
    text = hub.content(TARGET)["README.md"].decode()
    for words in (
        f"base_model: {REPO}",
        commit,
        "license: mit",
        "4 bits in groups of 64",
        "KL divergence",
        "Perplexity",
    ):
        assert words in text
    assert str(tmp_path) not in text


def test_the_command_converts_nothing_that_it_may_not_upload(hub: FakeHub, plain: Path, tmp_path: Path) -> None:
    arguments = ["convert", "--hf-path", str(plain), "--mlx-path", str(tmp_path / "out"), "-q", "--upload-repo", "a/b"]
    done = invoke(arguments)
    assert done.exit_code == 1
    assert done.stderr == "error: cannot upload to a/b: logged in as someone: expected someone or our-org as owner\n"
    assert not (tmp_path / "out").exists()


def test_a_folder_of_the_hub_cache_knows_its_repository(hub: FakeHub, plain: Path) -> None:
    commit = hub.add(REPO, contents(plain))
    source = open_source(resolve(REPO))
    assert (source.origin, source.commit) == (REPO, commit)
    assert (open_source(plain).origin, open_source(plain).commit) == (None, None)
