"""The report in a real browser: it loads by itself, and its sliders show other pictures."""

import pytest
from browsers import chromium
from report_runs import make_workdir

from slam_jax.reporting.page import write_page

pytestmark = pytest.mark.browser
# Whether each chart has the size of its place, which Chart.js gives it some frames later, and was
# drawn in it.
LAID_OUT = """() => [...document.querySelectorAll('[data-chart] canvas')].every(canvas => {
    const chart = Chart.getChart(canvas), place = canvas.parentNode;
    return Math.abs(chart.width - place.clientWidth) <= 1 // both are rounded
        && Math.abs(chart.height - place.clientHeight) <= 1
        && new Set(canvas.getContext('2d')
            .getImageData(0, 0, canvas.width, canvas.height).data).size > 10;
})"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def opened(browser, tmp_path):
    """(size, changes of the run) -> the page, and a list of what went wrong in it and of what it
    asked for."""
    pages = []

    def open_page(viewport=(1200, 900), scheme="light", **changes):
        path = write_page(make_workdir(tmp_path / f"run{len(pages)}", **changes))
        width, height = viewport
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        pages.append(page)
        trouble = []
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda request: trouble.append(request.url[:100]))
        page.goto(path.as_uri())
        page.wait_for_selector("#pairs[data-shown]")
        page.wait_for_function(LAID_OUT)
        own = [path.as_uri()]
        return page, lambda: [t for t in trouble if t not in own and not t.startswith("data:")]

    yield open_page
    for page in pages:
        page.close()


def student_pixels(page):
    return page.evaluate("[...document.querySelectorAll('canvas.student')].map(c => c.toDataURL())")


def test_each_slider_shows_other_pictures(opened):
    page, trouble = opened()
    assert page.inner_text("#student-name") == "student, 4 steps, after 400 training steps"
    seen = [student_pixels(page)]
    for slider, to, name in (
        ("#step", 0, "student, 4 steps, after 100 training steps"),
        ("#count", 0, "student, 1 step, after 100 training steps"),
    ):
        page.locator(slider).fill(str(to))
        steps = "100 4" if slider == "#step" else "100 1"
        page.wait_for_selector(f"#pairs[data-shown='{steps}']")
        assert page.inner_text("#student-name") == name
        seen.append(student_pixels(page))
    assert len(seen[0]) == 3 and len({tuple(pixels) for pixels in seen}) == 3
    assert trouble() == []


def test_the_pixels_are_those_of_the_files(opened, tmp_path):
    """In the second of three pictures by the teacher."""
    import numpy as np
    from PIL import Image

    page, _ = opened()
    shown = page.evaluate(
        "[...document.querySelectorAll('canvas.teacher')[1].getContext('2d')"
        ".getImageData(0, 0, 8, 8).data]"
    )
    with Image.open(tmp_path / "run0/samples/step_000400/teacher_50.webp") as strip:
        expected = np.asarray(strip.convert("RGBA"))[:, 8:16]
    np.testing.assert_array_equal(np.reshape(shown, (8, 8, 4)), expected)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("size", [(8, 8), (96, 128)])
def test_it_fits_every_screen_and_draws_its_curves(opened, scheme, width, size):
    page, trouble = opened((width, 800), scheme, size=size)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("[data-chart] canvas").count() == 6
    assert trouble() == []


def test_a_click_on_a_name_hides_its_curve(opened):
    page, trouble = opened()
    chart = "Chart.getChart(document.querySelectorAll('[data-chart] canvas')[1])"
    x, y = page.evaluate(
        f"(() => {{ const box = {chart}.legend.legendHitBoxes[0];"
        "return [box.left + box.width / 2, box.top + box.height / 2] })()"
    )
    assert page.evaluate(f"{chart}.isDatasetVisible(0)")
    # Which waits until the canvas stands still.
    page.locator("[data-chart] canvas").nth(1).click(position={"x": x, "y": y})
    # A function: the page's policy forbids the eval that an expression costs at each look.
    page.wait_for_function(f"() => !{chart}.isDatasetVisible(0)")
    assert trouble() == []
