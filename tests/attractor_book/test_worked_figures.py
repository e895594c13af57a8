"""Worked figures: what they say as text, that their HTML stands alone, and, in a browser, that
their controls work.
"""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from attractor_book.worked_figures import (
    WorkedFigure,
    WorkedLandscape,
    WorkedReading,
    WorkedText,
    scale,
    spins,
)
from attractor_lib.model import AttractorNetwork

STARTS, GAMMAS, TIMES = ["a <7>", "a & b", "noise"], [0.0, 0.5], [0, 1, 2, 5, 10]
HEIGHT, WIDTH = 4, 3


def figure(name="worked-test", **changes):
    """Distinct sizes on every axis; every frame and every value of the first curve is different."""
    n = len(STARTS) * len(GAMMAS) * len(TIMES)
    given = dict(
        name=name,
        controls={"start": STARTS, "γ": GAMMAS, "t": TIMES},
        along="t",
        images={
            "state": (np.arange(n) / (n + 1)).reshape(3, 2, 5, 1, 1) * np.ones((HEIGHT, WIDTH)),
            "its start": np.arange(3).reshape(3, 1, 1, 1, 1) / 2 * np.ones((HEIGHT, WIDTH)),
        },
        curves={
            "overlap": 1 - np.arange(n).reshape(3, 2, 5) / 100,
            "null": np.full((1, 1, 1), 0.7),
        },
        ylabel="m(t)",
        alt='Overlap <falls> "slowly".',
        start={"γ": 1},
    )
    return WorkedFigure(**{**given, **changes})


def data(html):
    return json.loads(
        re.search(
            r'<script type="application/json" class="worked-data">(.*?)</script>', html
        ).group(1)
    )


def points(text):
    return [tuple(map(float, point.split(","))) for point in text.split()]


def lines(html):
    return [points(text) for text in re.findall(r'<polyline [^>]*points="([^"]+)"', html)]


def sheets(html):
    return [
        Image.open(io.BytesIO(base64.b64decode(url)))
        for url in re.findall(r'href="data:image/png;base64,([^"]+)"', html)
    ]


def test_text_names_controls_images_and_curves_and_no_address():
    assert repr(figure()) == (
        "WorkedFigure worked-test\n"
        "  controls  start: 3 from a <7> to noise; γ: 2 from 0 to 0.5; t: 5 from 0 to 10\n"
        "  images    state; its start\n  curves    overlap; null, against t"
    )
    assert figure()._repr_html_() == figure()._repr_html_()


def test_html_needs_nothing_from_elsewhere_and_escapes_what_it_is_given():
    html = figure()._repr_html_()
    assert not re.search(r'(src|href)="(?!data:image/png;base64,)|@import|url\(|fetch\(|http', html)
    assert 'aria-label="Overlap &lt;falls&gt; &#34;slowly&#34;."' in html
    assert "a <7>" not in html and data(html)["texts"][0] == STARTS


def test_every_frame_lies_in_the_sheet_where_the_page_looks_for_it():
    worked = figure()
    html = worked._repr_html_()
    for array, image, sheet in zip(worked.images.values(), data(html)["images"], sheets(html)):
        frames = array.reshape(-1, HEIGHT, WIDTH)
        for k, frame in enumerate(frames):
            x, y = k % image["columns"] * WIDTH, k // image["columns"] * HEIGHT
            shown = np.asarray(sheet.crop((x, y, x + WIDTH, y + HEIGHT))) / 255
            assert np.abs(shown - frame).max() < 0.02
        assert (image["width"], image["height"]) == (WIDTH, HEIGHT)
    shape = f'style="aspect-ratio: {WIDTH} / {HEIGHT}"'  # or its neighbours in the sheet are seen
    assert html.count(shape) == len(worked.images)


def test_curves_of_large_values_have_no_decimals():
    large = figure(curves={"count": 20_000 + np.arange(30.0).reshape(3, 2, 5)})
    assert data(large._repr_html_())["decimals"] == 0


