"""YAML to a message tree, and back.

Only YAML's structure is used: mappings, lists, scalars, anchors, ``<<``. What a scalar means is up
to the field that reads it, so ``1e-4``, ``no`` and ``12:30`` stay the texts they are. The tree is
built from the parser's events one at a time, so that a hostile file is refused at the place where
it becomes hostile: no tag constructs anything, nesting is limited, and aliases are counted as they
expand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import yaml

from .message import Field, Message, Scalar, describe
from .source import MAX_DEPTH, MAX_FIELDS, Errors, Source, Span, SpecError, did_you_mean

MAX_EXPANDED = 100_000  # nodes that the aliases of a file stand for, all together

Node = Scalar | Message
Value = Node | list[Node]

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# What YAML does not allow, and what no editor shows: a byte order mark, the line ends of Unicode.
_UNPRINTABLE = re.compile(
    "[^\t\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
_ONLY_QUOTED = re.compile(r"[\n\t]|^-$|^---|^\.\.\.")
_PROTOTXT = re.compile(r"^[ \t]*\w+[ \t]*\{[ \t]*$", re.MULTILINE)  # a line that opens a block
_WORD = re.compile(r"[-+.]?\w[\w./+-]*", re.ASCII)
_CORE = "tag:yaml.org,2002:"
_HARMLESS = {_CORE + name for name in ("str", "int", "float", "bool", "null", "seq", "map")}


def parse(source: Source) -> Message:
    """Read a YAML text; raises :class:`SpecError` with all the mistakes that can be told apart."""
    reader = _Reader(source)
    message = reader.errors.attempt(reader.document)
    reader.errors.check()
    assert message is not None
    return message


class _Reader:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.events: Iterator[yaml.Event] = yaml.parse(source.text, Loader=_LOADER)
        self.errors = Errors()
        self.anchors: dict[str, Value] = {}
        self.count = self.expanded = 0

    def document(self) -> Message:
        if found := _UNPRINTABLE.search(self.source.text):
            where = self.source.at(found.start())
            raise SpecError(f"the character U+{ord(found[0]):04X} is not allowed in YAML", where)
        self.next()  # the stream's start
        if isinstance(event := self.next(), yaml.StreamEndEvent):
            raise SpecError("nothing but comments here", Span(self.source, 1, 1))
        top = self.node(event := self.next(), depth=0)
        if not isinstance(top, Message):
            got = "a list" if isinstance(top, list) else describe(top)
            hint = "a spec is a mapping: name: ..., layer: and a list of layers"
            raise SpecError(f"expected fields at the top level, got {got}", self.span(event), hint)
        self.next()  # the document's end
        if not isinstance(event := self.next(), yaml.StreamEndEvent):
            raise SpecError("a second document starts here, where a spec is one", self.span(event))
        return top

    def next(self) -> yaml.Event:
        try:
            return next(self.events)
        except yaml.MarkedYAMLError as error:
            raise self.syntax(error) from None

    def syntax(self, error: yaml.MarkedYAMLError) -> SpecError:
        where, start = self.at(error.problem_mark), error.context_mark and self.at(error.context_mark)
        hint = ""
        if self.source.line(where.line)[where.column - 1 :].startswith("\t"):
            hint = "YAML is indented by spaces, not by tabs"
        elif _PROTOTXT.search(self.source.text):
            hint = "this looks like prototxt, whose files are named *.prototxt"
        elif start and start != where:
            hint = f"{error.context} that starts at {start}"
        return SpecError(f"not YAML: {error.problem}", where, hint)

    def at(self, mark: Any) -> Span:
        return Span(self.source, mark.line + 1, mark.column + 1)

    def span(self, event: yaml.Event) -> Span:
        return self.at(event.start_mark)

    def node(self, event: yaml.Event, depth: int) -> Value:
        span = self.span(event)
        _limit(depth, span)
        self.count += 1
        if self.count > MAX_FIELDS:
            raise SpecError(f"more than {MAX_FIELDS:,} values", span)
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event.anchor or "", span, depth)
        assert isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent)
        self.check_tag(event.tag, span)
        value: Value
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(event, span)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self.sequence(depth)
        else:
            value = self.mapping(span, depth)
        if event.anchor:
            self.anchors[event.anchor] = value
        return value

    def check_tag(self, tag: str | None, span: Span) -> None:
        if tag and tag not in _HARMLESS:
            hint = "a value's type is its field's; a spec constructs nothing"
            self.errors.add(f'the tag "{tag.replace(_CORE, "!!")}" is refused', span, hint)

    def sequence(self, depth: int) -> list[Node]:
        items: list[Node] = []
        lists: list[Span] = []
        while not isinstance(event := self.next(), yaml.SequenceEndEvent):
            item = self.node(event, depth + 1)
            if isinstance(item, list):
                lists.append(self.span(event))
            else:
                items.append(item)
        if lists:
            self.errors.add("a list cannot hold a list", lists[0])
        return items

    def mapping(self, span: Span, depth: int) -> Message:
        entries: dict[str, tuple[Span, Value]] = {}
        while not isinstance(event := self.next(), yaml.MappingEndEvent):
            where = self.span(event)
            key = self.key(event, where)
            value = self.node(self.next(), depth + 1)
            if key in entries:
                hint = f"several values make a list: {key}: [a, b]"
                self.errors.add(f'"{key}" is given twice, first at {entries[key][0]}', where, hint)
            else:
                entries[key] = where, value
        message = Message(span)
        for name, (where, value) in entries.items():
            if name == "<<":
                message.fields += self.merged(_nodes(value), where, set(entries))
            else:
                message.fields += [Field(name, node, where) for node in _nodes(value)]
        return message

    def key(self, event: yaml.Event, span: Span) -> str:
        if not isinstance(event, yaml.ScalarEvent) or not event.value:
            raise SpecError("expected a field's name", span)
        self.check_tag(event.tag, span)
        return event.value

    def merged(self, bases: Iterable[Node], where: Span, taken: set[str]) -> Iterator[Field]:
        """The fields of ``<<``: those that the mapping, or an earlier base, does not give itself."""
        for base in bases:
            if not isinstance(base, Message):
                raise SpecError('"<<" takes a mapping, or a list of mappings', where)
            yield from (field for field in base if field.name not in taken)
            taken = taken | {field.name for field in base}

    def alias(self, anchor: str, span: Span, depth: int) -> Value:
        if anchor not in self.anchors:
            hint = did_you_mean(anchor, self.anchors, "anchors above")
            raise SpecError(f'no anchor "{anchor}" ends above here', span, hint)
        value = self.anchors[anchor]
        if isinstance(value, list):
            return [self.copy(node, span, depth + 1) for node in value]
        return self.copy(value, span, depth)

    def copy(self, node: Node, span: Span, depth: int) -> Node:
        """What an alias stands for, as nodes of its own: whoever changes them changes no others."""
        _limit(depth, span)
        self.expanded += 1
        if self.expanded > MAX_EXPANDED:
            raise SpecError(f"the aliases stand for more than {MAX_EXPANDED} values", span)
        if isinstance(node, Scalar):
            return node
        copies = (Field(f.name, self.copy(f.value, span, depth + 1), f.span) for f in node)
        return Message(node.span, list(copies))


def _limit(depth: int, span: Span) -> None:
    if depth > MAX_DEPTH:
        raise SpecError(f"nested more than {MAX_DEPTH} deep", span)


def _scalar(event: yaml.ScalarEvent, span: Span) -> Scalar:
    """Quoted or tagged ``!!str`` a text is a string and nothing else; so is one of several lines, or
    like YAML's own marks, which only quotes can write everywhere."""
    quoted = event.style in ("'", '"', "|", ">") if event.tag is None else event.tag == _CORE + "str"
    return Scalar(event.value, span, quoted or bool(_ONLY_QUOTED.search(event.value)))


