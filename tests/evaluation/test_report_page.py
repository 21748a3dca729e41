"""The report's page in a browser: it fits into windows, sorts its tables, and is readable in light and dark."""

import json
from pathlib import Path

import pytest
from browser import assert_fits, chromium, open_file

from salvage_hf.evaluation.report import ReportArguments, write_report


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def report(make_benchmark, ablation, tmp_path):
    """A page of two benchmarks with ill-natured titles and an ablation."""
    folder, results = make_benchmark(num_images=12)
    for place, name in enumerate(("rise", "salvage", "random", "vit_shapley", "last_attention")):
        results["methods"][name] |= {"srg": [0.9 - 0.2 * place + 0.001 * (n % 3) for n in range(12)]}
    results["methods"]["random"]["srg"] = [None] * 12  # has no place in an order
    results["label_names"][0] = "<img src=x onerror=alert(1)>"
    results["methods"]["rise"]["made_with"] = {"budget": "<b>200</b>"}
    Path(folder, "results.json").write_text(json.dumps(results))
    Path(folder, "recipe.yaml").write_text("# run <script>it</script>\nmodel_name_or_path: /home/me/<i>cat\n")
    other, _ = make_benchmark("other")
    benchmarks = [f"<script>alert(1)</script>={folder}", f"{'W' * 60}={other}"]
    return write_report(ReportArguments(benchmarks, [f"Pets={ablation[0]}"], str(tmp_path / "report")))


@pytest.mark.usefixtures("undrawn")
def test_the_page_in_a_browser(browser, report):
    """One test, because making the page takes as long as looking at it."""
    for width in (390, 1280):
        for scheme in ("light", "dark"):
            page = open_file(browser, report, width, scheme)
            assert_fits(page)
            page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert_fits(page)
            colors = page.evaluate(
                "(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(document.body))"
            )
            ink, paper = (sum(int(part) for part in color[4:-1].split(",")) for color in colors)
            assert abs(ink - paper) > 450
            assert (ink > paper) == (scheme == "dark")
            sources = page.evaluate(
                "[...document.images].map(one => [one.naturalWidth, one.alt, one.currentSrc.length])"
            )
            assert all(pixels > 100 and alt for pixels, alt, _ in sources)
            page.close()
    page = open_file(browser, report, 1280)
    figures = page.evaluate("[...document.querySelectorAll('h3')].map(one => one.textContent)")
    numbers = [int(title.split(":")[0].split()[1]) for title in figures if title.startswith("Figure")]
    assert numbers == sorted(numbers)
    assert page.evaluate("document.querySelectorAll('main script, main i, h1 + img, dd b').length") == 0  # escaped
    assert "…/<i>cat" in page.inner_text("main")
    assert "/home/me" not in page.content()

    table = page.locator("#table1 ~ .wide table")
    first = table.locator("thead th").nth(1)
    rows = table.locator("tbody th")
    assert first.get_attribute("aria-sort") == "descending"  # the best are first from the beginning
    assert rows.all_inner_texts() == ["RISE", "Salvage", "ViT-Shapley", "Attn. last", "Random"]
    first.get_by_role("button").press("Enter")
    assert first.get_attribute("aria-sort") == "ascending"
    assert rows.all_inner_texts() == ["Attn. last", "ViT-Shapley", "Salvage", "RISE", "Random"]
    table.locator("thead th").first.get_by_role("button").click()
    assert first.get_attribute("aria-sort") is None
    assert rows.all_inner_texts() == ["Attn. last", "Random", "RISE", "Salvage", "ViT-Shapley"]
    page.close()

    # Without its script the page is whole.
    context = browser.new_context(java_script_enabled=False, viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto(report.resolve().as_uri())
    assert page.locator("button").count() == 0
    assert page.locator("#table1 ~ .wide tbody th").all_inner_texts()[0] == "Salvage"  # the registry's order
    page.locator("#table1 ~ details summary").click()
    assert page.get_by_text("Maps of random numbers get about 0").last.is_visible()
    context.close()