def test_the_still_shows_the_start_of_every_control():
    html = figure()._repr_html_()  # start 0, gamma 1, t 0: frame 5
    columns = data(html)["images"][0]["columns"]
    assert f'viewBox="{5 % columns * WIDTH} {5 // columns * HEIGHT} {WIDTH} {HEIGHT}"' in html
    assert re.findall(r'worked-number">([^<]*)<', html) == ["0.950", "0.700"]
    first, flat = (np.array(line) for line in lines(html))
    assert (
        np.allclose(np.diff(first[:, 0]), 28 * np.diff(TIMES), atol=0.11)
        and (first[:, 0] == flat[:, 0]).all()
    )
    steps = np.diff(first[:, 1])
    assert (
        steps[0] > 0 and np.allclose(steps, steps[0], atol=0.11) and not np.diff(flat[:, 1]).any()
    )  # falls by 0.01 each time


def test_scale_maps_the_ends_and_its_ticks():
    place, ticks = scale([0, 40], 100, 300)
    assert (place(0), place(40)) == (100, 300) and ticks == [
        (100, "0"),
        (150, "10"),
        (200, "20"),
        (250, "30"),
        (300, "40"),
    ]
    place, ticks = scale([0.33, 0.97], 200, 0, widen=True)
    assert (
        ticks[0] == (200, "0.3")
        and ticks[-1] == (0, "1")
        and scale([-2, 2], 0, 1)[1][0] == (0, "−2")
    )
    assert "0" in [text for _, text in scale([-0.55, 0.55], 0, 1, widen=True)[1]]


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(along="time"), "along and start must name controls"),
        (dict(start={"beta": 0}), "along and start must name controls"),
        (
            dict(images={"state": np.zeros((3, 5, 2, 4, 3))}),
            r"images 'state' must have leading axes \(3, 2, 5\)",
        ),
        (dict(images={"state": np.zeros((3, 2, 5, 4))}), "images 'state' must have leading axes"),
        (
            dict(images={"state": np.full((3, 2, 5, 4, 3), 1.1)}),
            "images 'state' must hold finite numbers from 0 to 1",
        ),
        (dict(curves={"m": np.zeros((3, 2))}), "curves 'm' must have leading axes"),
        (dict(curves={"m": np.full((3, 2, 5), np.nan)}), "curves 'm' must hold finite numbers"),
        (dict(curves={}), "curves must be from 1 to 4, got 0"),
        (dict(along="start"), "start must have two numbers at least, that rise"),
        (dict(controls={"start": STARTS, "γ": GAMMAS, "t": [0, 1, 1, 2, 3]}), "t must have two"),
        (dict(controls={"start": STARTS, "γ": GAMMAS, "t": [0, 1, 2, 3, np.inf]}), "t must have"),
        (dict(start={"γ": -1}), "start of γ must be from 0 to 1, got -1"),
        (dict(start={"γ": 0.5}), "start of γ must be from 0 to 1, got 0.5"),
        (dict(curves={str(n): np.zeros((3, 2, 5)) for n in range(5)}), "from 1 to 4, got 5"),
    ],
)
def test_refuses_what_it_cannot_show(changes, message):
    with pytest.raises(ValueError, match=message):
        figure(**changes)


@pytest.fixture
def page(browser, tmp_path):
    """Two figures on one page, offline; an error in the console or a request fails the test."""
    file = tmp_path / "page.html"
    file.write_text(
        f'<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"{figure()._repr_html_()}{figure('worked-other')._repr_html_()}",
        encoding="utf-8",
    )
    context = browser.new_context(offline=True, viewport={"width": 390, "height": 800})
    page, troubles = context.new_page(), []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on(
        "request",
        lambda request: request.url.startswith(("file:", "data:")) or troubles.append(request.url),
    )
    page.goto(file.as_uri())
    yield page
    context.close()
    assert not troubles


def shown(page, name="worked-test"):
    """What a reader sees of a figure: the grey of its image, the numbers, the place of the mark,
    the text at the slider.
    """
    worked = page.locator(f"#{name}")
    image = Image.open(io.BytesIO(worked.locator(".worked-image svg").first.screenshot()))
    grey = np.asarray(image.convert("L"))[20:-20, 20:-20]
    assert grey.min() == grey.max()  # one frame of the sheet, and nothing of its neighbours
    return {
        "grey": int(grey[0, 0]),
        "numbers": worked.locator(".worked-number").all_inner_texts(),
        "mark": float(worked.locator("circle").first.get_attribute("cx")),
        "t": worked.locator("label", has_text="t").locator("span").last.inner_text(),
    }


def stop_the_clock(page):
    page.clock.install(time=0)
    page.reload()
    page.clock.pause_at(100_000)


