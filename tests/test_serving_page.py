"""The page in a real browser, against a server of its three paths that runs the real classifier."""

import base64
import json
import re
import shutil
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from threading import Thread

import pytest
from networks import FASHION, network
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait
from served import serving

from sdzoo.checkpoints import load_model
from sdzoo.export import write_onnx
from sdzoo.runtime import Classifier
from sdzoo.samples import FASHION_MNIST
from sdzoo.serving.image import decode_image
from sdzoo.serving.protocol import ProtocolError, error_body

PAGE = files("sdzoo.serving").joinpath("page.html").read_text()
BAG = FASHION_MNIST / "bag" / "00018.png"
BOOT = FASHION_MNIST / "ankle_boot" / "00000.png"
TOKEN = "open sesame"
PATIENCE = 30  # seconds that the browser may take to show something

# Makes a file of bytes in base64 and drops it on the page, as a desktop would.
DROP = """
const [name, bytes] = arguments, transfer = new DataTransfer();
transfer.items.add(new File([Uint8Array.from(atob(bytes), each => each.charCodeAt(0))], name));
document.querySelector("main").dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true}));
"""


class Server(ThreadingHTTPServer):
    """Answers the page's three paths with real classifiers; asks for a token if it has one."""

    def __init__(self, classifiers: dict[tuple[str, str], Classifier], token: str = "") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.classifiers, self.token = classifiers, token
        Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def answer(self, body: bytes, status: int = 200, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def admitted(self) -> bool:
        if self.server.token and self.headers["Authorization"] != f"Bearer {self.server.token}":
            self.answer(error_body("a token is needed"), 401)
            return False
        return True

    def do_GET(self) -> None:
        if self.path == "/":
            self.answer(PAGE.encode(), kind="text/html; charset=utf-8")
        elif self.admitted():
            models = [{"name": name, "version": version} for name, version in self.server.classifiers]
            self.answer(json.dumps({"models": models}).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.admitted():
            return
        match = re.fullmatch(r"/v2/models/(.+)/versions/(.+)/classify", self.path)
        name, version = match.groups() if match else ("", "")
        classifier = self.server.classifiers[name.replace("%20", " "), version]
        try:
            logits = classifier.run(decode_image(body, classifier))
        except ProtocolError as error:
            self.answer(error_body(str(error)), error.status)
            return
        (prediction,) = classifier.predictions(logits)
        facts = {"model_name": name, "model_version": version, "label": prediction.label}
        self.answer(json.dumps({**facts, "probabilities": prediction.probabilities}).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Classifier]:
    folder = tmp_path_factory.mktemp("page")
    for seed in (0, 1):
        write_onnx(network(cfg=FASHION, seed=seed), folder / f"{seed}.onnx")
    return {
        ("first", "1"): Classifier(folder / "0.onnx", "cpu"),
        ("a second", "7"): Classifier(folder / "1.onnx", "cpu"),
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("install a browser and its driver: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = Chrome(options, ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture
def server(classifiers: dict[tuple[str, str], Classifier]) -> Iterator[Server]:
    with Server(classifiers) as server:
        yield server
        server.shutdown()


def text(browser: Chrome, name: str) -> str:
    return browser.find_element(By.ID, name).text


def wait_for(browser: Chrome, name: str, part: str) -> None:
    """Wait until an element shows a text."""
    WebDriverWait(browser, PATIENCE).until(lambda _: part in text(browser, name), f"{name} never shows {part!r}")


def opened(browser: Chrome, server: Server) -> None:
    browser.get(server.url)
    wait_for(browser, "status", "No picture yet.")


def choose(browser: Chrome, file: Path) -> None:
    browser.find_element(By.ID, "file").send_keys(str(file))


def shows(browser: Chrome, classifier: Classifier, picture: Path) -> None:
    """Check labels, percentages and bars against the classifier itself: the five largest, in order."""
    ((prediction,), rows) = classifier([picture]), browser.find_elements(By.CSS_SELECTOR, "#labels li")
    largest = list(prediction.probabilities.items())[:5]
    assert len(rows) == len(largest) == 5
    for row, (label, probability) in zip(rows, largest, strict=True):
        assert row.text.splitlines() == [label, f"{100 * probability:.1f} %"]
        width = row.find_element(By.CSS_SELECTOR, ".track div").get_attribute("style")
        assert f"width: {100 * probability:.1f}".removesuffix(".0") in width


def test_a_chosen_picture_shows_its_labels(
    browser: Chrome, server: Server, classifiers: dict[tuple[str, str], Classifier]
) -> None:
    opened(browser, server)
    choose(browser, BAG)
    wait_for(browser, "status", "first, version 1: ")
    shows(browser, classifiers["first", "1"], BAG)
    assert browser.find_element(By.ID, "picture").is_displayed()
    choose(browser, BOOT)
    wait_for(browser, "hint", BOOT.name)
    wait_for(browser, "status", "first, version 1: ")
    shows(browser, classifiers["first", "1"], BOOT)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []  # such as CSP's


def test_a_dropped_picture_and_another_model(
    browser: Chrome, server: Server, classifiers: dict[tuple[str, str], Classifier]
) -> None:
    opened(browser, server)
    browser.execute_script(DROP, BAG.name, base64.b64encode(BAG.read_bytes()).decode())
    wait_for(browser, "status", "first, version 1: ")
    choice = Select(browser.find_element(By.ID, "model"))
    assert [option.text for option in choice.options] == ["first, version 1", "a second, version 7"]
    choice.select_by_index(1)
    wait_for(browser, "status", "version 7: ")
    shows(browser, classifiers["a second", "7"], BAG)


def test_the_servers_reason_is_shown_and_the_page_goes_on(browser: Chrome, server: Server, tmp_path: Path) -> None:
    opened(browser, server)
    choose(browser, BAG)
    wait_for(browser, "status", "first, version 1: ")
    (tmp_path / "notes.txt").write_text("<b>no picture</b>")
    choose(browser, tmp_path / "notes.txt")
    wait_for(browser, "error", "the 17 bytes are not an image, must be PNG")
    assert text(browser, "labels") == "" and not browser.find_element(By.ID, "picture").is_displayed()
    choose(browser, BAG)
    wait_for(browser, "status", "first, version 1: ")
    assert text(browser, "error") == ""


@pytest.mark.slow
def test_the_real_server_answers_the_page(browser: Chrome, tmp_path: Path) -> None:
    write_onnx(load_model("sd_resnet20.fashion_mnist"), tmp_path / "model.onnx")
    with serving(tmp_path, tmp_path / "model.onnx") as real:
        browser.get(f"http://{real.host}/")
        wait_for(browser, "status", "No picture yet.")
        for picture in (BAG, BOOT):
            choose(browser, picture)
            wait_for(browser, "hint", picture.name)
            wait_for(browser, "status", "sd_resnet20.fashion_mnist, version 1: ")
            shows(browser, Classifier(tmp_path / "model.onnx", "cpu"), picture)
        choose(browser, tmp_path / "model.onnx")
        wait_for(browser, "error", "are not an image, must be PNG")
    assert [entry for entry in browser.get_log("browser") if "Content Security Policy" in entry["message"]] == []


def test_a_server_out_of_reach_is_said(browser: Chrome, server: Server) -> None:
    opened(browser, server)
    network = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", {**network, "offline": True})
    choose(browser, BAG)
    wait_for(browser, "error", "The server does not answer.")
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", {**network, "offline": False})
    choose(browser, BAG)
    wait_for(browser, "status", "first, version 1: ")


def test_a_token_is_asked_for_where_the_server_needs_it(
    browser: Chrome, classifiers: dict[tuple[str, str], Classifier]
) -> None:
    with Server(classifiers, TOKEN) as server:
        browser.get(server.url)
        wait_for(browser, "error", "a token is needed")
        browser.find_element(By.ID, "token").send_keys(TOKEN + "\n")
        wait_for(browser, "status", "No picture yet.")
        choose(browser, BAG)
        wait_for(browser, "status", "first, version 1: ")
        shows(browser, classifiers["first", "1"], BAG)
        server.shutdown()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_their_ground(scheme: str, browser: Chrome, server: Server) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    opened(browser, server)
    style = "return getComputedStyle(document.documentElement).getPropertyValue(arguments[0])"
    pairs = [(text, ground) for text in ("--ink", "--quiet") for ground in ("--ground", "--card")]
    luminances = {}
    for pair in [*pairs, ("--bad", "--bad-ground")]:
        first, second = (luminance(browser.execute_script(style, name)) for name in pair)
        luminances[pair] = first > second
        assert contrast(first, second) >= 4.5, pair  # WCAG 2.2, level AA
    assert set(luminances.values()) == {scheme == "dark"}


def luminance(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb, as WCAG defines it."""
    digits = colour.strip().removeprefix("#")
    digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: float, second: float) -> float:
    return (max(first, second) + 0.05) / (min(first, second) + 0.05)


def test_a_narrow_screen_needs_no_sideways_scrolling(browser: Chrome, server: Server) -> None:
    size = {"width": 320, "height": 640, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    opened(browser, server)
    choose(browser, BAG)
    wait_for(browser, "status", "first, version 1: ")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 320
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_page_takes_nothing_from_elsewhere_and_runs_its_own_script_alone() -> None:
    assert not re.search(r"https?:|//[a-z]|@import|\son\w+=|\sstyle=", PAGE.replace("javascript", ""))
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
        digest = base64.b64encode(sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in PAGE, f"the {tag} changed: write its digest into the policy"


def test_every_control_has_a_label() -> None:
    controls = re.findall(r"<(?:input|select)[^>]*>", PAGE)
    assert len(controls) == 3
    labelled = "".join(re.findall(r"<label.*?</label>", PAGE, re.DOTALL))
    assert all(control in labelled for control in controls) and '<html lang="en">' in PAGE
