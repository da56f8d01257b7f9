"""A layered drawing of a graph: who reads stands below who writes, twins stand side by side.

After Sugiyama, Tagawa and Toda (1981): ranks by longest path, points where long edges pass a rank,
orders by barycentres, and places by least squares under the order. The first branches of Siamese
trunks are laid out by themselves; their twins get the same places to the right, and what belongs to
neither passes between them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

GAP, RANK_GAP, LANE = 22.0, 34.0, 14.0
SWEEPS, ROUNDS = 12, 30
HELD = 1e6  # the weight of a place that is given

Point = tuple[float, float]


@dataclass
class Box:
    """What is placed: ``x`` is its centre and ``y`` its upper end. ``twin_of`` is the index of the box
    whose place on the other side it takes."""

    width: float
    height: float
    twin_of: int | None = None
    x: float = 0.0
    y: float = 0.0


@dataclass
class Edge:
    """From the box ``tail`` down to ``head``, a later one; edges of one tail and one ``lane`` run
    together. ``route`` is where it begins, then in turn where it leaves a rank downwards and where it
    enters the next one, and where it ends."""

    tail: int
    head: int
    lane: str = ""
    route: list[Point] = field(default_factory=list)


def layout(boxes: Sequence[Box], edges: Sequence[Edge]) -> tuple[float, float]:
    """Place the boxes and route the edges; gives width and height, from 0."""
    if not boxes:
        return 0.0, 0.0
    drawing = _Drawing(boxes, edges)
    given: dict[int, float] = {}
    if any(box.twin_of is not None for box in boxes):
        drawing.arrange([i for i, item in enumerate(drawing.items) if item.branch == 1], {})
        given = drawing.twins_apart()
    drawing.arrange(range(len(drawing.items)), given)
    return drawing.finish()


@dataclass
class _Item:
    """A box, or a point (``box`` is None) where an edge passes a rank."""

    rank: int
    width: float
    box: int | None
    branch: int = 0  # 1 and 2 in a first branch and its twin
    twin_of: int | None = None
    up: list[int] = field(default_factory=list)
    down: list[int] = field(default_factory=list)
    x: float = 0.0


class _Drawing:
    def __init__(self, boxes: Sequence[Box], edges: Sequence[Edge]) -> None:
        self.boxes, self.edges = boxes, edges
        ranks = _ranks(boxes, edges)
        first = {box.twin_of for box in boxes}
        self.items = [
            _Item(rank, box.width, i, 2 if box.twin_of is not None else int(i in first), box.twin_of)
            for i, (box, rank) in enumerate(zip(boxes, ranks, strict=True))
        ]
        self.paths = self._pass_ranks()
        self.order: list[list[int]] = [[] for _ in range(1 + max(ranks))]

    def _pass_ranks(self) -> list[list[int]]:
        """For each edge its items from tail to head; the points of one lane are shared."""
        passing: dict[tuple[int, str, int, int], int] = {}
        paths = []
        for edge in self.edges:
            tail, head = self.items[edge.tail], self.items[edge.head]
            branch = tail.branch if tail.branch == head.branch else 0
            path = [edge.tail]
            for rank in range(tail.rank + 1, head.rank):
                key = edge.tail, edge.lane, rank, branch
                if key not in passing:
                    passing[key] = len(self.items)
                    twin = self._twin_point(edge, rank, passing) if branch == 2 else None
                    self.items.append(_Item(rank, LANE, None, branch, twin))
                path.append(passing[key])
            path.append(edge.head)
            for upper, lower in pairwise(path):
                if lower not in self.items[upper].down:
                    self.items[upper].down.append(lower)
                    self.items[lower].up.append(upper)
            paths.append(path)
        return paths

    def _twin_point(
        self, edge: Edge, rank: int, passing: dict[tuple[int, str, int, int], int]
    ) -> int | None:
        """The point of the first branch that a twin's point stands for."""
        tail, head = self.boxes[edge.tail].twin_of, self.boxes[edge.head].twin_of
        for other in self.edges:
            if (other.tail, other.head) == (tail, head):
                return passing.get((other.tail, other.lane, rank, 1))
        return None

    def arrange(self, chosen: Iterable[int], given: dict[int, float]) -> None:
        """Order and place these items; those ``given`` have their place already."""
        chosen = set(chosen)
        for i, x in given.items():
            self.items[i].x = x
        self._start(chosen, given)
        best, least = [list(row) for row in self.order], self._crossings()
        for sweep in range(SWEEPS):
            self._sweep(chosen, given, down=sweep % 2 == 0)
            crossings = self._crossings()
            if crossings < least:
                best, least = [list(row) for row in self.order], crossings
        self.order = best
        self._place(chosen, given)

    def _start(self, chosen: set[int], given: dict[int, float]) -> None:
        """A first order: depth first from above, as the spec has it."""
        seen: dict[int, None] = {}

        def visit(i: int) -> None:
            todo = [i]
            while todo:
                j = todo.pop()
                if j in chosen and j not in seen:
                    seen[j] = None
                    todo += reversed(self.items[j].down)

        for i in sorted(chosen, key=lambda i: self.items[i].rank):
            visit(i)
        for row in self.order:
            row.clear()
        for i in seen:
            self.order[self.items[i].rank].append(i)
        for row in self.order:
            row.sort(key=lambda i: self._side(i, given))

    def _side(self, i: int, given: dict[int, float]) -> tuple[int, float]:
        """First branches to the left, their twins to the right, each in the order they have."""
        return ((0, 1, -1)[-self.items[i].branch], given[i]) if i in given else (0, 0.0)

    def _sweep(self, chosen: set[int], given: dict[int, float], down: bool) -> None:
        place = {i: k - (len(row) - 1) / 2 for row in self.order for k, i in enumerate(row)}
        for row in self.order if down else reversed(self.order):

            def centre(i: int) -> float:
                item = self.items[i]
                near = [j for j in (item.up if down else item.down) if j in chosen]
                return sum(place[j] for j in near) / len(near) if near else place[i]

            row.sort(key=lambda i: (*self._side(i, given), centre(i)))
            place.update({i: k - (len(row) - 1) / 2 for k, i in enumerate(row)})

    def _crossings(self) -> int:
        total = 0
        for upper, lower in zip(self.order, self.order[1:], strict=False):
            place = {i: k for k, i in enumerate(lower)}
            ends = [
                place[j]
                for i in upper
                for j in sorted(self.items[i].down, key=lambda j: place.get(j, 0))
                if j in place
            ]
            total += sum(a > b for k, a in enumerate(ends) for b in ends[k + 1 :])
        return total

    def _place(self, chosen: set[int], given: dict[int, float]) -> None:
        """Draw every item to its neighbours, those above and those below in turn; then as columns,
        so that chains and long edges are straight."""
        for row in self.order:
            x = 0.0
            for i in row:
                if i not in given:
                    self.items[i].x = x
                x += self.items[i].width + GAP
        alone = {i: [i] for i in chosen}
        for round in range(ROUNDS):
            down = round % 2 == 0
            for row in self.order if down else reversed(self.order):
                self._relax(row, alone, chosen, given, up=down, down=not down)
        columns = self._columns(given)
        for round in range(ROUNDS):
            for row in self.order if round % 2 else reversed(self.order):
                self._relax(row, columns, chosen, given, up=True, down=True)
        self._separate(columns, given)
        for _ in range(ROUNDS):
            self._settle(columns, chosen, given)

    def _relax(
        self,
        row: list[int],
        columns: dict[int, list[int]],
        chosen: set[int],
        given: dict[int, float],
        up: bool,
        down: bool,
    ) -> None:
        """Move a row to where its items' columns are drawn."""
        wanted, weights = [], []
        for i in row:
            mean, weight = self._pull(columns[i], chosen, up, down)
            wanted.append(given.get(i, mean))
            weights.append(HELD if i in given else weight)
        apart = [self._apart(a, b) for a, b in pairwise(row)]
        for i, x in zip(row, spaced(wanted, weights, apart), strict=True):
            for j in columns[i]:
                self.items[j].x = x

    def _pull(self, column: list[int], chosen: set[int], up: bool, down: bool) -> tuple[float, float]:
        """Where a column's neighbours draw it, and how much."""
        pulls = [
            self.items[j].x
            for i in column
            for j in (*(self.items[i].up if up else ()), *(self.items[i].down if down else ()))
            if j in chosen and j not in column
        ]
        if not pulls:
            return self.items[column[0]].x, 0.05
        return sum(pulls) / len(pulls), float(len(pulls))

    def _apart(self, a: int, b: int) -> float:
        a_item, b_item = self.items[a], self.items[b]
        gap = 0.0 if a_item.box is None and b_item.box is None else GAP
        return (a_item.width + b_item.width) / 2 + gap

    def _columns(self, given: dict[int, float]) -> dict[int, list[int]]:
        """The items that one vertical line joins, for each item: the only way on, or a long edge.

        Two lines never cross, so that columns have an order from left to right. Beside places that
        are given there may be no room for a line as it goes on above or below, so it ends there.
        """
        columns = {i: [i] for row in self.order for i in row}
        beside = {self.items[i].rank for i in given}
        for rank, (upper, lower) in enumerate(zip(self.order, self.order[1:], strict=False)):
            if (rank in beside) != (rank + 1 in beside):
                continue
            place = {i: k for k, i in enumerate(lower)}
            links = []
            for k, i in enumerate(upper):
                points = [j for j in self.items[i].down if j in place and self.items[j].box is None]
                ways = points if self.items[i].box is None and points else self.items[i].down
                for j in ways if len(ways) == 1 else ():
                    both = self.items[i].box is None and self.items[j].box is None
                    if j in place and (both or len(self.items[j].up) == 1):
                        links.append((not both, k, place[j]))
            joined: list[tuple[int, int]] = []
            for _, a, b in sorted(links):
                if all((a - c) * (b - d) > 0 for c, d in joined):
                    joined.append((a, b))
                    self._join(columns, upper[a], lower[b], given)
        return columns

    @staticmethod
    def _join(columns: dict[int, list[int]], a: int, b: int, given: dict[int, float]) -> None:
        if a in given or b in given:
            return
        columns[a].extend(columns[b])
        for i in columns[b]:
            columns[i] = columns[a]

    def _separate(self, columns: dict[int, list[int]], given: dict[int, float]) -> None:
        """Keep all distances: midway between what pushing to the right and then to the left gives,
        and what the other way round does."""
        now = {i: self.items[i].x for i in columns}
        one = self._pushed(self._pushed(now, columns, given, 1), columns, given, -1)
        other = self._pushed(self._pushed(now, columns, given, -1), columns, given, 1)
        for i in columns:
            self.items[i].x = (one[i] + other[i]) / 2

    def _pushed(
        self,
        now: dict[int, float],
        columns: dict[int, list[int]],
        given: dict[int, float],
        sign: int,
    ) -> dict[int, float]:
        """Each column moved as far to the right (``sign`` 1) or to the left (-1) as those before it in
        its rows ask for."""
        before: dict[int, list[int]] = defaultdict(list)
        for row in self.order:
            for a, b in zip(row[::sign], row[::sign][1:], strict=False):
                before[b].append(a)
        found: dict[int, float] = {}
        todo = list(columns)
        while todo:
            column = columns[todo[-1]]
            waiting = [a for i in column for a in before[i] if a not in found]
            if waiting and column[0] not in found:
                todo.append(waiting[0])
                continue
            todo.pop()
            ends = [found[a] + sign * self._apart(a, i) for i in column for a in before[i]]
            mean = sum(now[i] for i in column) / len(column)
            x = max(mean, *ends) if sign > 0 and ends else min(mean, *ends) if ends else mean
            found.update({i: given.get(i, x) for i in column})
        return found

    def _settle(self, columns: dict[int, list[int]], chosen: set[int], given: dict[int, float]) -> None:
        """Move each column to where it is drawn, as far as its neighbours in the rows leave room."""
        beside: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for row in self.order:
            for a, b in pairwise(row):
                beside[a].append((b, 1))
                beside[b].append((a, -1))
        for column in {id(column): column for column in columns.values()}.values():
            if column[0] in given:
                continue
            x, _ = self._pull(column, chosen, up=True, down=True)
            for i in column:
                for j, sign in beside[i]:
                    end = self.items[j].x - sign * self._apart(i, j)
                    x = min(x, end) if sign > 0 else max(x, end)
            for i in column:
                self.items[i].x = x

    def twins_apart(self) -> dict[int, float]:
        """The places of both branches, with walls that keep what passes between them there."""
        first = [i for i, item in enumerate(self.items) if item.branch == 1]
        left = min(self.items[i].x - self.items[i].width / 2 for i in first)
        right = max(self.items[i].x + self.items[i].width / 2 for i in first)
        ranks = {self.items[i].rank for i in first}
        between: dict[int, float] = defaultdict(float)
        for item in self.items:
            if item.branch == 0 and item.rank in ranks:
                between[item.rank] += item.width + GAP
        half = (max(between.values(), default=0.0) + 5 * GAP) / 2
        given = {i: self.items[i].x - right - half for i in first}
        for i, item in enumerate(self.items):
            if item.branch == 2 and item.twin_of is not None:
                given[i] = self.items[item.twin_of].x - left + half
        for rank in sorted(ranks):
            for x in (-half, half):
                given[len(self.items)] = x
                self.items.append(_Item(rank, 2 * GAP, None, 1 if x < 0 else 2))
        return given

    def finish(self) -> tuple[float, float]:
        """Move all to 0, and write places and routes into boxes and edges."""
        left = min(item.x - item.width / 2 for item in self.items)
        width = max(item.x + item.width / 2 for item in self.items) - left
        tops, bottoms, y = [], [], 0.0
        for row in self.order:
            height = max((self.boxes[i].height for i in row if i < len(self.boxes)), default=0.0)
            tops.append(y)
            bottoms.append(y + height)
            y += height + RANK_GAP
        for box, item in zip(self.boxes, self.items, strict=False):
            box.x = item.x - left
            box.y = (tops[item.rank] + bottoms[item.rank] - box.height) / 2
        self._route(left, tops, bottoms)
        return width, bottoms[-1]

    def _route(self, left: float, tops: list[float], bottoms: list[float]) -> None:
        leaves, enters = self._ports(leaving=True), self._ports(leaving=False)
        for k, (edge, path) in enumerate(zip(self.edges, self.paths, strict=True)):
            tail, head = self.boxes[edge.tail], self.boxes[edge.head]
            leave, enter = tail.x + leaves[k], head.x + enters[k]
            edge.route = [
                (leave, tail.y + tail.height),
                (leave, bottoms[self.items[edge.tail].rank]),
            ]
            for i in path[1:-1]:
                x, rank = self.items[i].x - left, self.items[i].rank
                edge.route += [(x, tops[rank]), (x, bottoms[rank])]
            edge.route += [(enter, tops[self.items[edge.head].rank]), (enter, head.y)]
            edge.route = [point for point, _ in groupby(edge.route)]

    def _ports(self, leaving: bool) -> list[float]:
        """Where on its box each edge ends, from the centre; the edges of one lane leave together."""
        ends: dict[int, dict[object, list[int]]] = defaultdict(lambda: defaultdict(list))
        for k, edge in enumerate(self.edges):
            box, lane = (edge.tail, edge.lane) if leaving else (edge.head, f"{edge.tail} {edge.lane}")
            ends[box][lane].append(k)
        ports = [0.0] * len(self.edges)
        for i, lanes in ends.items():

            def towards(edges: list[int]) -> float:
                near = [self.paths[k][1 if leaving else -2] for k in edges]
                return sum(self.items[j].x for j in near) / len(near)

            step = min(LANE, self.boxes[i].width * 0.8 / len(lanes))
            for place, edges in enumerate(sorted(lanes.values(), key=towards)):
                for k in edges:
                    ports[k] = (place - (len(lanes) - 1) / 2) * step
        return ports