def test_a_slider_moves_images_numbers_and_marks_of_its_own_figure_only(page):
    before, other = shown(page), shown(page, "worked-other")
    assert abs(before["grey"] - 255 * 5 / 31) < 5  # start 0, gamma 1, t 0: frame 5 of 30
    slider = page.locator("#worked-test input[type=range]").last
    slider.focus()
    slider.press("ArrowRight")
    slider.press("ArrowRight")
    after = shown(page)
    assert abs(after["grey"] - 255 * 7 / 31) < 5 and after["grey"] > before["grey"]
    assert (
        after["numbers"] == ["0.930", "0.700"]
        and after["t"] == "2"
        and after["mark"] > before["mark"]
    )
    assert slider.get_attribute("aria-valuetext") == "2" and shown(page, "worked-other") == other


def test_the_script_draws_at_first_what_the_still_shows(page):
    drawn = page.evaluate(
        "[...document.querySelectorAll('#worked-test polyline')]"
        ".map(line => line.getAttribute('points'))"
    )
    assert [points(line) for line in drawn] == lines(figure()._repr_html_()) and shown(page)[
        "numbers"
    ] == ["0.950", "0.700"]


def test_the_other_controls_redraw_the_curve_and_keep_the_time(page):
    line = page.locator("#worked-test polyline").first
    before = line.get_attribute("points")
    page.locator("#worked-test select").select_option(label="noise")
    changed = shown(page)  # start 2, gamma 1, t 0: frame 25
    assert changed["numbers"] == ["0.750", "0.700"] and abs(changed["grey"] - 255 * 25 / 31) < 5
    assert line.get_attribute("points") != before and changed["t"] == "0"
    page.locator("#worked-test input[type=range]").first.press("Home")
    assert shown(page)["numbers"][0] == "0.800"


def test_play_advances_to_the_end_and_stops_and_starts_only_when_asked(page):
    stop_the_clock(page)
    page.clock.run_for(5000)
    assert shown(page)["t"] == "0"
    play = page.get_by_role("button", name="Play").first
    play.click()
    page.clock.run_for(300)
    assert (
        shown(page)["t"] == "1"
        and page.locator("#worked-test button", has_text="Pause").count() == 1
    )
    page.clock.run_for(5000)
    assert (
        shown(page)["t"] == "10"
        and page.locator("#worked-test button", has_text="Play").count() == 1
    )
    page.locator(
        "#worked-test button", has_text="Play"
    ).click()  # from the beginning again, and pause
    page.clock.run_for(300)
    page.locator("#worked-test button", has_text="Pause").click()
    page.clock.run_for(5000)
    assert shown(page)["t"] == "1"


def test_step_and_back_move_by_one_from_the_keyboard_and_stop_at_the_ends(page):
    for name, t in (("Step", "1"), ("Step", "2"), ("Back", "1"), ("Back", "0"), ("Back", "0")):
        page.locator("#worked-test").get_by_role("button", name=name).press("Enter")
        assert shown(page)["t"] == t


def test_play_is_slow_where_motion_is_to_be_reduced(page):
    page.emulate_media(reduced_motion="reduce")
    stop_the_clock(page)
    page.get_by_role("button", name="Play").first.click()
    page.clock.run_for(900)
    assert shown(page)["t"] == "0"
    page.clock.run_for(200)
    assert shown(page)["t"] == "1"


def test_works_when_it_is_put_into_the_page_later_as_a_notebook_does(page):
    page.evaluate(
        """html => {
        const host = document.body.appendChild(document.createElement("div"));
        host.innerHTML = html;
        for (const dead of host.querySelectorAll("script")) {  // those in innerHTML do not run
            const script = document.createElement("script");
            for (const {name, value} of dead.attributes) script.setAttribute(name, value);
            script.textContent = dead.textContent;
            dead.replaceWith(script);
        }
    }""",
        figure("worked-late")._repr_html_(),
    )
    page.locator("#worked-late").get_by_role("button", name="Step").click()
    assert shown(page, "worked-late")["t"] == "1" and shown(page)["t"] == "0"


def test_fits_a_phone_and_prints_without_controls(page):
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    controls = page.locator("#worked-test .worked-controls")
    assert controls.is_visible()
    page.emulate_media(media="print")
    assert not controls.is_visible() and page.locator("#worked-test polyline").first.is_visible()


