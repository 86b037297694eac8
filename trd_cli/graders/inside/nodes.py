"""Nodes of lists and trees, as in LeetCode. Standard library only: it also runs inside the sandbox."""

from __future__ import annotations

from collections import deque
from typing import Any


class ListNode:
    """A node of a singly linked list, as in LeetCode."""

    def __init__(self, val: Any = 0, next: Any = None) -> None:
        self.val, self.next = val, next


class TreeNode:
    """A node of a binary tree, as in LeetCode."""

    def __init__(self, val: Any = 0, left: Any = None, right: Any = None) -> None:
        self.val, self.left, self.right = val, left, right


LINKS = {"ListNode": (ListNode, ("next",)), "TreeNode": (TreeNode, ("left", "right"))}


def links(value: Any) -> tuple[str, ...]:
    """Return the attributes by which a node of a list or tree holds other nodes; none for any other value.

    Every class of the right name and attributes counts as one of nodes.
    """
    name = type(value).__name__
    if isinstance(value, type) or hasattr(type(value), "_of"):  # a stand-in, which would ask the other side
        return ()
    return LINKS[name][1] if name in LINKS and hasattr(value, "val") and hasattr(value, LINKS[name][1][0]) else ()


class Graph:
    """Nodes that lead to each other: the name of their class, and a row for each node of its value and its links.

    A link is None, the place of a node of this graph, or a node of another.
    """

    def __init__(self, head: Any, places: dict[int, tuple[Graph, int]]) -> None:
        """Collect the nodes that `head` leads to; note the place of each in `places`, by the node's identity."""
        self.kind, nodes = type(head).__name__, [head]
        names, self._nodes = links(head), nodes
        places[id(head)] = self, 0
        for node in nodes:
            for each in (getattr(node, name, None) for name in names):
                if links(each) == names and id(each) not in places:
                    places[id(each)] = self, len(nodes)
                    nodes.append(each)

        def link(node: Any) -> Any:
            graph, place = places.get(id(node), (None, 0))
            return place if graph is self else node

        self.rows = [(node.val, *(link(getattr(node, name, None)) for name in names)) for node in nodes]


def list_node(values: list[Any]) -> ListNode | None:
    """Return the linked list of `values`; None if there are none."""
    head = None
    for value in reversed(values):
        head = ListNode(value, head)
    return head


def list_values(node: Any) -> list[Any]:
    """Return the values of a linked list; raises ValueError if it runs in a circle."""
    values, seen = [], set()
    while node is not None:
        if id(node) in seen:
            raise ValueError("the list runs in a circle")
        seen.add(id(node))
        values.append(node.val)
        node = node.next
    return values


def tree_node(values: list[Any]) -> TreeNode | None:
    """Return the tree of `values` in level order, in which None marks a missing child."""
    if not values:
        return None
    rest = iter(values)
    root = TreeNode(next(rest))
    waiting = deque([root])
    for parent in iter(waiting.popleft, None):
        for side in ("left", "right"):
            value = next(rest, rest)
            if value is rest:
                return root
            if value is not None:
                setattr(parent, side, TreeNode(value))
                waiting.append(getattr(parent, side))
        if not waiting:
            return root
    return root


def tree_values(node: Any) -> list[Any]:
    """Return the values of a tree in level order; raises ValueError if a node occurs twice.

    Missing children at the end are left out.
    """
    values, level, seen = [], deque([node]), set()
    while level:
        node = level.popleft()
        values.append(None if node is None else node.val)
        if node is not None:
            if id(node) in seen:
                raise ValueError("a node occurs twice in the tree")
            seen.add(id(node))
            level.extend((node.left, node.right))
    while values and values[-1] is None:
        values.pop()
    return values
