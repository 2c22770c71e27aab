"""The dashboard in a real Chromium, before a real `gateway serve`."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.policies.keys import key_hash
from tests.dashboard.serving import DOWN, WELL, Service

pytestmark = pytest.mark.slow

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
LOOKS = [(size, theme) for size in (WIDE, PHONE) for theme in ("light", "dark")]
ADMIN, ALICE = "ak-of-the-admin", "sk-of-alice"
WAIT_MS = 15_000


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser for all tests of this file: its driver's event loop must end with them."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        # Containers have no user namespaces for its sandbox; only our own page is opened.
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page, and what went wrong in it."""

    def __init__(self, page: Any, url: str) -> None:
        self.page = page
        self.errors: list[str] = []
        self.foreign: list[str] = []
        page.set_default_timeout(WAIT_MS)
        page.add_init_script(path=Path(__file__).with_name("looking.js"))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on(
            "console", lambda said: self.errors.append(said.text) if said.type == "error" else 0
        )
        page.on("request", self._requested)
        self._url = url
        page.goto(url)

    def _requested(self, request: Any) -> None:
        if not request.url.startswith(self._url):
            self.foreign.append(request.url)

    def live(self) -> Any:
        """The page, once figures come in."""
        self.page.wait_for_selector('#link[data-state="live"]')
        return self.page

    def mode(self, name: str) -> Any:
        return self.page.locator(f'.rung[data-mode="{name}"]')

    def mode_is(self, name: str, phase: str) -> None:
        self.page.wait_for_selector(f'.rung[data-mode="{name}"][data-phase="{phase}"]')

    def says(self, where: str, text: str) -> None:
        self.page.locator(where, has_text=text).first.wait_for()

    def assert_clean(self) -> None:
        assert self.errors == []
        assert self.foreign == []
        assert self.page.evaluate("looking.violations") == []


Look = Callable[..., Visit]


@pytest.fixture
def look(chromium: Any) -> Iterator[Look]:
    """Opens a service's dashboard in a fresh browser profile."""
    with ExitStack() as stack:

        def opened(service: Service, size: dict[str, int] = WIDE, theme: str = "light") -> Visit:
            context = chromium.new_context(
                viewport=size, color_scheme=theme, reduced_motion="reduce"
            )
            stack.callback(context.close)
            return Visit(context.new_page(), service.url)

        yield opened


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[str], Service]]:
    with ExitStack() as stack:
        yield lambda config: stack.enter_context(Service(config, tmp_path))


