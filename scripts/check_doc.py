#!/usr/bin/env python3
"""Fails if the rendered documentation of mpi4tch shows brackets outside of code: they are left of a link
that rustdoc could not resolve, as one to another crate, of which it gives no warning."""

import json
import pathlib
import re
import subprocess
import sys
from html.parser import HTMLParser


class Prose(HTMLParser):
    """The text of a page that stands in this crate's documentation, and in no block of code."""

    VOID = {"br", "hr", "img", "input", "link", "meta", "wbr"}

    def __init__(self, page):
        super().__init__()
        self.open, self.text = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            attributes = dict(attributes)
            self.open.append((tag, attributes.get("class") or "", attributes.get("id")))

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        tags, classes, ids = zip(*self.open) if self.open else ((), (), ())
        is_prose = any("docblock" in name for name in classes) and "pre" not in tags
        # There, other crates implement their traits for all types.
        if is_prose and "blanket-implementations-list" not in ids:
            # In a line of code, brackets are part of it.
            self.text.append(re.sub(r"[\[\]]", " ", data) if "code" in tags else data)


metadata = subprocess.check_output(["cargo", "metadata", "--format-version=1", "--no-deps"])
pages = sorted((pathlib.Path(json.loads(metadata)["target_directory"]) / "doc/mpi4tch").rglob("*.html"))
found = [
    f"{page}: {link}"
    for page in pages
    for link in re.findall(r"\[[^\[\]]*\]", "".join(Prose(page.read_text()).text))
]
if not pages:
    sys.exit("there is no documentation; run cargo doc first")
if found:
    sys.exit("links that do not resolve:\n" + "\n".join(found))
