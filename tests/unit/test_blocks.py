"""Our lines in a file of somebody else: its bytes are the same again when they are gone, whatever they were."""

from __future__ import annotations

import contextlib

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from citadel import blocks

LISTS = (["scrape_configs"], ["rule_files"], ["receivers"], ["route", "routes"])
LINES = [
    *(
        "route:",
        "route: {receiver: x}",
        "  receiver: x",
        "  routes:",
        "  - receiver: y",
        "    - match: {a: b}",
        "receivers:",
    ),
    *(
        "- name: x",
        "  - name: x",
        "scrape_configs:",
        "scrape_configs: []",
        "  - job_name: 'a' # b",
        "rule_files:",
        "  # - x",
    ),
    *("", "# comment", "---", "\t", "global: {}", " \r", "'route' :", "\u2028x:\x85y", "\udcff"),
]
ENTRY = "- name: ours\n  more: {a: b}\n"


@given(st.lists(st.sampled_from(LINES)), st.sampled_from(LISTS), st.booleans())
def test_what_is_put_in_and_taken_out_leaves_the_same_bytes(lines: list[str], path: list[str], ended: bool) -> None:
    text = "\n".join(lines) + ("\n" if ended else "")
    with contextlib.suppress(blocks.BlockError):
        put = blocks.first_of(text, path, ENTRY)
        assert put != text
        assert blocks.without(put) == text
        assert "name: ours" in blocks.ours(put)


@given(st.text())
def test_any_text_is_itself_without_blocks_of_ours(text: str) -> None:
    if blocks.BEGIN not in text and blocks.END not in text:
        assert blocks.without(text) == text and blocks.ours(text) == ""


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("receivers:\n- name: a\n", ["receivers"]),
        ("receivers: # who\n\n  # nobody\n  - name: a", ["receivers"]),
        ("receivers:\nother: 1\n", ["receivers"]),
        ("# head\n---\nother: 1\n", ["receivers"]),
        ("", ["receivers"]),
        ("route:\n    receiver: x\n    routes:\n    - {receiver: y}\nz: 1\n", ["route", "routes"]),
        ("route:\n  routes:\n  - receiver: y\n    routes:\n    - receiver: z\n  receiver: x\n", ["route", "routes"]),
        ("z:\n  routes:\n    - no\nroute:\n  receiver: x\n", ["route", "routes"]),
    ],
)
def test_ours_comes_first_of_the_list_and_the_rest_is_as_it_was(text: str, path: list[str]) -> None:
    put = blocks.first_of(text, path, ENTRY)
    found, before = yaml.safe_load(put), yaml.safe_load(text) or {}
    for name in path[:-1]:
        found, before = found[name], before[name]
    mine, *others = found[path[-1]]
    assert mine == {"name": "ours", "more": {"a": "b"}}
    assert others == (before.get(path[-1]) or [])
    assert {**found, path[-1]: None} == {**before, path[-1]: None}


@pytest.mark.parametrize(
    ("text", "path", "said"),
    [
        ("route: {receiver: x}\n", ["route", "routes"], "`route: {receiver: x}` is written in one line"),
        ("receivers: []\n", ["receivers"], "`receivers: []` is written in one line"),
        ("receivers:\n  name: x\n", ["receivers"], "is no list with a line for each entry"),
        ("route:\n", ["route", "routes"], "`route` has nothing below it"),
    ],
)
def test_a_file_that_is_written_otherwise_is_refused_in_words(text: str, path: list[str], said: str) -> None:
    with pytest.raises(blocks.BlockError) as refused:
        blocks.first_of(text, path, ENTRY)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "text", [f"a\n{blocks.BEGIN}\n", f"{blocks.END}\n", f"{blocks.BEGIN}\n  {blocks.BEGIN}\n{blocks.END}\n"]
)
def test_half_a_block_is_refused(text: str) -> None:
    with pytest.raises(blocks.BlockError):
        blocks.without(text)


def test_entries_of_lists_however_they_are_written() -> None:
    files = "- files:\n          - /t/*.yml # d\n          - u\n"
    text = f"rule_files: [a.yml, 'b.yml'] # c\nx:\n  - file_sd_configs:\n      {files}"
    assert blocks.listed(text, "rule_files") == ["a.yml", "b.yml"]
    assert blocks.listed(text + "  - files: [q]\n", "files") == ["/t/*.yml", "u", "q"]
