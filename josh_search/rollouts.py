"""Dialogues played one after the other, each from where the search has reason to try again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from josh_search.player import Player, turns
from josh_search.tree import Node, Tree
from toolwoz_gym.records import usage_of
from toolwoz_gym.seeding import Luck, derive
from toolwoz_gym.types import Episode, Message

if TYPE_CHECKING:
    from josh_search.search import SearchOptions


def grow_rollouts(
    player: Player, tree: Tree, options: SearchOptions, on_step: Callable[[Tree, int], None]
) -> None:
    _Rollouts(player, tree, options, on_step).run()


class _Rollouts:
    def __init__(self, player, tree, options, on_step):
        self.player, self.tree, self.options, self.on_step = player, tree, options, on_step
        self.children: dict[int, list[Node]] = {0: []}
        self.met = {0: player.dialogue.goals_met(tree.nodes[0].episode)}
        self.draws: dict[int, int] = {}
        self.below: dict[int, int] = {}
        self.solution: Node | None = None

    def run(self) -> None:
        failures, number, best = 0, 0, 0
        while self.solution is None and failures < self.options.rollouts and not self.options.is_spent(self.tree):
            start = self.pick(number)
            if start is None:
                break
            number += 1
            self.roll_out(start)
            level = max(map(len, self.met.values()))
            failures, best = (0, level) if level > best else (failures + 1, best)
        self.mark()

    def open_nodes(self) -> list[Node]:
        limit = self.options.max_steps
        return [
            n for n in self.tree.nodes
            if n.episode.outcome is None and n.state != "pruned" and turns(n.episode) < limit
        ]

    def pick(self, number: int) -> Node | None:
        nodes = self.open_nodes()
        strategy = self.options.strategy
        if not nodes:
            return None
        if strategy == "chains":
            return nodes[0]
        if strategy.startswith("any-"):
            top = nodes
        else:
            level = max(len(self.met[n.id]) for n in nodes)
            top = [n for n in nodes if len(self.met[n.id]) == level]
        fresh = [n for n in top if not self.children[n.id]]
        if fresh:
            return fresh[0]
        if strategy == "return":
            return top[0]
        luck = Luck(self.tree.seed, "pick", number)
        kind = strategy.split("-")[-1]
        if kind == "uniform":
            return luck.choice(top)
        if kind == "novel":
            weights = [self.novelty(n) for n in top]
        elif kind == "spread":
            weights = [self.novelty(n) / (1 + self.below.get(n.id, 0)) for n in top]
        elif kind == "early":
            weights = [self.novelty(n) / (1 + i) for i, n in enumerate(top)]
        elif kind == "most":
            weights = [self.novelty(n) for n in top]
            return top[max(range(len(top)), key=lambda i: weights[i])]
        elif kind == "speech":  # only where the customer has just spoken
            weights = [self.novelty(n) * (n.episode.messages[-1].role == "user") for n in top]
        elif kind == "tool":
            weights = [self.novelty(n) * (1 + 2 * (n.episode.messages[-1].role == "tool")) for n in top]
        if sum(weights) < 1e-3:
            return top[0]
        mark = luck.below(1 << 40) / (1 << 40) * sum(weights)
        for node, weight in zip(top, weights):
            mark -= weight
            if mark < 0:
                return node
        return top[-1]

    def novelty(self, node: Node) -> float:
        children = self.children[node.id]
        known = 0.0
        for child in children:
            first = child.messages[0] if child.messages else None
            known += math.exp(first.logprob) if first and first.logprob is not None else 0.5 / len(children)
        return max(0.0, 1.0 - known)

    def roll_out(self, node: Node) -> None:
        path = node.path()
        while True:
            node = self.move(node)
            path.append(node)
            if self.solution or node.episode.outcome is not None or node.state == "pruned":
                break
            if turns(node.episode) >= self.options.max_steps or self.options.is_spent(self.tree):
                break
        if not self.solution:
            for n in path:
                self.below[n.id] = self.below.get(n.id, 0) + 1

    def move(self, parent: Node) -> Node:
        draw = self.draws.get(parent.id, 0)
        self.draws[parent.id] = draw + 1
        seed = derive(self.tree.seed, "draw", parent.id, draw)
        episode, _ = self.player.act(parent.episode, seed)
        said = episode.messages[len(parent.episode.messages):]
        node = next((c for c in self.children[parent.id] if self.said(c) == said), None)
        if node is not None:
            node.visits += 1
            node.repeated += usage_of(said, "assistant")
        else:
            parent.state = "expanded" if parent.parent else "root"
            node = self.tree.grow(parent, episode, seed)
            self.children[parent.id].append(node)
            self.children[node.id] = []
            self.met[node.id] = self.player.dialogue.goals_met(episode)
            node.met = self.met[node.id] - self.met[parent.id]
            if self.options.reward == "goal_calls" and len(self.met[node.id]) == len(self.tree.task.goals) > 0:
                self.solution = node
            elif episode.outcome is None:
                node.episode = self.player.listen(episode)
                if node.episode.outcome is not None:
                    node.state = "over"
            if self.options.reward == "terminal" and node.episode.reward == 1.0:
                self.solution = node
        self.tree.steps += 1
        self.on_step(self.tree, 1)
        return node

    def said(self, node: Node):
        messages = node.messages
        return messages[:-1] if messages and messages[-1].role == "user" else messages

    def mark(self) -> None:
        tree = self.tree
        tree.goals_met = max(self.met.values(), key=len)
        if self.options.reward == "goal_calls":
            for node in tree.nodes:
                if node.met:
                    for above in node.path():
                        above.successful = True
        if self.solution is not None:
            tree.solved = True
            for above in self.solution.path():
                above.golden = above.successful = True
                above.collapsed = bool(above.met)
