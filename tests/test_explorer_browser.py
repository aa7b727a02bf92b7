"""The explorer in a real browser: what it shows is what its files hold; skips without Chromium."""

import json
import re
import shutil

import explorer_runs
import numpy as np
import pytest
from PIL import Image

from vae_attn.reporting import figures, page
from vae_attn.reporting.explorer import files as explorer_files
from vae_attn.reporting.tables import Table

sync_api = pytest.importorskip("playwright.sync_api")
axe_playwright = pytest.importorskip("axe_playwright_python.sync_playwright")

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, _NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

LAPTOP, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        # Without its sandbox, which a container that runs as root does not permit.
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    names = [explorer_runs.HOSTILE, *(f"image/{n:03d}" for n in range(1, 14))]
    path, known, _ = explorer_runs.write(folder, explorer_runs.data_of(names=names))
    return path, known


class Opened:
    """A page in the browser, with what went wrong there and what it asked for."""

    def __init__(self, browser, path, **options):
        options = {"viewport": LAPTOP, "reduced_motion": "reduce"} | options
        self.context = browser.new_context(**options)
        self.context.set_offline(True)
        self.page = self.context.new_page()
        self.troubles, self.requests = [], []
        self.page.on("console", self.heard)
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.troubles.append("alert"), dialog.dismiss()))
        self.page.on("requestfailed", lambda request: self.troubles.append(request.url))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def heard(self, message):
        if "willReadFrequently" not in message.text:  # of what `pixels` does
            self.troubles.append(message.text)

    def text(self, selector):
        return self.page.locator(selector).inner_text()

    def cards(self):
        """The images in the gallery, by their place in the page's data."""
        found = self.page.locator("#gallery .card").evaluate_all(
            "cards => cards.map((card) => Number(card.dataset.index))"
        )
        assert self.text("#count").startswith(f"{len(found)} of ")
        return found

    def open(self, index):
        self.page.locator(f'.card[data-index="{index}"]').click()
        self.shown(f"{index:05d}")

    def shown(self, identifier):
        self.page.wait_for_selector(f'#viewer[data-shown="{identifier}"]')
        self.frame()

    def frame(self):
        self.page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def press(self, key):
        self.page.keyboard.press(key)
        self.frame()

    def slide(self, selector, value):
        self.page.locator(selector).fill(str(value))
        self.frame()

    def pixels(self, selector):
        canvas = self.page.locator(selector)
        width, height, values = canvas.evaluate(
            "(c) => [c.width, c.height, "
            "[...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]"
        )
        return np.array(values, np.uint8).reshape(height, width, 4)


@pytest.fixture
def opened(browser, written):
    path, known = written
    made = Opened(browser, path)
    yield made, known, path.parent / known["folder"]
    made.context.close()
    assert made.troubles == []
    assert all(re.match(r"file:|data:image/", request) for request in made.requests)


def located(known):
    """Indices of the images whose defect's place is known."""
    return [n for n, record in enumerate(known["images"]) if "iou" in record]


def test_gallery_filters_and_sorts(opened):
    made, known, _ = opened
    images = known["images"]

    def expected(kept):
        return {n for n, record in enumerate(images) if kept(record)}

    scores = [images[n]["score"] for n in made.cards()]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == len(images)
    made.page.select_option('[name="class"]', "bent & torn")
    assert set(made.cards()) == expected(lambda r: r["class"] == "bent & torn")
    made.page.select_option('[name="class"]', "")
    made.page.select_option('[name="split"]', "validation")
    assert set(made.cards()) == expected(lambda r: r["split"] == "validation")
    made.page.select_option('[name="split"]', "")
    made.page.fill('[name="name"]', "Image/01")
    assert set(made.cards()) == expected(lambda r: "image/01" in r["name"])
    made.page.get_by_role("button", name="Clear").click()
    made.frame()
    assert len(made.cards()) == len(images)
    made.page.check('[name="misses"]')
    misses = expected(lambda r: r["abnormal"] != r["flagged"] or r.get("elsewhere", False))
    assert set(made.cards()) == misses
    assert 0 < len(misses) < len(images)
    tags = made.page.locator("#gallery .tag").all_inner_texts()
    assert len(tags) >= len(misses)
    made.page.uncheck('[name="misses"]')
    made.page.select_option('[name="sort"]', "low")
    assert [images[n]["score"] for n in made.cards()] == sorted(scores)
    ranked = sorted(scores)
    made.slide('[name="from"]', 5)
    made.slide('[name="to"]', 12)
    assert set(made.cards()) == expected(lambda r: ranked[5] <= r["score"] <= ranked[11])
    shown = float(made.text(".filters label:has([name='from']) output"))
    assert shown == pytest.approx(ranked[5], rel=6e-3)