def _ranks(boxes: Sequence[Box], edges: Sequence[Edge]) -> list[int]:
    """The longest path from above; twins on one rank; a source just above the first that reads it.

    Twins that read what they are twins of cannot stand beside it: then none are taken for twins.
    """
    ranks = [0] * len(boxes)
    by_head = sorted(edges, key=lambda edge: edge.head)
    before: list[int] = []
    while ranks != before:
        if max(ranks) >= len(boxes):
            for box in boxes:
                box.twin_of = None
            return _ranks(boxes, edges)
        before = list(ranks)
        for edge in by_head:
            ranks[edge.head] = max(ranks[edge.head], ranks[edge.tail] + 1)
        for i, box in enumerate(boxes):
            if box.twin_of is not None:
                ranks[i] = ranks[box.twin_of] = max(ranks[i], ranks[box.twin_of])
    fed = {edge.head for edge in edges}
    for i in range(len(boxes)):
        heads = [ranks[edge.head] for edge in edges if edge.tail == i]
        if i not in fed and heads and boxes[i].twin_of is None:
            ranks[i] = min(heads) - 1
    return ranks


def spaced(wanted: Sequence[float], weights: Sequence[float], apart: Sequence[float]) -> list[float]:
    """The places nearest to those wanted, by weighted squares, that keep their distances.

    ``apart[i]`` is the least distance of place i + 1 from place i. Pools adjacent violators.
    """
    shift, pools = [0.0], list[list[float]]()  # a pool: mean, weight, count
    for distance in apart:
        shift.append(shift[-1] + distance)
    for place, weight, moved in zip(wanted, weights, shift, strict=False):
        pools.append([place - moved, weight, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            mean, weight, count = pools.pop()
            last = pools[-1]
            last[0] = (last[0] * last[1] + mean * weight) / (last[1] + weight)
            last[1] += weight
            last[2] += count
    flat = [mean for mean, _, count in pools for _ in range(int(count))]
    return [mean + moved for mean, moved in zip(flat, shift, strict=False)]