def _nodes(value: Value) -> list[Node]:
    return value if isinstance(value, list) else [value]


def dump(message: Message) -> str:
    """Write a tree as YAML; ``parse`` gives the same tree back (:func:`~.message.same`).

    A YAML mapping has each key once: fields that repeat apart from each other, as prototxt may
    have them, are brought together.
    """
    return str(yaml.emit(_document(message), width=float("inf"), allow_unicode=True))


def _document(message: Message) -> Iterator[yaml.Event]:
    yield yaml.StreamStartEvent()
    yield yaml.DocumentStartEvent(explicit=False)
    yield from _mapping(message, flow=not message.fields)
    yield yaml.DocumentEndEvent(explicit=False)
    yield yaml.StreamEndEvent()


def _mapping(message: Message, flow: bool) -> Iterator[yaml.Event]:
    repeated: dict[str, list[Node]] = {}
    for field in message:
        repeated.setdefault(field.name, []).append(field.value)
    yield yaml.MappingStartEvent(None, None, True, flow_style=flow)
    for name, nodes in repeated.items():
        yield _text(name)
        yield from _emit(nodes[0]) if len(nodes) == 1 else _sequence(nodes)
    yield yaml.MappingEndEvent()


def _sequence(nodes: Sequence[Node]) -> Iterator[yaml.Event]:
    yield yaml.SequenceStartEvent(None, None, True, flow_style=_fits(nodes))
    for node in nodes:
        yield from _emit(node)
    yield yaml.SequenceEndEvent()


def _emit(node: Node) -> Iterator[yaml.Event]:
    if isinstance(node, Message):
        return _mapping(node, flow=_fits([field.value for field in node]))
    return iter([_text(node.text, node.quoted)])


def _text(text: str, quoted: bool = False) -> yaml.Event:
    return yaml.ScalarEvent(None, None, (True, True), text, style='"' if quoted else None)


def _fits(nodes: Sequence[Node]) -> bool:
    """A few short scalars stand on one line."""
    texts = [node.text for node in nodes if isinstance(node, Scalar)]
    return (
        len(texts) == len(nodes)
        and sum(map(len, texts)) <= 48
        and all(_WORD.fullmatch(text) for text in texts)
    )
