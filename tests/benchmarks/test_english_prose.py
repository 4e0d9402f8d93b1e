from __future__ import annotations

import pytest

from benchmarks.english_prose import english_prose, main, paragraphs

SENTENCES = (
    "This set holds pictures of many kinds of things that people have drawn over the years, and it was made by hand."
)

DOCUMENT = f"""\
.. _a_label:

A title
-------

{SENTENCES} It has ``no`` marks, see `the page <https://example.org>`_ and :ref:`it <a_label>`.

    {SENTENCES}

- {SENTENCES}

>>> load(a, b)

Too short.

x = [1, 2, 3]; y = f(x, {{'a': 4}}); z = g(y) + h(y) * 8 / 9; print(x, y, z, [a for a in x if a > 1]) and {SENTENCES}

{SENTENCES[:-1]}:
"""


def test_only_paragraphs_of_sentences_are_kept():
    assert list(paragraphs(DOCUMENT)) == [f"{SENTENCES} It has no marks, see the page and it."]


def test_the_text_is_written_up_to_the_number_of_words(tmp_path, capsys):
    pytest.importorskip("sklearn")
    assert main(["--out", str(tmp_path / "new" / "text.txt"), "--words", "500"]) == 0
    text = (tmp_path / "new" / "text.txt").read_text(encoding="utf-8")
    assert 400 < len(text.split()) <= 500
    assert "words" in capsys.readouterr().out
    assert text == english_prose(500)
    assert len(set(text.split("\n\n"))) == len(text.split("\n\n"))
