"""English prose for a look at what a language model forgot: documentation that comes with installed packages.

    python -m benchmarks.english_prose --out run/smollm2/english.txt
    mmlm evaluate … --measures "[{type: text_ability, text_file: run/smollm2/english.txt}]"

The descriptions of scikit-learn's data sets, then Python's own reference, until there are enough words. Only whole
paragraphs of sentences are kept; tables, lists, directives, references and code are left out. No training of this
project reads any of it; a published language model may well have.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from pydoc_data.topics import topics

from visual_tokenizer.runs.files import save_text

PACKAGE = "sklearn"
DESCRIPTIONS = Path("datasets", "descr")
LEAST_WORDS = 20
MOST_SIGNS = 0.05
"""Share of letters that may be none, spaces and stops aside: more of them is code."""
MARKUP = ("..", ":", "|", "-", "*", "#", ">>>", "=", "[")
"""How a paragraph begins that is none of sentences."""


class MissingProseError(ModuleNotFoundError):
    """The package whose prose is read is not installed."""


def descriptions() -> Iterator[str]:
    """Yield the texts of scikit-learn's descriptions, in the order of their names.

    Raises:
        MissingProseError: scikit-learn is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = [Path(place) / DESCRIPTIONS for place in (spec.submodule_search_locations or [])] if spec else []
    files = [file for folder in folders for file in sorted(folder.glob("*.rst"))]
    if not files:
        raise MissingProseError("the text comes from the package scikit-learn: pip install scikit-learn")
    yield from (file.read_text(encoding="utf-8") for file in files)


def paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of a reStructuredText document that consist of sentences, each as one line."""
    for block in re.split(r"\n\s*\n", text):
        lines = block.splitlines()
        is_flush = not any(line.startswith((" ", "\t")) or line.strip().startswith(MARKUP) for line in lines)
        line = plain(" ".join(" ".join(lines).split()))
        signs = len(re.findall(r"[^A-Za-z\s.,;'’-]", line))
        is_prose = line[:1].isupper() and line.endswith(".") and signs <= MOST_SIGNS * len(line)
        if is_flush and is_prose and len(line.split()) >= LEAST_WORDS:
            yield line


def plain(text: str) -> str:
    """Return a paragraph without the marks of literals, roles and links."""
    text = text.replace("``", "")
    text = re.sub(r":[a-z:]+:`~?([^`<]+?)(?: <[^`>]*>)?`", r"\1", text)
    text = re.sub(r"`([^`<]+?)\s*(?:<[^`>]*>)?`_*", r"\1", text)
    text = re.sub(r"\[\d+\]_", "", text)
    return re.sub(r"[`*]+|(?<=\w)\(\)", "", text).strip()


def english_prose(most_words: int) -> str:
    """Return paragraphs of `most_words` words or a few less, with an empty line between two."""
    found: dict[str, None] = {}
    left = most_words
    for part in chain.from_iterable(map(paragraphs, chain(descriptions(), (topics[name] for name in sorted(topics))))):
        count = len(part.split())
        if part in found or count > left:
            continue
        found[part] = None
        left -= count
    return "\n\n".join(found) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the text to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="UTF-8 file; replaced if it is there")
    parser.add_argument("--words", type=int, default=4000, help="most words (4000)")
    options = parser.parse_args(arguments)
    if options.words < LEAST_WORDS:
        parser.error(f"--words must be {LEAST_WORDS} or more, got {options.words}")
    out: Path = options.out
    text = english_prose(options.words)
    save_text(text, out)
    print(f"{out}: {len(text.split()):,} words")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
