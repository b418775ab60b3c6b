"""A page as a browser would see it: its elements nest, and what it asks for is known."""

from html.parser import HTMLParser

VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})


class ParsedPage(HTMLParser):
    """Checks that elements nest, and gathers ids, addresses and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.handlers: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                assert value not in self.ids
                self.ids.add(str(value))
            elif name.startswith("on"):
                self.handlers.add(name)
            elif name in ("src", "href", "xlink:href", "srcset", "action"):
                self.addresses.append(str(value))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