@pytest.fixture(scope="module")
def outage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Creative is down and has been asked; every mode has answered somebody."""
    with Service(DOWN, tmp_path_factory.mktemp("outage")) as service:
        service.ask("creative", 6)
        service.ask("balanced", 3)
        service.ask("fast", 3)
        yield service


# -- how it stands --------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "theme"), LOOKS)
def test_in_an_outage_the_page_is_clean_readable_and_fits(
    outage: Service, look: Look, size: dict[str, int], theme: str
) -> None:
    visit = look(outage, size, theme)
    page = visit.live()
    visit.mode_is("creative", "open")
    page.click("#try-send")
    page.wait_for_selector(".rating")
    visit.assert_clean()
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert page.evaluate("looking.overflowing()") == []
    assert page.evaluate("looking.lowContrast()") == []
    assert page.evaluate("looking.nameless()") == []
    assert page.evaluate("looking.small()") == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 18, 17)"
    assert dark == (theme == "dark")


def test_an_outage_shows_who_is_open_until_when_and_who_answers(
    outage: Service, look: Look
) -> None:
    visit = look(outage)
    page = visit.live()
    outage.ask("creative", 2)
    creative = visit.mode("creative")
    visit.mode_is("creative", "open")
    assert page.inner_text("h1") == "Creative is out, balanced answers for it."
    assert creative.locator(".word").inner_text() == "open"
    assert creative.locator(".says").inner_text() == "balanced answers for it"
    assert creative.locator(".facts").inner_text().split()[:4] == ["cache", "TTL", "300", "s"]
    assert visit.mode("fast").locator(".word").inner_text() == "closed"
    visit.says(".flow-words", "creative → balanced")
    visit.says("#events", "creative opened after 3 failures: no connection; balanced answers")
    count = creative.locator(".count")
    before = count.inner_text()
    assert re.fullmatch(r"back in [2-5]:\d\d", before)
    page.wait_for_function(
        "([node, before]) => node.textContent !== before", arg=[count.element_handle(), before]
    )
    assert count.inner_text() < before  # the clock runs down


def test_with_nothing_to_show_it_says_so(serve: Any, look: Look) -> None:
    page = look(serve(WELL)).live()
    assert page.inner_text("h1") == "Every mode answers for itself."
    assert "No requests in this time" in page.inner_text("#flow")
    assert "Nothing has happened yet" in page.inner_text("#events")
    assert "no ratings" in page.inner_text("#ladder")


def test_the_theme_is_the_systems_until_another_is_chosen_and_then_stays(
    outage: Service, look: Look
) -> None:
    page = look(outage, theme="light").live()
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.click("#theme")  # light
    page.click("#theme")  # dark
    assert page.evaluate(background) != light
    page.reload()
    assert page.evaluate(background) != light
    page.click("#theme")  # the system's again
    assert page.evaluate(background) == light


def test_a_keyboard_gets_everywhere(outage: Service, look: Look) -> None:
    page = look(outage).live()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    seen = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        outline = page.evaluate(
            "getComputedStyle(document.activeElement.matches('input[type=radio]')"
            " ? document.activeElement.nextElementSibling : document.activeElement).outlineStyle"
        )
        assert outline != "none" or page.evaluate("document.activeElement === document.body")
    assert {"theme", "auto", "open", "closed", "prompt", "try-send", "events"} <= seen


def test_several_workers_are_shown_as_one_service(serve: Any, look: Look) -> None:
    service = serve(f"{WELL}workers = 2\n")
    service.ask("fast", 8)  # each on a connection of its own: both workers get some
    visit = look(service)
    visit.live()
    visit.says("#config", "2 workers")
    visit.says("#flow", "asked 8 ×")
    visit.mode("balanced").get_by_role("button").filter(has_text="open").click()
    visit.mode_is("balanced", "forced_open")
    visit.says("#events", "balanced was forced open by an operator; fast answers")
    assert visit.page.locator("#events li").count() == 1


# -- what one can do ------------------------------------------------------------------------------


def test_a_mode_is_moved_by_hand_and_given_back(serve: Any, look: Look) -> None:
    visit = look(serve(WELL))
    visit.live()
    buttons = visit.mode("fast").get_by_role("button")
    buttons.filter(has_text="open").click()
    visit.mode_is("fast", "forced_open")
    visit.says("#events", "fast was forced open by an operator")
    visit.says("h1", "Fast is out, nobody answers for it.")
    buttons.filter(has_text="auto").click()
    visit.mode_is("fast", "recovering")
    buttons.filter(has_text="closed").click()
    visit.mode_is("fast", "forced_closed")
    visit.assert_clean()


def test_moving_a_mode_takes_the_admin_key_where_there_is_one(serve: Any, look: Look) -> None:
    visit = look(serve(f'{WELL}admin_key_hash = "{key_hash(ADMIN)}"\n'))
    page = visit.live()
    to_open = visit.mode("creative").get_by_role("button").filter(has_text="open")
    to_open.click()
    page.fill("#key", "not the key")
    page.keyboard.press("Enter")
    visit.says(".rung .problem", "API key")
    assert visit.mode("creative").get_attribute("data-phase") == "closed"
    to_open.click()
    page.click("#keys-cancel")
    visit.says(".rung .problem", "not moved")
    to_open.click()
    page.fill("#key", ADMIN)
    page.keyboard.press("Enter")
    visit.mode_is("creative", "forced_open")
    visit.mode("creative").get_by_role("button").filter(has_text="auto").click()  # asked only once
    visit.mode_is("creative", "recovering")
    assert ADMIN not in page.evaluate("JSON.stringify({...localStorage}) + document.cookie")
    page.click("#forget")
    assert page.evaluate("sessionStorage.length") == 0
    assert visit.foreign == []


def test_where_keys_are_configured_the_page_asks_for_one(serve: Any, look: Look) -> None:
    hashed = f'[keys.alice]\nhash = "{key_hash(ALICE)}"\n'
    visit = look(serve(f"{WELL}{hashed}"))
    visit.says("#keys", "These figures take an API key.")
    assert visit.page.inner_text("#ladder") == ""
    visit.page.keyboard.press("Escape")  # rather not
    assert visit.page.inner_text("#link") == "needs a key"
    visit.page.click("#retry")
    visit.page.fill("#key", ALICE)
    visit.page.keyboard.press("Enter")
    page = visit.live()
    page.click("#try-send")
    page.wait_for_selector(".rating")
    page.click(".stars button:nth-child(5)")
    visit.says(".rating", "5 of 5, kept")
    page.reload()
    visit.live()


def test_a_prompt_streams_says_who_answered_and_is_rated(outage: Service, look: Look) -> None:
    visit = look(outage)
    page = visit.live()
    page.fill("#prompt", "Describe the smell of rain.")
    page.uncheck("#try-cache")
    page.evaluate("""() => {
      window.lengths = [];
      const answer = document.getElementById("answer");
      const look = () => window.lengths.push(answer.querySelector(".text")?.textContent.length);
      new MutationObserver(look).observe(answer, { childList: true, subtree: true });
    }""")
    page.press("#prompt", "Control+Enter")
    page.wait_for_selector(".rating")
    growing = sorted({length for length in page.evaluate("window.lengths") if length})
    assert len(growing) > 5  # piece by piece
    answer = page.inner_text("#answer")
    assert "degraded" in answer
    assert "balanced answered for creative: its circuit is open" in answer
    assert "24 tokens" in answer
    assert re.search(r"first token [\d.]+ m?s · whole answer [\d.]+ s", answer)
    page.click(".stars button:nth-child(2)")
    visit.says(".rating", "2 of 5, kept")
    visit.says('.rung[data-mode="balanced"] .facts', "2.0 of 5")
    page.check('#try-modes input[value="fast"]', force=True)
    page.click("#try-send")
    visit.says("#answer", "fast answered")
    visit.assert_clean()


def test_an_answer_under_way_can_be_stopped(outage: Service, look: Look) -> None:
    visit = look(outage)
    page = visit.live()
    page.fill("#prompt", "Stop me.")
    page.click("#try-send")
    page.wait_for_function("() => document.querySelector('#answer .text')?.textContent")
    page.click("#try-stop")
    visit.says("#answer", "stopped")
    assert page.is_visible("#try-send")


# -- coming and going -----------------------------------------------------------------------------


def test_it_says_that_it_is_disconnected_and_comes_back_by_itself(serve: Any, look: Look) -> None:
    service = serve(WELL)
    visit = look(service)
    page = visit.live()
    service.ask("fast", 2)
    visit.says(".flow-words", "fast → fast 100 %")
    status, took_s = service.stop()
    assert status == 0
    assert took_s < 5  # an open page does not hold it up
    page.wait_for_selector('#link[data-state="lost"]')
    assert "disconnected" in page.inner_text("#link")
    visit.says("#headline-more", "as of")
    service.start()
    visit.live()
    visit.says("#flow", "No requests in this time")  # a new process, a new count
    assert page.inner_text("#headline-more") == ""


def test_one_may_ask_it_to_try_again_at_once(serve: Any, look: Look) -> None:
    service = serve(WELL)
    visit = look(service)
    page = visit.live()
    service.stop()
    page.wait_for_selector('#link[data-state="lost"]')
    service.start()
    page.evaluate("document.getElementById('retry').click()")  # it may be back by now
    visit.live()
    assert not page.is_visible("#retry")


def test_what_an_upstream_or_an_operator_says_stays_text(serve: Any, look: Look) -> None:
    name = "<img src=x onerror=document.title='owned'>"
    config = WELL.replace('"qwen3.8-flash"', json.dumps(name))
    visit = look(serve(config))
    page = visit.live()
    page.check('#try-modes input[value="fast"]', force=True)
    page.click("#try-send")
    page.wait_for_selector(".rating")
    assert name in page.inner_text("#answer")
    assert page.locator("#answer img, #ladder img").count() == 0
    visit.assert_clean()