def test_hostile_name_is_shown_as_it_is(opened):
    made, known, _ = opened
    assert known["images"][0]["name"] == explorer_runs.HOSTILE
    name = made.page.locator('.card[data-index="0"] .name').evaluate("(e) => e.textContent")
    assert name == explorer_runs.HOSTILE
    made.open(0)
    heading = made.page.locator("#viewer-name").evaluate("(e) => e.textContent")
    assert heading == explorer_runs.HOSTILE
    assert made.page.locator("img[src='x']").count() == 0


def test_threshold_redraws_mask_and_iou(opened):
    made, known, folder = opened
    index = located(known)[0]
    record = explorer_runs.read(folder, known, f"{index:05d}")
    made.open(index)
    # At the start, what the index says of the exact maps.
    assert float(made.text("#iou")) == pytest.approx(known["images"][index]["iou"], abs=6e-4)
    before = made.pixels("#binary")
    for share in (0.02, 0.1, 0.45):
        made.slide("#threshold", share * known["maps"][0]["limit"])
        threshold = float(made.page.locator("#threshold").input_value())
        iou = explorer_runs.iou_of(record["maps"][0], record["steps"][0], threshold, record["mask"])
        assert float(made.text("#iou")) == pytest.approx(iou, abs=6e-4)
        pixels = made.pixels("#binary")
        assert not np.array_equal(pixels, before)
        found = record["maps"][0] >= np.ceil(threshold / record["steps"][0] - 1e-6)
        np.testing.assert_array_equal(pixels[..., :3].any(axis=2), found | record["mask"])
        for colour, those in (
            ([236, 236, 236, 255], found & record["mask"]),  # hit
            ([230, 159, 0, 255], found & ~record["mask"]),  # false alarm
            ([86, 180, 233, 255], ~found & record["mask"]),  # missed
        ):
            np.testing.assert_array_equal((pixels == colour).all(axis=2), those)
        before = pixels
    moved = made.text("#threshold-value")
    made.page.focus("#viewer-name")
    made.press("]")
    assert float(made.text("#threshold-value")) > float(moved)
    made.press("r")
    assert float(made.text("#iou")) == pytest.approx(known["images"][index]["iou"], abs=6e-4)
    made.page.wait_for_timeout(700)  # what is read aloud follows when the slider rests
    text = made.page.locator("#announcer").evaluate("(e) => e.textContent")
    assert text.startswith(f"IoU {made.text('#iou')}")


def test_overlay_is_the_map_in_the_colours_of_the_scale(opened):
    made, known, folder = opened
    index = located(known)[1]
    record = explorer_runs.read(folder, known, f"{index:05d}")
    made.open(index)
    for n, kind in enumerate(known["maps"]):
        if n:
            made.press("l") if known["maps"][n - 1]["style"] == kind["style"] else None
        if n and known["maps"][n - 1]["style"] != kind["style"]:
            style = list(dict.fromkeys(k["style"] for k in known["maps"])).index(kind["style"])
            made.page.locator("#styles label").nth(style).click()
            made.page.locator("#layers label").first.click()
            made.frame()
        assert kind["style"] in made.text("#stage-title")
        assert made.text("#stage-title").endswith(kind["layer"])
        shares = np.minimum((record["maps"][n] + 0.5) * record["steps"][n] / kind["scale"], 1)
        shares[record["maps"][n] == 0] = 0
        alpha = made.pixels("#overlay")[..., 3] / 255
        np.testing.assert_allclose(alpha, 0.85 * shares**0.7, atol=0.004)
        brightest = np.unravel_index(shares.argmax(), shares.shape)
        table = explorer_files.colour_table()
        colours = np.frombuffer(explorer_runs.b64decode(table), np.uint8).reshape(256, 3)
        colour = made.pixels("#overlay")[brightest][:3].astype(int)
        expected = colours[round(255 * shares.max())].astype(int)
        assert np.abs(colour - expected).max() <= 4  # the canvas multiplies by alpha
        assert kind["unit"] == made.text("#scale-unit")
    made.slide("#strength", 0)
    assert not made.pixels("#overlay")[..., 3].any()