def test_colours_follow_the_theme(page):
    colour = "getComputedStyle(document.querySelector('#worked-test text')).fill"
    page.add_style_tag(
        content=":root { --pst-color-text-base: rgb(1, 2, 3);"
        " --pst-color-background: rgb(4, 5, 6); }"
    )
    assert page.evaluate(colour) == "rgb(1, 2, 3)"
    assert (
        page.evaluate("getComputedStyle(document.querySelector('#worked-test')).backgroundColor")
        == "rgb(4, 5, 6)"
    )


def test_without_scripts_it_is_a_still_that_says_so(browser, tmp_path):
    file = tmp_path / "still.html"
    file.write_text(
        f'<!doctype html><meta charset="utf-8">{figure()._repr_html_()}', encoding="utf-8"
    )
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(file.as_uri())
    assert (
        not page.locator(".worked-controls").is_visible()
        and page.get_by_text("moving it needs JavaScript").is_visible()
    )
    assert (
        page.locator("polyline").count() == 2
        and page.locator(".worked-image svg").first.is_visible()
    )
    page.context.close()


def worked_text(**changes):
    """A text for each combination, with what HTML would take for its own."""
    given = {
        "name": "text-test",
        "controls": {"begins": ["A: <b>", "B"], "temperature": [0, 0.5, 1]},
        "texts": {(p, t): (p, f" & {t}\n</script>") for p in ["A: <b>", "B"] for t in [0, 0.5, 1]},
        "alt": "What is written.",
        "start": {"temperature": 2},
    }
    return WorkedText(**{**given, **changes})


def test_a_text_shows_what_its_lists_stand_at():
    html = worked_text()._repr_html_()
    assert "<b>A: &lt;b&gt;</b> &amp; 1\n&lt;/script&gt;</pre>" in html
    assert html.count("</script>") == 2 and html.count("<select>") == 2
    assert html.count("<option") == 5 and 'value="2" selected>1' in html
    found = re.search(r'<script type="application/json">(.*?)</script>', html).group(1)
    assert json.loads(found)["texts"][4] == ["B", " & 0.5\n</script>"]
    assert repr(worked_text()) == "WorkedText text-test\n  controls  begins: 2; temperature: 3"


def test_a_text_for_every_combination():
    texts = {**worked_text().texts, ("C", 0): ("C", "")}
    with pytest.raises(ValueError, match="all 6 combinations of the controls, got 7, of which 1"):
        worked_text(texts=texts)


def test_a_text_follows_its_lists_in_a_browser(browser, tmp_path):
    file = tmp_path / "text.html"
    head = '<!doctype html><meta charset="utf-8">'
    file.write_text(head + worked_text()._repr_html_(), encoding="utf-8")
    page = browser.new_context(offline=True, viewport={"width": 390, "height": 800}).new_page()
    page.goto(file.as_uri())
    box = page.locator("pre")
    assert box.inner_text() == "A: <b> & 1\n</script>"
    page.get_by_label("begins").select_option("B")
    page.get_by_label("temperature").select_option("0.5")
    assert box.inner_text() == "B & 0.5\n</script>"
    assert box.locator("b").inner_text() == "B"
    page.context.close()


MESSAGES = np.array([[-0.9, 1.0], [0.1, -1.4], [0.5, 0.2]])


def landscape(**changes):
    given = {"messages": MESSAGES, "betas": [6.0, 0.5], "alt": "An <energy>.", "start": 40}
    return WorkedLandscape("landscape-test", **{**given, **changes})


def test_a_landscape_is_the_networks_energy_below_its_tangent_bound():
    network = AttractorNetwork(4, 2, beta=6.0).double()
    network.couplings.J.zero_()
    x = torch.zeros(361, 4, 2, dtype=torch.float64)
    x[:, 1:, 0] = 1  # the other spins, which the couplings turn into the messages
    network.couplings.J[0, 0, 1:, :, 0] = torch.from_numpy(MESSAGES)
    angles = np.arange(-180, 181)
    x[:, 0] = torch.from_numpy(spins(angles))
    energies = network.local_energies(x)[:, 0].numpy()
    assert np.allclose(landscape().energy(angles, 6.0), energies, atol=1e-12)
    assert np.allclose(landscape().field(40, 6.0), network.field(x)[40 + 180, 0], atol=1e-12)
    bound = landscape().bound(angles, 40, 6.0)
    assert (bound >= energies - 1e-12).all() and np.isclose(bound[220], energies[220])
    update = network.update(x)[220, 0]
    assert np.allclose(spins(angles[bound.argmin()]), update, atol=0.01)  # half a degree


