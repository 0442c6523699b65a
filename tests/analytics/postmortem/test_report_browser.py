"""The report in a real browser: it renders, fits a phone, and fetches nothing."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

import esper_analytics as ea
from tests.analytics.postmortem.recorded_runs import RULES, healthy, wrecked


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report over two runs."""
    folder = tmp_path_factory.mktemp("report")
    wrecked(folder / "runs", manifest={"host": "<script>document.title = 'hacked'</script>"})
    healthy(folder / "runs")
    return ea.report(ea.replay(folder / "runs", RULES), folder / "report.html")


def browse(chromium: list[str], profile: Path, *arguments: str) -> str:
    done = subprocess.run(
        [*chromium, f"--user-data-dir={profile}", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_browser_renders_every_section_and_plot(chromium, page, tmp_path):
    dom = browse(chromium, tmp_path, "--dump-dom", page.as_uri())
    assert "<title>Post-mortem of 2 runs: 1 failed</title>" in dom
    assert dom.count('<section class="run"') == 2
    # Both runs' curves, the comparison and the timeline are SVG elements with lines in them.
    assert len(re.findall(r'<svg[^>]*class="plot"', dom)) >= 10
    assert dom.count("<path") > 100
    assert "<script" not in dom


def test_a_picture_of_it_is_not_blank(chromium, page, tmp_path):
    shot = tmp_path / "shot.png"
    browse(chromium, tmp_path / "p", f"--screenshot={shot}", "--window-size=1200,2400", page.as_uri())
    picture = matplotlib.image.imread(shot)[..., :3]
    assert picture.shape == (2400, 1200, 3)
    # Text and lines everywhere: no third of the page is one colour, and the critical red is seen.
    for third in np.array_split(picture, 3):
        assert third.std() > 0.02
    red = np.all(np.abs(picture - np.array([0xB3, 0x26, 0x1E]) / 255) < 0.02, axis=-1)
    assert red.sum() > 500


def test_on_a_phone_only_tables_scroll(chromium, page, tmp_path):
    """The page is put into a frame of 420 pixels; its width is written into the outer page's title."""
    outer = tmp_path / "outer.html"
    text = page.read_text(encoding="utf-8").replace("&", "&amp;").replace('"', "&quot;")
    outer.write_text(
        f'<iframe style="width:420px;height:900px;border:0" srcdoc="{text}"></iframe>'
        "<script>onload = () => { const d = frames[0].document.documentElement;"
        "document.title = `wide ${d.scrollWidth} of ${d.clientWidth}`; }</script>",
        encoding="utf-8",
    )
    dom = browse(chromium, tmp_path / "p", "--dump-dom", outer.as_uri())
    match = re.search(r"<title>wide (\d+) of (\d+)</title>", dom)
    assert match is not None, dom[:500]
    assert int(match[1]) <= int(match[2]) <= 420