def test_keys(opened):
    made, known, _ = opened
    order = made.cards()
    made.open(order[2])
    made.press("ArrowRight")
    made.shown(f"{order[3]:05d}")
    made.press("ArrowLeft")
    made.press("ArrowLeft")
    made.shown(f"{order[1]:05d}")
    assert made.text("#position") == f"2 / {len(order)}"
    made.press("2")
    assert made.page.locator("#styles input:checked").input_value() == "paper"
    made.press("3")
    assert made.text("#stage-title") == "reconstruction_error, image"
    made.press("1")
    made.press("l")
    assert made.text("#stage-title") == "contrast, conv1"
    assert made.page.locator("#outline").is_visible()
    made.press("m")
    assert not made.page.locator("#outline").is_visible()
    made.press("o")
    assert made.text("#stage-title") == "original"
    assert not made.pixels("#overlay")[..., 3].any()
    made.press("o")
    strength = made.text("#strength-value")
    made.press("-")
    assert int(made.text("#strength-value")[:-1]) < int(strength[:-1])
    assert not made.page.locator("#help").is_visible()
    made.press("?")
    assert made.page.locator("#help").is_visible()
    # On a slider the arrows are the slider's.
    made.page.focus("#strength")
    made.press("ArrowRight")
    assert made.text("#position") == f"2 / {len(order)}"
    made.press("Escape")
    assert not made.page.locator("#viewer").is_visible()
    focused = made.page.evaluate("document.activeElement.dataset.index")
    assert int(focused) == order[1]
    made.press("ArrowRight")  # in the gallery
    assert int(made.page.evaluate("document.activeElement.dataset.index")) == order[2]
    made.press("Enter")
    made.shown(f"{order[2]:05d}")
    assert known["images"][order[2]]["name"] == made.text("#viewer-name")


def signed(value, digits=2):
    return f"{'−' if value < 0 else '+'}{abs(value):.{digits}f}"  # noqa: RUF001


def test_latents(opened):
    made, known, folder = opened
    index = located(known)[0]
    record = explorer_runs.read(folder, known, f"{index:05d}")
    made.open(index)
    labels = made.page.locator("#latents button span:nth-child(2)").all_inner_texts()
    latents = record["latents"]
    names = [
        f"z{k} {signed(sd, 1)} sd"
        for k, sd in zip(latents["order"][1:], latents["deviations"][1:], strict=True)
    ]
    assert labels == ["whole image", *names]
    sums = made.page.locator("#latents .sum").all_inner_texts()
    assert sums == [f"sum {signed(total)}" for total in latents["sums"]]
    assert not made.page.locator("#replacing").is_visible()
    for place, scale in ((0, known["latents"]["scales"][0]), (2, known["latents"]["scales"][1])):
        made.page.locator("#latents button").nth(place).click()
        made.frame()
        title = labels[2] if place else "the image's deviation"
        assert title in made.text("#stage-title")
        assert f"sum of this map {signed(latents['sums'][place])}" in made.text("#scale-unit")
        levels = record["tiles"][place].astype(float) - 128
        shares = np.clip(levels * latents["steps"][place] / scale, -1, 1)
        pixels = made.pixels("#overlay")
        np.testing.assert_allclose(pixels[..., 3] / 255, 0.85 * np.abs(shares) ** 0.6, atol=0.004)
        for strongest in (shares.argmin(), shares.argmax()):
            place_of = np.unravel_index(strongest, shares.shape)
            colour = figures.signed_colours(np.array([shares[place_of]]))[0] * 255
            if abs(shares[place_of]) > 0.2:  # the canvas multiplies by alpha
                assert np.abs(pixels[place_of][:3] - colour).max() <= 6
    assert "correlation 0.99" in made.text("#truth-of-map")
    change = latents["z"][2][0] - latents["z"][2][-1]
    assert f"from the counterpart {signed(change)}" in made.text("#scale-unit")
    made.page.locator("#latents button").nth(2).click()  # and back to the image's own map
    made.frame()
    assert not made.page.locator("#replacing").is_visible()


