"""Ways to damage files and values."""

from __future__ import annotations

from fuzz.case import Draw

WORDS: tuple[str, ...] = (
    "",
    " ",
    ",",
    ",,",
    "²",
    "٣",
    "½",
    "0",
    "-0",
    "-1",
    "1",
    "2",
    "7",
    "1.5",
    "1e30",
    "1e400",
    "99999999999999999999999",
    "0x10",
    "1_000",
    "nan",
    "inf",
    "-inf",
    "None",
    "null",
    "true",
    "[]",
    "{}",
    "../x",
    "..",
    ".",
    "/dev/null",
    "/proc/nothing/x",
    "~",
    "a/b/c",
    "a" * 300,
    "\udce9",
    "\u202egnp.x",
    "tab\tby",
    "new\nline",
    "quote'\"",
    "%s%n",
    "{0}",
    "$HOME",
    "--",
    "-x",
    "*",
    "[red]x[/red]",
    "\x1b[31m",
    "Ünïcödé 猫",
    "🐈",
)
"""Words that programs stumble over."""


def damaged(draw: Draw, content: bytes) -> bytes:
    """The content, changed in one of many ways."""
    size = len(content)
    way = draw.one(("cut", "flip", "flips", "zeros", "garbage", "empty", "twice", "junk before", "junk after", "hole"))
    draw.note(way)
    start = draw.whole(0, max(size - 1, 0))
    stop = min(size, start + draw.whole(1, 64))
    if way == "cut":
        return content[:start]
    if way in ("flip", "flips"):
        changed = bytearray(content)
        for _ in range(1 if way == "flip" else draw.whole(2, 50)):
            if size:
                changed[draw.whole(0, size - 1)] ^= 1 << draw.whole(0, 7)
        return bytes(changed)
    return {
        "zeros": content[:start] + bytes(stop - start) + content[stop:],
        "garbage": draw.bytes(draw.whole(1, 400)),
        "empty": b"",
        "twice": content + content,
        "junk before": draw.bytes(draw.whole(1, 16)) + content,
        "junk after": content + draw.bytes(draw.whole(1, 64)),
        "hole": content[:start] + content[stop:],
    }[way]


def damaged_text(draw: Draw, text: str) -> bytes:
    """A text, changed as bytes, in its encoding, in its lines, or in one of its fields."""
    way = draw.one(("bytes", "encoding", "lines", "field", "field", "field", "character"))
    if way == "bytes":
        return damaged(draw, text.encode())
    draw.note(way)
    lines = text.splitlines()
    if way == "encoding":
        coding = draw.one(("utf-16", "utf-8-sig", "utf-32", "latin-1"))
        draw.note(coding)
        return (text + "é").encode(coding)
    if way == "lines" and lines:
        k = draw.whole(0, len(lines) - 1)
        change = draw.one(("dropped", "doubled", "emptied", "shuffled", "CRLF"))
        draw.note(f"line {k} {change}")
        if change == "CRLF":
            return "\r\n".join(lines).encode()
        if change == "shuffled":
            lines = [lines[int(p)] for p in draw.rng.permutation(len(lines))]
        else:
            lines[k : k + 1] = {"dropped": [], "doubled": [lines[k]] * 2, "emptied": [""]}[change]
        return "\n".join(lines).encode()
    if way == "field" and lines:
        k = draw.whole(0, len(lines) - 1)
        mark = next((m for m in (",", " ", "\t") if m in lines[k]), ",")
        fields = lines[k].split(mark)
        fields[draw.whole(0, len(fields) - 1)] = draw.one(WORDS)
        lines[k] = mark.join(fields)
        draw.note(f"line {k} is {lines[k][:80]!r}")
        return "\n".join(lines).encode(errors="surrogateescape")
    place = draw.whole(0, len(text))
    return (text[:place] + draw.one(WORDS) + text[place:]).encode(errors="surrogateescape")