def test_refuses_messages_out_of_the_plane_and_a_beta_below_zero():
    with pytest.raises(ValueError, match=r"messages must be \(N - 1, 2\), got \(2, 3\)"):
        landscape(messages=np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"betas must be positive, got \[1, -1\]"):
        landscape(betas=[1, -1])


def test_the_spin_is_dragged_and_updated_in_a_browser(browser, tmp_path):
    file = tmp_path / "landscape.html"
    file.write_text('<!doctype html><meta charset="utf-8">' + landscape()._repr_html_())
    page = browser.new_context(offline=True, viewport={"width": 600, "height": 800}).new_page()
    troubles = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(file.as_uri())
    still, live = lines(landscape()._repr_html_()), lines(page.content())
    assert np.allclose(still, live, atol=0.11)

    def mark(name):
        found = page.locator(f"[data-mark={name}]")
        return [float(found.get_attribute(side)) for side in ("cx", "cy")]

    ring = mark("update")
    page.get_by_role("button", name="Update").click()
    assert np.allclose(mark("spin"), ring, atol=0.6)  # the slider goes by degrees
    box = page.locator("[data-drag]").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 60)
    page.mouse.up()
    dragged = mark("spin")
    assert dragged[0] < ring[0] and page.locator("input").input_value() != "40"
    page.get_by_label("inverse temperature").select_option("0.5")
    assert mark("spin")[0] == dragged[0] and mark("spin")[1] != dragged[1]
    assert not troubles
    page.context.close()


def reading(**changes):
    """Five letters, two heads; what is heard of letter j from i is a different number each time."""
    near = np.tril(np.ones((5, 5)), -1) * (1 + np.arange(25).reshape(5, 5)) / 30
    given = {
        "letters": "a <b\n",
        "attention": {"1": near, "2": near**2},
        "guesses": [{" ": 0.5, "b": 0.25}] * 5,
        "alt": "What is heard.",
        "start": 3,
    }
    return WorkedReading("reading-test", **{**given, **changes})


def test_a_reading_shades_the_letters_by_the_root_of_attention():
    html = reading()._repr_html_()
    shades = json.loads(re.search(r'class="worked-data">(.*?)</script>', html).group(1))[
        "attention"
    ]
    near = reading().attention["1"]
    for i in range(1, 5):
        read = [(int(digit, 36) / 35) ** 2 for digit in shades[0][i - 1]]
        assert np.allclose(read, near[i, :i], atol=2 / 35)
    assert "expected: \u2423 0.50, b 0.25; comes: b" in html and html.count("<option") == 2
    assert repr(reading()).startswith("WorkedReading reading-test\n  5 letters")


def test_a_reading_refuses_attention_that_is_none():
    with pytest.raises(
        ValueError, match=r"attention '1' must be \(5, 5\) in \[0, 1\], got \(4, 5\)"
    ):
        reading(attention={"1": np.zeros((4, 5))})
    with pytest.raises(ValueError, match="from 0 to 2"):
        reading(attention={"1": 2 * np.eye(5)})
    with pytest.raises(ValueError, match="guesses must be 5, one a letter, got 2"):
        reading(guesses=[{}] * 2)


def test_a_reading_follows_slider_list_and_click_in_a_browser(browser, tmp_path):
    file = tmp_path / "reading.html"
    head = '<!doctype html><meta charset="utf-8">'
    file.write_text(head + reading()._repr_html_(), encoding="utf-8")
    page = browser.new_context(offline=True, viewport={"width": 390, "height": 800}).new_page()
    page.goto(file.as_uri())
    letters = page.locator(".worked-letters span")

    def shades():
        return letters.evaluate_all("all => all.map(x => x.style.background)")

    still = re.findall(r"<span[^>]*?background: #[0-9a-f]{6}([0-9a-f]{2})", reading()._repr_html_())
    alphas = [int(shade, 16) / 255 for shade in still]
    live = [float(s.split(",")[-1].rstrip(") ")) for s in shades()[:3]]
    assert np.allclose(alphas, live, atol=0.01) and shades()[3] == ""
    before = shades()
    page.get_by_label("head").select_option("2")
    assert shades()[:3] != before[:3]
    letters.nth(2).click()
    assert page.locator("input").input_value() == "2" and shades()[1] and not shades()[2]
    assert page.locator(".worked-guesses").inner_text().endswith("comes: <")
    page.context.close()