def test_replacing_pixels_moves_the_latent(opened):
    made, known, folder = opened
    index = located(known)[0]
    record = explorer_runs.read(folder, known, f"{index:05d}")
    made.open(index)
    made.page.locator("#latents button").nth(1).click()
    made.frame()
    path, latent = record["latents"]["z"][1], record["latents"]["order"][1]
    for place, share in enumerate(known["latents"]["shares"]):
        made.slide("#replaced", place)
        assert made.text("#replaced-value") == f"{100 * share:.3g}%"
        assert made.text("#replaced-words").startswith(f"z{latent} = {signed(path[place])}, from ")
        if place:
            exchanged = made.pixels("#exchanged")
            gone = record["levels"][0] <= place
            np.testing.assert_array_equal(exchanged[..., 3] == 255, gone)
            assert set(exchanged[gone][:, :3].ravel().tolist()) == {128}
            assert not made.pixels("#overlay")[..., 3].any()
        else:
            assert not made.page.locator("#exchanged").is_visible()
    assert gone.all()
    made.page.locator("#latents button").nth(2).click()  # another begins anew
    made.frame()
    assert made.text("#replaced-value") == "0%"


def test_maps_are_told_with_their_measured_truth(opened):
    made, known, _ = opened
    made.open(located(known)[0])
    assert made.text("#truth-of-map") == ""
    made.press("l")
    assert made.text("#stage-title") == "contrast, conv1"
    assert made.text("#truth-of-map") == known["maps"][1]["truth"] != ""
    assert made.page.locator("#layers small").all_inner_texts() == ["corr. 0.37, right 6%"]
    # Beside the style's own name too, with the layer where there are several.
    of_styles = made.page.locator("#styles small").all_inner_texts()
    assert of_styles == ["corr. 0.37, right 6% at conv1"]


def test_every_control_has_a_name(opened):
    made, known, _ = opened
    made.open(located(known)[0])
    nameless = made.page.evaluate(
        """() => [...document.querySelectorAll('button, input, select')].filter((control) =>
          !control.textContent.trim() && !control.ariaLabel && !control.labels?.length)
          .map((control) => control.outerHTML)"""
    )
    assert nameless == []
    unlabelled = made.page.evaluate(
        """() => [...document.querySelectorAll('#viewer img, #viewer canvas')].filter((picture) =>
          !picture.hasAttribute('alt') && !picture.ariaLabel && picture.ariaHidden !== 'true' &&
          !picture.closest('button, [role=img]')).map((picture) => picture.outerHTML)"""
    )
    assert unlabelled == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A page with all that a page has; its figure and its table are wider than a phone."""
    figure = figures.grid({"row": np.zeros((2, 8, 8, 1), np.uint8)}, ["a", "b"], title="t", note="")
    table = Table("Scores", [["a long heading"] * 12, ["1"] * 12], "A note.")
    folder = tmp_path_factory.mktemp("whole")
    shell = {
        "drawn": {"one": (figure, "A figure", "A caption.")},
        "tables": [table],
        "facts": [page.Fact("Pixel AUROC", "0.961", "where; 0.5 is chance", "14 images")],
        "links": [("Another run", "other/index.html")],
    }
    return explorer_runs.write(folder, explorer_runs.data_of(), **shell)[0]


@pytest.mark.parametrize("viewport", [LAPTOP, PHONE], ids=["wide", "narrow"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_violation_of_accessibility(browser, whole, scheme, viewport):
    """axe-core's rules: names, roles and their tree as a screen reader has them, keys, contrast."""
    made = Opened(browser, whole, color_scheme=scheme, viewport=viewport)
    axe = axe_playwright.Axe()

    def check():
        found = axe.run(made.page)
        assert found.violations_count == 0, found.generate_report()

    check()
    made.open(made.cards()[0])
    check()
    made.press("?")  # the help
    check()
    made.press("?")
    made.page.locator("#latents button").nth(1).click()
    made.frame()
    check()
    made.slide("#replaced", 2)
    check()
    # What axe looks for it finds.
    made.page.evaluate("document.querySelector('#viewer').append(document.createElement('button'))")
    spoiled = {one["id"] for one in axe.run(made.page).response["violations"]}
    assert "button-name" in spoiled
    made.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_dark_and_light(browser, written, scheme):
    path, known = written
    made = Opened(browser, path, viewport=PHONE, color_scheme=scheme)
    fits = "(box) => box.scrollWidth <= box.clientWidth"
    assert made.page.locator("html").evaluate(fits)
    made.open(located(known)[0])
    assert made.page.locator("#viewer").evaluate(fits)
    colour = made.page.locator("body").evaluate("(b) => getComputedStyle(b).backgroundColor")
    brightness = np.mean([int(part) for part in re.findall(r"\d+", colour)[:3]])
    assert brightness < 60 if scheme == "dark" else brightness > 200
    assert made.page.locator("#stage").bounding_box()["width"] > 200
    assert made.troubles == []
    made.context.close()


