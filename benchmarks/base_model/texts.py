"""Which text is for what. No part of it serves two purposes, and what is measured serves none.

WikiText-2 test is measured. WikiText-2 valid is cut by articles into text to distil on, to split
by (`calibration`), to place experts by (`planning`) and to choose settings and checkpoints by
(`choosing`). To distil on are also Shakespeare, the prose of Python's standard library, two
documents of Debian where they can be had, and text that the dense model writes (`sampling.py`).
"""

import gzip
import html
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

from c2r.cli.console import note
from c2r.errors import InputError

DATA = Path(__file__).parents[3] / "shared" / "data" / "text"
PARTS = {"distil": 0.58, "calibration": 0.08, "planning": 0.26, "choosing": 0.08}
SHARES = {"wiki": 0.25, "documents": 0.35, "sampled": 0.25, "prose": 0.1, "drama": 0.05}
_MEASURED_WINDOW = 512
_PACKAGES = {  # of Debian 12
    "dict-foldoc": "20230119-1",
    "debian-handbook": "11.20220922",
}


def read_data(name):
    """A text that is not in the repository."""
    path = DATA / name
    if not path.is_file():
        raise InputError(f"there is no {path}; it is the file {name} of WikiText-2 or Shakespeare")
    return path.read_text(encoding="utf-8")


def text_sources(documents):
    """Functions that read the texts, by name; Debian's are unpacked in the folder `documents`."""
    parts = wiki_parts(read_data("wikitext2-valid.txt"))
    return {
        **{name: partial(parts.get, name) for name in parts},
        "documents": lambda: debian_documents(documents),
        "prose": library_prose,
        "drama": lambda: read_data("tinyshakespeare.txt"),
    }


def wiki_parts(text, parts=PARTS):
    """The articles of a text in the format of WikiText-2, in order, cut into parts by size."""
    starts = [match.start() for match in re.finditer(r"(?m)^ = [^=\n]+ = $", text)]
    articles = [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
    found, taken, goal = {}, 0, 0.0
    for name, share in parts.items():
        goal += share * len(text)
        mine = []
        while articles and (taken + len(articles[0]) / 2 <= goal or not mine):
            mine.append(articles.pop(0))
            taken += len(mine[-1])
        found[name] = "".join(mine)
    found[name] += "".join(articles)
    return found


def library_prose():
    """The language reference and the docstrings of Python's standard library."""
    scripts = Path(__file__).parents[2] / "scripts"
    sys.path.insert(0, str(scripts))
    try:
        from train_tiny import collect
    finally:
        sys.path.remove(str(scripts))
    return "\n".join(collect()["prose"][False])


def debian_documents(folder):
    """The Free On-line Dictionary of Computing and the Debian handbook, or nothing and a note."""
    try:
        for package, version in _PACKAGES.items():
            unpacked = folder / package
            if not unpacked.is_dir():
                folder.mkdir(exist_ok=True)
                _run("apt-get", "download", "-q", f"{package}={version}", cwd=folder)
                (archive,) = folder.glob(f"{package}_*.deb")
                _run("dpkg-deb", "-x", archive.name, package, cwd=folder)
                archive.unlink()
    except (OSError, subprocess.CalledProcessError):
        note(f"no {' and '.join(_PACKAGES)}: not on Debian 12, or offline; going on without them")
        return ""
    share = folder / "dict-foldoc" / "usr" / "share" / "dictd" / "foldoc.dict.dz"
    dictionary = gzip.decompress(share.read_bytes()).decode(errors="ignore")
    pages = sorted((folder / "debian-handbook").rglob("html/en-US/*.html"))
    handbook = [plain_text(page.read_text(encoding="utf-8")) for page in pages]
    return "\n\n".join([plain_dictionary(dictionary), *handbook])


def _run(*command, cwd):
    subprocess.run(command, cwd=cwd, check=True, capture_output=True)


def plain_text(page):
    """The paragraphs of a page of HTML, without marks."""
    paragraphs = re.findall(r"(?s)<(?:p|h[1-4]|li)\b[^>]*>(.*?)</(?:p|h[1-4]|li)>", page)
    plain = (html.unescape(re.sub(r"<[^>]+>", "", paragraph)) for paragraph in paragraphs)
    return "\n".join(" ".join(paragraph.split()) for paragraph in plain if paragraph.strip())


def plain_dictionary(text):
    """Entries of a dict file: paragraphs in one line each, cross-references as words."""
    paragraphs = re.sub(r"[{}]", "", text).split("\n\n")
    return "\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def measured_windows(tokenizer, num_tokens=16384):
    """The first tokens of WikiText-2 test, `[windows, 512]`."""
    tokens = encode(tokenizer, read_data("wikitext2-test.txt")[: 8 * num_tokens])
    return windows(tokens, _MEASURED_WINDOW)[: num_tokens // _MEASURED_WINDOW]


def encode(tokenizer, text):
    """Token ids `[tokens]` int32, without special tokens."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return np.asarray(ids, dtype=np.int32)


def windows(tokens, length):
    """All whole windows, `[windows, length]` int64."""
    count = len(tokens) // length
    return torch.from_numpy(tokens[: count * length].astype(np.int64)).view(count, length)


class Mixture:
    """Windows to distil on, from sources in the proportion of their shares; each step has its own.

    A source that ends begins again in another order.
    """

    def __init__(self, sources, shares, seed):
        self.sources = {name: rows for name, rows in sources.items() if len(rows)}
        self.shares = {name: shares[name] for name in self.sources}
        self.seed = seed

    def places(self, first, count):
        """The source and the row of windows `first` to `first + count` of the endless stream."""
        total = sum(self.shares.values())
        taken = dict.fromkeys(self.sources, 0)
        found = []
        for number in range(first + count):
            due = {name: self.shares[name] / total * (number + 1) - taken[name] for name in taken}
            name = max(due, key=due.get)
            if number >= first:
                found.append((name, self._row(name, taken[name])))
            taken[name] += 1
        return found

    def _row(self, name, index):
        passes, place = divmod(index, len(self.sources[name]))
        kind = sorted(self.shares).index(name)
        rng = np.random.default_rng([self.seed, kind, passes])
        return int(rng.permutation(len(self.sources[name]))[place])

    def batch(self, step, size):
        """The windows of a step, `[size, seq_len]`."""
        return torch.stack(
            [self.sources[name][row] for name, row in self.places(step * size, size)]
        )
