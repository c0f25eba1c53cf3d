"""The playground in a real browser, with a tiny student of random weights."""

import base64
import io
import os
import shlex
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from browsers import chromium
from PIL import Image

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
PATIENCE = 240_000  # milliseconds: a program may have to be compiled
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"},
    "PYTHONPATH": str(ROOT),
    "HTTP_PROXY": "http://127.0.0.1:9",  # where nobody is: nothing may be asked for there
    "HTTPS_PROXY": "http://127.0.0.1:9",
}
# Of what is drawn: another picture than the one that was there.
CHANGED = (
    "([id, old]) => { const i = document.querySelector(`#${id} img`); return i && i.src != old }"
)


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def server(exported, teachers, tmp_path_factory):
    """The address of a playground, whose process ends without a traceback at Ctrl-C."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "slam_jax", "playground", "--model", exported, "--port"]
    command += [str(port), "--prompt", "a cat", "--steps", "2", "--teacher", teachers["sd15"]]
    command += ["--teacher-steps", "2"]
    folder = tmp_path_factory.mktemp("playground")
    log = folder / "stderr"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what starts the tests may ignore it
    address = f"http://127.0.0.1:{port}/"
    environment = {**ENVIRONMENT, "TMPDIR": str(folder)}
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        try:
            said = process.stdout.readline()
            assert said == f"open {address}; Ctrl-C ends it\n", log.read_text()
            yield address
            assert process.poll() is None
            before = log.read_text()
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
            assert (process.stdout.read(), log.read_text()) == ("", before)
            assert not list(folder.glob("slam_jax_uploads_*"))
        finally:
            process.kill()


@pytest.fixture
def open_page(browser, server):
    """() -> the page with its first picture; what it asks for is its own server's."""
    pages, foreign = [], []

    def opened():
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        pages.append(page)
        page.on("request", lambda request: foreign.append(request.url))
        page.goto(server)
        page.wait_for_selector("#student img")
        return page

    yield opened
    for page in pages:
        page.close()
    assert [url for url in foreign if not url.startswith((server, "data:", "blob:"))] == []


def source(page, name="student"):
    return page.get_attribute(f"#{name} img", "src")


def after(page, act, name="student"):
    """The picture that follows an act."""
    images = page.locator(f"#{name} img")
    old = source(page, name) if images.count() else None
    act()
    page.wait_for_function(CHANGED, arg=[name, old])
    return source(page, name)


def typed(page, text):
    return lambda: page.fill("#prompt textarea", text)


def moved(page, slider, to):
    return lambda: page.fill(f"#{slider} input[type=number]", str(to))


def pixels(src):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(src.split(",")[1]))))


def settled(page, command):
    """Waits for the line of what was asked for."""
    page.wait_for_function(
        "text => document.querySelector('#student-command textarea').value.includes(text)",
        arg=command,
    )


def test_the_picture_follows_prompt_and_sliders_and_the_command_draws_it(open_page, tmp_path):
    page = open_page()
    seen = [source(page)]
    seen.append(after(page, typed(page, "a dog")))
    seen.append(after(page, moved(page, "steps", 1)))
    seen.append(after(page, moved(page, "seed", 7)))
    settled(page, "--seed 7")
    assert len(set(seen)) == 4
    assert page.inner_text("#student-said").endswith(" ms for 1 step")
    line = page.input_value("#student-command textarea")
    program, *words = shlex.split(line)
    assert program == "slam-jax" and "a dog" in words
    subprocess.run(
        [sys.executable, "-m", "slam_jax", *words], cwd=tmp_path, env=ENVIRONMENT, check=True
    )
    expected = np.asarray(Image.open(tmp_path / "picture.png"))
    np.testing.assert_array_equal(pixels(seen[-1]), expected)


def test_a_number_is_written_anew_and_reset(open_page):
    page = open_page()
    first = source(page)
    number = page.locator("#seed input[type=number]")
    number.fill("")
    number.press_sequentially("12")
    settled(page, "--seed 12 ")
    assert source(page) != first
    page.click("#seed button")
    settled(page, "--seed 0 ")
    assert source(page) == first and page.locator(".toast-body").count() == 0


def test_letter_by_letter_ends_with_what_was_typed(open_page):
    page = open_page()
    page.fill("#prompt textarea", "")
    page.locator("#prompt textarea").press_sequentially("a long prompt about a cat and a dog")
    settled(page, "'a long prompt about a cat and a dog'")


def test_an_upload_is_gone_on_from_and_a_broken_one_is_a_line(open_page, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    (tmp_path / "broken.png").write_text("no picture")
    page = open_page()
    before = source(page)
    upload = page.locator("#image input[type=file]")
    after(page, lambda: upload.set_input_files(tmp_path / "noise.png"))
    settled(page, "--image noise.png --strength 0.6")
    page.locator("#image button[aria-label='Clear']").click()
    settled(page, "--seed 0 --out")
    assert source(page) == before
    upload.set_input_files(tmp_path / "broken.png")
    page.wait_for_function(
        "document.querySelector('#student-said').innerText.startsWith('broken.png: cannot be read')"
    )
    assert page.locator("#student img").count() == 0
    page.locator("#image button[aria-label='Clear']").click()
    page.wait_for_selector("#student img")
    assert source(page) == before


def test_the_teacher_draws_beside_when_it_is_asked(open_page):
    page = open_page()
    assert page.locator("#teacher img").count() == 0
    first = after(page, lambda: page.check("#wanted input"), "teacher")
    second = after(page, typed(page, "a dog"), "teacher")
    assert first != second
    page.uncheck("#wanted input")
    page.wait_for_selector("#teacher img", state="detached")


def test_two_clients_draw_at_once_what_one_draws_alone(open_page):
    pages = [open_page(), open_page()]
    prompts = ["a red house", "a blue house"]
    alone = [after(pages[0], typed(pages[0], prompt)) for prompt in prompts]
    after(pages[0], typed(pages[0], "a cat"))
    for page, prompt in zip(pages, prompts, strict=True):
        page.fill("#prompt textarea", prompt)
    for page, prompt in zip(pages, prompts, strict=True):
        settled(page, f"'{prompt}'")
    assert [source(page) for page in pages] == alone


def student_function(client, server):
    """The number of what draws the student's picture."""
    functions = client.get(f"{server}config").json()["dependencies"]
    return next(found["id"] for found in functions if len(found["inputs"]) == 5)


def test_what_dies_or_is_no_request_leaves_it_alive(open_page, server):
    """A client that leaves while it is drawn for, and requests that no page makes."""
    import httpx

    page = open_page()
    page.fill("#prompt textarea", "somebody leaves")
    page.close()
    join = f"{server}gradio_api/queue/join"
    with httpx.Client(trust_env=False) as client:
        number = student_function(client, server)
        bad = {"data": [{"no": "text"}, 10**9, "x", {"path": "/etc/passwd"}, None]}
        for data in (bad, {"data": []}):
            client.post(join, json={**data, "fn_index": number, "session_hash": "bad"})
    settled(open_page(), "--prompt 'a cat'")


def test_more_requests_than_may_wait_are_refused(server, open_page):
    import httpx

    def ask(number):
        join = f"{server}gradio_api/queue/join"
        data = [f"prompt {number}", 1, 0, None, 0.6]
        with httpx.Client(trust_env=False, timeout=60) as client:
            index = student_function(client, server)
            body = {"data": data, "fn_index": index, "session_hash": f"many{number}"}
            return client.post(join, json=body).status_code

    with ThreadPoolExecutor(20) as pool:
        codes = list(pool.map(ask, range(60)))
    assert set(codes) == {200, 503}
    open_page()
