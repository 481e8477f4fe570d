"""The page in a real browser, opened from disk without a network."""

import re

import pandas as pd
import pytest
from playwright.sync_api import expect
from ruamel.yaml import YAML

from tests.vlm.report import invented
from vlm.config.params import load_params
from vlm.report import page

pytestmark = pytest.mark.slow
AUDI, BMW, IMAGE, SCRIPT, QUOTED = invented.LABELS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A repository with all that a report can show."""
    folder = invented.repository(tmp_path_factory.mktemp("repository") / "a")
    invented.write_results(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        page.write(folder / "reports", load_params(), lambda event: None)
    return folder


@pytest.fixture
def report(folder):
    return folder / "reports" / "index.html"


@pytest.fixture
def frame(folder):
    return pd.read_parquet(folder / "predictions/final_eval/test.parquet")


def tiles(opened):
    return opened.locator("#tiles > li")


def test_it_opens_with_all_its_parts(report, open_page, frame):
    opened = open_page(report)
    accuracy = (frame["label"] == frame["predicted"]).mean()
    assert opened.locator("h1:visible").inner_text() == f"{100 * accuracy:.1f}\u00a0% of 60 test samples right"
    assert opened.locator("#accuracies .row").count() == 5
    assert opened.get_by_text("The fine-tuned model beats a linear probe").is_visible()
    titles = opened.locator("#overview h2, #overview figcaption").all_inner_texts()
    for title in (
        "Loss while fine-tuning",
        "When to trust an answer: Fine-tuned, structured",
        "Robustness",
        "motion blur",
    ):
        assert title in titles
    assert opened.get_by_text("no threshold reaches it on validation").is_visible()
    for view in ("Gallery", "Confusions", "Suspects"):
        opened.get_by_role("link", name=view).click()
        assert opened.locator("h1:visible").inner_text() == view


def test_pictures_are_shown(report, open_page):
    opened = open_page(report, "#view=gallery&sample=test%2F0.jpg")
    for image in (opened.locator("dialog img"), opened.locator("#tiles img").first):
        expect(image).to_have_js_property("complete", True)
        assert image.evaluate("image => image.naturalWidth") > 0


def test_labels_and_texts_are_text(report, open_page):
    opened = open_page(report, "#view=gallery&model=baseline_eval")
    text = f"I see <b>{IMAGE}</b>.\nIt is sample 2."
    assert opened.locator("#tiles .text").nth(2).text_content() == text
    for view in ("confusions", "suspects", "overview"):
        opened.goto(f"{report.as_uri()}#view={view}")
    opened.goto(f"{report.as_uri()}#view=gallery&sample=test%2F3.jpg")
    assert opened.locator("dialog h2").inner_text() == SCRIPT
    assert opened.evaluate("typeof hacked") == "undefined"
    assert opened.locator("b b, p b:not(.kind):not(.brand b), img[src=x]").count() == 0


def test_filters_combine_and_are_in_the_address(report, open_page, frame):
    opened = open_page(report, "#view=gallery")
    opened.get_by_role("combobox", name="Answer", exact=True).select_option("wrong")
    opened.get_by_role("combobox", name="Label", exact=True).select_option(AUDI)
    wrong = frame[(frame["label"] != frame["predicted"]) & (frame["label"] == AUDI)]
    expect(tiles(opened)).to_have_count(len(wrong))
    assert "answer=wrong" in opened.url and f"true={AUDI}" in opened.url
    opened.get_by_label("Confidence from, %").fill("80")
    sure = wrong[[max(p) >= 0.8 for p in wrong["probabilities"]]]
    expect(tiles(opened)).to_have_count(len(sure))
    again = open_page(report, opened.url[opened.url.index("#") :])
    assert tiles(again).count() == len(sure)
    assert again.get_by_role("combobox", name="Answer", exact=True).input_value() == "wrong"
    opened.get_by_role("button", name="Clear").click()
    expect(tiles(opened)).to_have_count(60)


def test_what_fine_tuning_fixed_and_broke(report, open_page, folder, frame):
    before = pd.read_parquet(folder / "predictions/structured_eval/test.parquet")
    was_right, is_right = (one["label"] == one["predicted"] for one in (before, frame))
    for change, expected in (("fixed", ~was_right & is_right), ("broken", was_right & ~is_right)):
        opened = open_page(report, f"#view=gallery&change={change}")
        assert tiles(opened).count() == expected.sum() > 0


def test_samples_are_sorted_by_loss(report, open_page, frame):
    opened = open_page(report, "#view=gallery&sort=loss")
    labels = list(invented.LABELS)
    truth = [p[labels.index(label)] for label, p in zip(frame["label"], frame["probabilities"], strict=True)]
    assert tiles(opened).first.locator("button").get_attribute("data-sample") == frame["id"][truth.index(min(truth))]


def test_a_click_on_a_cell_shows_its_samples(report, open_page, frame):
    opened = open_page(report, "#view=confusions")
    wrong = frame[frame["label"] != frame["predicted"]].iloc[0]
    expected = ((frame["label"] == wrong["label"]) & (frame["predicted"] == wrong["predicted"])).sum()
    rows, columns = (opened.locator(f"#matrix .{kind}-labels span").all_inner_texts() for kind in ("row", "column"))
    box = opened.locator("#matrix .cells").bounding_box()
    size = box["height"] / len(rows)
    row, column = rows.index(wrong["label"]), columns.index(wrong["predicted"])
    opened.mouse.move(box["x"] + (column + 0.5) * size, box["y"] + (row + 0.5) * size)
    share = f"{expected} of 12"
    assert share in opened.locator("#readout").inner_text() and share in opened.locator("#tip").inner_text()
    opened.mouse.down()
    opened.mouse.up()
    assert tiles(opened).count() == expected > 0
    opened.go_back()
    assert opened.locator("#matrix").is_visible()


def test_the_matrix_works_with_the_keyboard(report, open_page, frame):
    opened = open_page(report, "#view=confusions")
    opened.locator("#matrix").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "Enter"):
        opened.keyboard.press(key)
    rows = open_page(report, "#view=confusions").locator("#matrix .row-labels span").all_inner_texts()
    expected = ((frame["label"] == rows[1]) & (frame["predicted"] == rows[1])).sum()
    assert tiles(opened).count() == expected > 0


def test_a_sample_in_full_size_works_with_the_keyboard(report, open_page, frame):
    opened = open_page(report, "#view=gallery&answer=wrong")
    wrong = list(frame[frame["label"] != frame["predicted"]]["id"])
    dialog = opened.locator("dialog")
    tiles(opened).first.locator("button").focus()
    opened.keyboard.press("Enter")
    for key, expected in (("ArrowRight", wrong[1]), ("ArrowRight", wrong[2]), ("ArrowLeft", wrong[1])):
        opened.keyboard.press(key)
        dialog.get_by_text(expected, exact=True).wait_for()
    assert dialog.locator("tbody tr").count() == 5
    opened.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert opened.evaluate("document.activeElement.dataset.sample") == wrong[0]
    expect(opened).not_to_have_url(re.compile("sample="))


def test_back_after_closing_a_sample_leaves_the_gallery(report, open_page):
    opened = open_page(report, "#view=confusions")
    opened.get_by_role("link", name="Gallery").click()
    for _ in range(2):
        tiles(opened).first.locator("button").click()
        opened.keyboard.press("ArrowRight")
        opened.keyboard.press("Escape")
        expect(opened).to_have_url(re.compile("#view=gallery$"))
    opened.go_back()
    expect(opened).to_have_url(re.compile("#view=confusions$"))
    linked = open_page(report, "#view=gallery&sample=test%2F7.jpg")
    linked.keyboard.press("Escape")
    expect(linked).to_have_url(re.compile("#view=gallery$"))
    assert tiles(linked).first.is_visible()


def test_a_deep_link_opens_a_sample(report, open_page):
    opened = open_page(report, "#view=gallery&model=structured_eval&sample=test%2F7.jpg")
    assert opened.locator("dialog .id").inner_text() == "test/7.jpg"
    assert opened.locator("dialog .warning").inner_text() == "Almost the same picture as train/2.jpg."
    assert opened.locator("dialog tr.current th").inner_text() == "Structured"
    unknown = open_page(report, "#view=nowhere&model=none&sample=none")
    assert unknown.locator("#overview").is_visible() and not unknown.locator("dialog").is_visible()


def test_labels_are_sorted_by_a_click(report, open_page, frame):
    opened = open_page(report, "#view=confusions")
    recall = (frame["label"] == frame["predicted"]).groupby(frame["label"]).mean()
    shown = opened.locator("#classes td.share").all_inner_texts()
    assert shown == [f"{100 * value:.1f}\u00a0%" for value in sorted(recall)]
    opened.get_by_role("button", name="Recall").click()
    assert opened.locator("#classes td.share").all_inner_texts() == shown[::-1]


def test_suspects_become_decisions(report, open_page):
    opened = open_page(report, "#view=suspects")
    assert opened.locator("#list > li").count() == 4
    first, duplicate, same = (opened.locator("#list > li").nth(i) for i in range(3))
    first.get_by_label("relabel to").check()
    duplicate.get_by_label("exclude").check()
    same.get_by_label("exclude").check()
    same.get_by_label("exclude").uncheck()
    blank = opened.locator("#list > li").nth(3)
    blank.get_by_label("keep").check()
    assert opened.get_by_role("button", name="Copy 3 decisions").is_enabled()
    assert opened.locator("#yaml").text_content().startswith("# These lines extend the file.")
    assert YAML(typ="safe").load(opened.locator("#yaml").text_content()) == {
        "exclude": {"train/2.jpg": "Almost the same picture as test/7.jpg."},
        "relabel": {"test/3.jpg": {"to": BMW, "reason": "The model gives BMW 97 %: <b>look</b>."}},
        "keep": {"validation/1.jpg": "Looked at, and right. All pixels have one colour."},
    }
    opened.get_by_role("combobox", name="Kind").select_option("blank")
    assert opened.locator("#list > li").count() == 1
    opened.goto(f"{report.as_uri()}#view=gallery&suspect=any")
    expect(tiles(opened)).to_have_count(2)


def test_findings_about_one_sample_share_its_decision(tmp_path, monkeypatch, open_page):
    folder = invented.repository(tmp_path / "a", samples=12, names=("structured_eval",))
    monkeypatch.chdir(folder)
    twice = "5,test/3.jpg,test,blank,0.7,</script><script>hacked=1</script>,,,All pixels have one colour.\n"
    invented.write(folder, "plots/audit/suspects.csv", invented.SUSPECTS + twice)
    page.write(folder / "reports", load_params(), lambda event: None)
    opened = open_page(folder / "reports/index.html", "#view=suspects")
    first, second = opened.locator("#list > li").first, opened.locator("#list > li").last
    first.get_by_role("combobox").select_option(QUOTED)
    expect(second.get_by_label("relabel to")).to_be_checked()
    expect(second.get_by_role("combobox")).to_have_value(QUOTED)
    second.get_by_role("combobox").select_option(AUDI)
    expect(first.get_by_role("combobox")).to_have_value(AUDI)


def ticked(opened):
    return [box.get_attribute("value") for box in opened.locator("#list input:checked").all()]


def test_ticks_survive_a_reload(report, open_page, tmp_path, monkeypatch):
    opened = open_page(report, "#view=suspects")
    first = opened.locator("#list > li").first
    first.get_by_role("combobox").select_option(QUOTED)
    opened.locator("#list > li").nth(3).get_by_label("exclude").check()
    yaml = opened.locator("#yaml").text_content()
    opened.reload()
    assert ticked(opened) == ["relabel", "exclude"]
    assert first.get_by_role("combobox").input_value() == QUOTED
    assert opened.locator("#yaml").text_content() == yaml
    # Another report, which shares the storage with this one
    other = invented.repository(tmp_path / "other", samples=12, names=("structured_eval",))
    monkeypatch.chdir(other)
    invented.write(other, "plots/audit/suspects.csv", invented.SUSPECTS)
    page.write(other / "reports", load_params(), lambda event: None)
    opened.goto(f"{(other / 'reports/index.html').as_uri()}#view=suspects")
    assert ticked(opened) == []
    opened.goto(f"{report.as_uri()}#view=suspects")
    assert ticked(opened) == ["relabel", "exclude"]
    tab = opened.context.new_page()
    tab.goto(opened.url)
    tab.get_by_role("button", name="Untick all").click()
    expect(opened.locator("#list input:checked")).to_have_count(0)
    opened.reload()
    assert ticked(opened) == []
    assert opened.get_by_role("button", name="Untick all").is_disabled()


def test_a_page_that_may_not_store_anything(report, chromium, tmp_path):
    """In such a frame, access to the storage is an error. Chromium also complains that it may not load the pictures."""
    frame = tmp_path / "frame.html"
    frame.write_text(f'<iframe sandbox="allow-scripts" src="{report.as_uri()}#view=suspects" width=900 height=700>')
    errors = []
    with chromium.new_context(offline=True) as context:
        opened = context.new_page()
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.goto(frame.as_uri())
        inside = opened.frame_locator("iframe")
        inside.locator("#list > li").first.get_by_label("exclude").check()
        expect(inside.locator("#copied")).to_have_text(re.compile("The browser stores nothing for this page: copy "))
        assert "test/3.jpg" in inside.locator("#yaml").text_content()
    assert errors == []


def test_what_was_decided_is_not_offered_again(tmp_path, monkeypatch, open_page):
    folder = invented.repository(tmp_path / "a", samples=12, names=("structured_eval",))
    monkeypatch.chdir(folder)
    decided = invented.SUSPECTS.replace("<b>look</b>.,", "<b>look</b>.,relabelled to <b>BMW</b>: is one")
    invented.write(folder, "plots/audit/suspects.csv", decided)
    page.write(folder / "reports", load_params(), lambda event: None)
    opened = open_page(folder / "reports/index.html", "#view=suspects")
    first = opened.locator("#list > li").first
    assert first.get_by_text("Already relabelled to <b>BMW</b>: is one").is_visible()
    assert first.locator("input").count() == 0
    assert opened.locator("#list > li").nth(1).locator("input").count() == 3
    opened.goto(f"{opened.url.split('#')[0]}#view=gallery&suspect=any")
    assert tiles(opened).count() == 1  # test/7.jpg is a near duplicate
    assert opened.locator('select[name="suspect"] option').all_inner_texts() == [
        "all",
        "suspects only",
        "near duplicate",
    ]
    opened.goto(f"{opened.url.split('#')[0]}#view=gallery&sample=test%2F3.jpg")
    assert opened.locator("dialog .note").inner_text().endswith("Already relabelled to <b>BMW</b>: is one")
    assert opened.locator("dialog .warning").count() == 0


def test_one_validation_pass_has_no_band(tmp_path, monkeypatch, open_page):
    folder = invented.repository(tmp_path / "a", samples=12, names=("structured_eval", "final_eval"))
    monkeypatch.chdir(folder)
    for passes, note in (
        (
            ["50,0.35,0.78,0.71,0.84,1"],
            "There was one validation pass, at step 50: 78.0\u00a0% (95 % interval 71.0 to 84.0).",
        ),
        (
            ["50,0.35,0.78,0.71,0.84,0", "100,0.29,0.87,0.81,0.91,1"],
            "The adapter of step 100 is the best. The band is the 95 % interval.",
        ),
    ):
        rows = "\n".join(["step,eval_loss,accuracy,low,high,best", *passes, ""])
        invented.write(folder, "plots/finetune/checkpoints.csv", rows)
        page.write(folder / "reports", load_params(), lambda event: None)
        figure = open_page(folder / "reports/index.html").locator("figure", has_text="Accuracy on validation")
        assert figure.locator(".note").inner_text() == note
        assert figure.locator("polygon").count() == len(passes) - 1


def test_thresholds_are_not_rounded(folder, open_page, report):
    opened = open_page(report)
    assert opened.get_by_role("cell", name="0.710345", exact=True).is_visible()


def test_all_views_fit_on_a_phone(report, open_page):
    for view in ("overview", "gallery", "confusions", "suspects"):
        opened = open_page(report, f"#view={view}", viewport={"width": 360, "height": 740})
        assert opened.evaluate("document.documentElement.scrollWidth") <= 360, view


def test_more_tiles_are_drawn_as_one_scrolls(tmp_path, monkeypatch, open_page):
    folder = invented.repository(tmp_path / "large", samples=400, names=("structured_eval",))
    monkeypatch.chdir(folder)
    page.write(folder / "reports", load_params(), lambda event: None)
    opened = open_page(folder / "reports/index.html", "#view=gallery")
    assert tiles(opened).count() < 400
    for _ in range(40):
        opened.mouse.wheel(0, 2000)
        opened.wait_for_timeout(20)
    assert tiles(opened).count() == 400
    assert not opened.get_by_role("combobox", name="Change", exact=True).is_visible()
