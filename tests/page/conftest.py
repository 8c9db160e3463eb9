"""The real server's app and page, a model that says what a test wants, and Chromium."""

import os
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from afmoe_mlx.server.http.app import App
from afmoe_mlx.server.http.settings import Settings
from afmoe_mlx.server.page.page import read_page
from afmoe_mlx.server.protocols import ENDPOINTS
from helpers.asking import PATIENCE
from helpers.live_service import LiveService
from helpers.served_app import ServedApp
from helpers.tab import Tab

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="package")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Browser"]:
    """Ended after this folder's tests: while it runs, no other event loop does in this thread."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    playwright.expect.set_options(timeout=PATIENCE * 1000)
    own = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path_factory.mktemp("chromium"))}
    with (
        playwright.sync_playwright() as driver,
        driver.chromium.launch(executable_path=CHROMIUM, env=own) as browser,
    ):
        yield browser


@pytest.fixture
def model() -> LiveService:
    return LiveService()


@pytest.fixture
def settings() -> Settings:
    return Settings()


@pytest.fixture
def server(model: LiveService, settings: Settings) -> Iterator[ServedApp]:
    with ServedApp(App(model, ENDPOINTS, settings, page=read_page())) as served:
        yield served


@pytest.fixture
def look() -> dict[str, Any]:
    """How a test's context differs: its size, its colours."""
    return {}


@pytest.fixture
def open_tab(browser: "Browser", server: ServedApp, look: dict[str, Any]) -> Iterator[Callable[[], Tab]]:
    """Opens tabs of one browser profile, which is new."""
    tabs: list[Tab] = []
    with browser.new_context(**look) as context:
        context.set_default_timeout(PATIENCE * 1000)

        def open_one() -> Tab:
            tabs.append(Tab(context, server.url))
            return tabs[-1]

        yield open_one
    for tab in tabs:
        tab.check()


@pytest.fixture
def tab(open_tab: Callable[[], Tab]) -> Tab:
    return open_tab()
