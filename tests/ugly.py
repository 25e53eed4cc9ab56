"""Names that mean something to a terminal, a shell, a markup, a figure or a browser."""

UGLY = {
    "brackets": "out[/x]",
    "markup": "[bold red]a[/]",
    "link": "[link=https://example.org]a[/link]",
    "emoji name": ":warning: a",
    "mathematics": "cost$_$",
    "one dollar": "a$",
    "backslashes": r"a\b\c$\frac{1}{2}$",
    "braces": "{a}",
    "interpolation": "${oc.env:HOME}",
    "escape": "\x1b[31mred\x1b]0;title\x07",
    "carriage return": "a\rb",
    "line break": "a\nmetarl: error: b",
    "tabulator": "a\tb",
    "umlaut": "ausgäbe_日本",
    "emoji": "a😀",
    "combining": "a\u0301e",
    "right to left": "a\u202egnp.exe",
    "no width": "a\u200bb\ufeff",
    "control of old": "a\x9b31mb",
    "separator": "a\u2028b",
    "quotes": "a'b\"c",
    "backtick": "`ls`",
    "html": "<img src=x onerror=alert(1)>",
    "markdown": "![a](https:example.org) **b** | c",
    "blanks": "a  b ",
    "shell": "a;b&c",
    "glob": "*?",
    "format": "%s {0} {} %(a)s",
    "option": "-x",
    "list": "[1, 2]",
    "equals": "a=b,c",
    "null": "null",
    "number": "1e3",
    "hash": "#a",
    "tilde": "~",
    "long": "a" * 200,
}


def obeyed(text: str) -> list[str]:
    """Characters of a text that a terminal does not show but obeys, or that hide how the text reads."""
    return [c for c in text if not c.isprintable() and c != "\n"]
