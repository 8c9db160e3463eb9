"""`afmoe-mlx serve`: what is typed or kept in config.toml, and what the server makes of it."""

import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from afmoe_mlx.command_line import browser
from afmoe_mlx.command_line.configuration import configuration_file
from afmoe_mlx.command_line.requests.serving import ServeRequest, byte_size, duration
from afmoe_mlx.commands import serve
from afmoe_mlx.server.http.settings import Settings
from helpers.command_line import run


def _raises(error: Exception) -> Callable[[str], bool]:
    def raising(address: str) -> bool:
        raise error

    return raising


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Those with which a server would begin to listen."""
    found: list[Settings] = []

    def bind(settings: Settings) -> None:
        found.append(settings)
        raise SystemExit(0)

    monkeypatch.setattr(serve, "bind", bind)
    monkeypatch.delenv("AFMOE_MLX_API_KEY", raising=False)
    return found


def test_nothing_typed_is_loopback_without_a_key(settings: list[Settings]) -> None:
    assert run("serve").code == 0
    assert settings == [Settings(port=8080)]
    assert settings[0].is_local


def test_options_reach_the_server(settings: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFMOE_MLX_API_KEY", "three, four")
    typed = "--host 0.0.0.0 --port 0 --api-key one --api-key two --cors-origin https://a.example --max-body 1kb"
    typed += " --read-timeout 1.5 --write-timeout 2s --idle-timeout 1m --grace 1h --log-json --ignore-unknown"
    assert run("serve", *typed.split(), "--any-model-name", "--insecure").code == 0
    assert settings == [
        Settings(
            host="0.0.0.0",
            keys=("one", "two", "three", "four"),
            insecure=True,
            cors_origins=("https://a.example",),
            max_body=1000,
            read_timeout=1.5,
            write_timeout=2,
            idle_timeout=60,
            grace=3600,
            log_json=True,
            ignore_unknown=True,
            any_model_name=True,
        )
    ]


def test_a_preset_may_have_them(settings: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file = configuration_file()
    file.parent.mkdir(parents=True)
    file.write_text(
        '[presets.lan]\nhost = "0.0.0.0"\napi-key = ["a"]\nmax-body = "2MB"\ngrace = 5\nread-timeout = "1m"\n'
    )
    assert run("serve", "--preset", "lan", "--grace", "6").code == 0
    expected = Settings(host="0.0.0.0", port=8080, keys=("a",), max_body=2_000_000, grace=6, read_timeout=60)
    assert settings == [expected]
    file.write_text("[presets.lan]\ngrace = true\n")
    assert "expected seconds" in run("serve", "--preset", "lan").err


@pytest.mark.parametrize(
    ("given", "size"), [("500000", 500_000), (7, 7), ("32MB", 32_000_000), ("1 kb", 1000), ("2GiB", 2 << 30)]
)
def test_sizes(given: Any, size: int) -> None:
    assert byte_size(given) == size


@pytest.mark.parametrize(("given", "seconds"), [("30", 30), (2.5, 2.5), ("30s", 30), ("10m", 600), ("1.5h", 5400)])
def test_times(given: Any, seconds: float) -> None:
    assert duration(given) == seconds


@pytest.mark.parametrize("read", [byte_size, duration])
@pytest.mark.parametrize("given", ["", "0", "-1", "many", "5 parsecs", "1e3", "nan", "10%"])
def test_what_is_neither(read: Any, given: str) -> None:
    with pytest.raises(typer.BadParameter):
        read(given)


def test_a_folder_is_called_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Tiny-4bit").mkdir()
    monkeypatch.chdir(tmp_path / "Tiny-4bit")
    for model in (str(tmp_path / "Tiny-4bit"), f"{tmp_path}/Tiny-4bit/", ".", "../Tiny-4bit"):
        assert serve.served_name(model) == "Tiny-4bit"
    assert [serve.served_name(model) for model in ("owner/name", "demo", "trinity-nano")] == [
        "owner/name",
        "demo",
        "trinity-nano",
    ]


def test_options_that_need_another_are_refused() -> None:
    with pytest.raises(typer.BadParameter, match="--kv-bits"):
        ServeRequest(kv_group_size=64)


def test_what_opens_the_page_and_what_leaves_it_out_contradict_each_other() -> None:
    with pytest.raises(typer.BadParameter, match="--no-page"):
        ServeRequest(open=True, no_page=True)


@pytest.mark.parametrize(
    ("address", "opened"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://0.0.0.0:81", "http://localhost:81"),
        ("http://[::]:81", "http://localhost:81"),
        ("http://[::1]:81", "http://[::1]:81"),
    ],
)
def test_the_page_is_opened_where_a_browser_finds_it(
    address: str, opened: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    monkeypatch.setattr(webbrowser, "open", found.append)
    monkeypatch.setenv("BROWSER", "any")
    browser.open_page(address).join()
    assert found == [opened]


@pytest.mark.parametrize("opens", [lambda address: False, _raises(webbrowser.Error("none"))])
@pytest.mark.parametrize("display", ["", ":0"])
def test_without_a_browser_a_line_says_where_the_page_is(
    opens: Any, display: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(webbrowser, "open", opens if display else pytest.fail)
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("BROWSER", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", display)
    browser.open_page("http://127.0.0.1:8080").join()
    assert capsys.readouterr().err == "--open: there is no browser here: open http://127.0.0.1:8080\n"
