"""The real server's app and page, a model that says what a test wants, and Chromium."""

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

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


@pytest.fixture(scope="package")
def served() -> Iterator[tuple[LiveService, ServedApp]]:
    model = LiveService()
    with ServedApp(App(model, ENDPOINTS, Settings(), page=read_page())) as server:
        yield model, server


@pytest.fixture(scope="package")
def first_tab(browser: "Browser", served: tuple[LiveService, ServedApp]) -> Iterator[Tab]:
    """One for all tests, since a browser takes more time to open a page than a test to use it."""
    with browser.new_context() as context:
        context.set_default_timeout(PATIENCE * 1000)
        yield Tab(context, served[1].url)


@pytest.fixture
def model(served: tuple[LiveService, ServedApp]) -> Iterator[LiveService]:
    """What the test makes the page's model say."""
    yield served[0]
    served[0].reset()


@pytest.fixture
def server(served: tuple[LiveService, ServedApp]) -> ServedApp:
    return served[1]


@pytest.fixture
def tab(first_tab: Tab, model: LiveService) -> Iterator[Tab]:
    """The page as who opens it for the first time has it."""
    yield first_tab
    model.reset()
    first_tab.clear()
    first_tab.check()
