"""The built-in embedder: word and character features hashed into a vector, offline and the same everywhere."""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from zlib import crc32

__all__ = ["LexicalEmbedder"]

_WORD = re.compile(r"[^\W_]+")

# Words that say how a sentence is built and not what it is about; they count for little.
_COMMON_WORDS = """
    a about above after again all also am an and any are as at be because been before being below between both but by
    can could did do does doing down during each few for from further had has have having he her here hers him his how i
    if in into is it its just let like may me might more most must my no nor not now of off on once only or other our ours
    out over own please s same shall she should so some such t than that the their theirs them then there these they this
    those through to too under until up us very was we were what when where which while who whom whose why will with
    would you your yours tell know give many much get got going
    el la los las un una de que y en le les des du et der die das und ist ein eine il di che
"""
_COMMON = frozenset(_COMMON_WORDS.split())

_ENDINGS = (
    ("ational", "ate"), ("fulness", "ful"), ("ousness", "ous"), ("iveness", "ive"), ("ization", "ize"),
    ("ations", "ate"), ("ation", "ate"), ("ingly", ""), ("ments", ""), ("ment", ""), ("ness", ""),
    ("ities", ""), ("ity", ""), ("ings", ""), ("ing", ""), ("ies", "y"), ("ied", "y"),
    ("edly", ""), ("ers", ""), ("er", ""), ("ed", ""), ("ly", ""), ("es", ""), ("s", ""), ("e", ""),
)  # fmt: skip


class LexicalEmbedder:
    """Finds texts that share words, word stems and parts of words with the query; knows no synonyms.

    Needs no download, no model and no third-party code, and gives the same vector on every machine and every supported
    version of Python. A text becomes the hashed, sub-linearly weighted, L2-normalised bag of its words' stems, of
    neighbouring pairs of them, and of their character n-grams, which forgive inflection, compounds and typing errors.

    Source:
        Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009; the n-grams are those of
        Bojanowski et al., "Enriching Word Vectors with Subword Information", TACL 2017.
    """

    name = "agenthelm-lexical-1"
    """Part of what a collection records: another recipe must have another name."""

    dimension = 1024

    def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        """Embed texts; a blank one becomes the zero vector, near to nothing."""
        return [self._embed(text) for text in texts]

    def _embed(self, text: str) -> list[float]:
        vector = [0.0] * self.dimension
        for feature, weight in _features(text):
            code = crc32(feature.encode("utf-8", "surrogatepass"))
            # The sign makes collisions cancel out on average instead of adding up.
            vector[code % self.dimension] += weight if code & 0x80000000 else -weight
        norm = math.sqrt(math.fsum(value * value for value in vector))
        return [value / norm for value in vector] if norm else vector


def _features(text: str) -> Iterator[tuple[str, float]]:
    words = _WORD.findall(_folded(text)) or text.split()
    stems = [(word if word in _COMMON else _stem(word), word in _COMMON) for word in words]
    counts = Counter(stems)
    for (stem, common), count in counts.items():
        weight = (1.0 + math.log(count)) * (0.08 if common else 1.0)
        yield f"w {stem}", weight
        if not common:
            grams = _grams(stem)
            for gram in grams:
                yield f"g {gram}", 0.7 * weight / math.sqrt(len(grams))
    content = [stem for stem, common in stems if not common]
    for left, right in itertools.pairwise(content):
        yield f"p {left} {right}", 0.3


def _folded(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text.casefold().replace("'s", ""))
    return "".join(char for char in decomposed if not unicodedata.combining(char))


def _stem(word: str) -> str:
    for ending, instead in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            stem = word[: len(word) - len(ending)] + instead
            if len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "aeiouls":
                stem = stem[:-1]  # plann(ed) is plan
            return stem.removesuffix("e") if len(stem) > 3 else stem
    return word


def _grams(word: str) -> list[str]:
    """Runs of three and four characters, with the word's edges marked."""
    edged = f"<{word}>"
    return [edged[start : start + size] for size in (3, 4) for start in range(len(edged) - size + 1)]
