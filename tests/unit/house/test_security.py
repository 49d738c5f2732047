"""SECURITY.md names the code behind each claim; a file that has moved would leave it unproven."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "SECURITY.md").read_text()


def test_the_code_that_it_names_is_there() -> None:
    named = set(re.findall(r"`((?:agent|gateway|image|tests|requirements)/[\w/.-]*)`", TEXT))
    assert len(named) > 30
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#([^)]*))?\)", TEXT)
    assert links
    for file, place in links:
        target = ROOT / file
        assert target.exists(), file
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
        anchors = {
            re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings
        }
        assert not place or place in anchors, (file, place)
