"""docs/api.md is what its command writes, and the docstrings come out as Markdown."""

import re

import pytest

from docs.tools import api


def test_the_page_is_fresh():
    fresh = api.PAGE.read_text("utf-8") == api.page()
    assert fresh, f"docs/api.md is stale; to fix: {api.COMMAND}"


def test_a_changed_docstring_makes_it_stale(monkeypatch):
    import fastseq

    api.main(["--check"])
    monkeypatch.setattr(fastseq.scl_loss, "__doc__", "Another loss.")
    with pytest.raises(SystemExit, match=re.escape(f"to fix: {api.COMMAND}")):
        api.main(["--check"])


def test_every_public_name_has_a_section_and_a_summary():
    import fastseq

    text = api.PAGE.read_text("utf-8")
    titles = re.findall(r"^### (.*)", text, re.MULTILINE)
    assert len(titles) == len(set(titles)) == len(set(map(api.anchor, titles)))
    names = set(fastseq.__all__) - {"__version__"}
    names |= {f"nn.{name}" for name in fastseq.nn.__all__}
    names |= {f"video.{name}" for name in fastseq.video.__all__}
    assert names | {"compat.carl.SCL", "compat.lav.LAV", "compat.softdtw.SoftDTW"} == set(titles)
    for title in titles:
        row = re.search(rf"^\| \[`{re.escape(title)}`\]\(#(\S+)\) \| (.+) \|$", text, re.MULTILINE)
        assert row[1] == api.anchor(title)
        assert len(row[2]) > 10
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) == set(map(api.anchor, titles))


DOC = """Distance of x and y (Someone, eq. 3), for a test.

With ``q`` the query and <q, k> a product::

    d = |x - y|

See :func:`fastseq.scl_loss`, or `other`.

Args:
    x, y: embeddings (T, D),
        float32.
    mode: "a": one; "b":
        - another.

Returns:
    A scalar.

Raises:
    TypeError: wrong type. ValueError: wrong
        shape.

Example:
    >>> 1 + 1
    2
"""
SHOWN = """Distance of x and y (Someone, eq. 3), for a test.

With `q` the query and &lt;q, k> a product:

```text
d = |x - y|
```

See [`fastseq.scl_loss`](#scl_loss), or `other`.

**Parameters**

- `x`, `y`: embeddings (T, D), float32.
- `mode`: "a": one; "b": - another.

**Returns**

A scalar.

**Raises**

- `TypeError`: wrong type.
- `ValueError`: wrong shape.

**Example**

```pycon
>>> 1 + 1
2
```"""


def test_docstrings_become_markdown():
    assert api.markdown(DOC, {"fastseq.scl_loss": "scl_loss"}) == SHOWN
    assert api.summary(DOC) == "Distance of x and y (Someone, eq. 3), for a test."
    assert api.summary("First (a; b). Second.") == "First (a; b)."


def test_signatures():
    def short(x, *, backend: str = "auto") -> int: ...

    def long(first: "list[float]", second: float = 0.5, *, third_of_them: str = "x" * 60): ...

    assert api.signature("short", short) == 'short(x, *, backend: str = "auto") -> int'
    lines = api.signature("long", long).splitlines()
    assert lines[1:4] == ["    first: list[float],", "    second: float = 0.5,", "    *,"]
    assert lines[-1] == ")"