def test_missing_file_is_told(browser, tmp_path):
    path, known, _ = explorer_runs.write(tmp_path, explorer_runs.data_of())
    made = Opened(browser, path)
    index, other = made.cards()[:2]
    (path.parent / known["folder"] / f"{index:05d}.js").unlink()
    made.open(other)
    assert made.page.locator("#stage").is_visible()
    made.page.keyboard.press("ArrowLeft")
    made.page.wait_for_selector("#trouble:not([hidden])")
    assert f"{known['folder']}/{index:05d}.js cannot be read" in made.text("#trouble")
    assert not made.page.locator("#stage").is_visible()  # it would show the other image
    made.page.keyboard.press("ArrowRight")
    made.page.wait_for_selector("#stage", state="visible")
    assert not made.page.locator("#trouble").is_visible()
    made.context.close()


def test_many_images_are_loaded_as_they_are_seen(browser, tmp_path):
    _, known, _ = explorer_runs.write(tmp_path / "few", explorer_runs.data_of())
    count = 1725
    known["images"] = [
        {"id": f"{n:05d}", "split": "test", "name": f"image/{n:04d}", "class": "abc"[n % 3],
         "abnormal": n % 3 > 0, "flagged": n % 2 == 0, "score": n / 10}
        for n in range(count)
    ]  # fmt: skip
    path = page.write(
        explorer_runs.config_of(), tmp_path, title="many", summary="", drawn={}, tables=[],
        explorer=json.loads(json.dumps(known | {"note": ""})),
    )  # fmt: skip
    folder = path.parent / known["folder"]
    folder.mkdir()
    Image.new("L", (96, 40)).save(folder / "00000.png")
    content = (folder / "00000.png").read_bytes()
    for n in range(count):
        (folder / f"{n:05d}.png").write_bytes(content)
    made = Opened(browser, path)
    made.page.wait_for_timeout(1000)
    first = made.page.evaluate(
        "performance.getEntriesByName('first-contentful-paint').map((entry) => entry.startTime)"
    )
    print(f"first paint of {count} images after {first[0]:.0f} ms")  # with -s; no test of speed

    def pictures():
        return {request for request in made.requests if request.endswith(".png")}

    assert len(made.cards()) == count
    assert 0 < len(pictures()) < 200
    made.page.select_option('[name="class"]', "b")
    assert len(made.cards()) == count / 3
    made.page.wait_for_timeout(500)
    assert len(pictures()) < 400
    assert not any(request.endswith(".js") for request in made.requests)
    assert made.troubles == []
    made.context.close()
