"""circuitsvis in its frame: bounded, escaped, cut off from the page and from the network."""

import json
import re

import pytest

from regap_interp.views import AttentionHeads, Interactive, TokenStrip, interactive
from tests.views.samples import EVIL, NAN, Page, column, hostile_tokens, spread


def heads(count: int = 2) -> Interactive:
    """Attention over hostile tokens, one value missing."""
    patterns = spread(count, len(EVIL), len(EVIL)).tril()
    patterns[0, 2, 1] = NAN
    return AttentionHeads(patterns, EVIL, [f"L0H{i}</script>" for i in range(count)]).interactive()


def data(page: str) -> list[dict[str, object]]:
    """What the widgets of a page are given."""
    return [json.loads(one) for one in re.findall(r"CircuitsVis\.\w+, (\{.*\})\);</script>", page)]


def test_a_notebook_gets_one_closed_frame_without_rights() -> None:
    (tag, attributes), *others = Page(heads()._repr_html_()).elements

    assert (tag, others) == ("iframe", [])
    assert attributes["sandbox"] == "allow-scripts"
    assert "default-src 'none'" in (attributes["srcdoc"] or "")


def test_the_scripts_are_there_once() -> None:
    both = heads() + hostile_tokens("the").interactive()

    page = both.page()
    assert page.count("var CircuitsVis=") == 1
    assert "http-equiv" in page
    assert len(page) < 1_400_000
    assert len(both.widgets) == 2
    assert repr(both) == "Interactive(AttentionHeads, ColoredTokens)"
    tags = [tag for tag, _ in Page(page).elements]
    assert tags.count("script") == 3
    assert tags.count("div") == 2


def test_tokens_taken_for_html_are_escaped_and_others_are_text() -> None:
    drawn, written = data((heads() + hostile_tokens("the").interactive()).page())

    assert "&lt;s&gt;" in str(written["tokens"])
    assert "<" not in str(written["tokens"])
    assert "<s>" in str(drawn["tokens"])


def test_what_is_not_finite_is_marked() -> None:
    (drawn,) = data(heads().page())
    (written,) = data(TokenStrip(["a", "b"], column(NAN, 0.12345)).interactive().page())

    assert drawn["attentionHeadNames"] == ["L0H0</script> (1 not finite)", "L0H1</script>"]
    assert written["tokens"] == ["a (1 not finite)", "b"]
    assert written["values"] == [0.0, 0.123]
    assert written["maxValue"] == pytest.approx(0.12345)


def test_only_causal_patterns_are_masked() -> None:
    full = AttentionHeads(spread(1, 3, 3) + 2, ["a", "b", "c"], ["L0H0"]).interactive()

    assert data(heads().page())[0]["maskUpperTri"] is True
    assert data(full.page())[0]["maskUpperTri"] is False


def test_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interactive, "LARGEST", 2_000)

    with pytest.raises(ValueError, match=r"more than 2,000; show fewer heads or tokens"):
        heads(9)


def test_queries_without_their_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="as many queries as keys"):
        AttentionHeads(spread(1, 1, 3), ["a", "b", "c"], ["L0H0"]).interactive()
