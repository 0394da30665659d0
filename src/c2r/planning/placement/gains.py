"""The exact change of copies for every possible swap of two experts, kept up to date.

For sets s with weights w_s, let n_s(r) be the experts of s on rank r. Expert a on rank p leaves for
rank q: the sets where a is alone on p save a copy, those that do not visit q yet pay one. With

    alone[a, b] = sum of w_s over sets with a and b in which a is alone on its rank,
    enter[a, r] = sum of w_s over sets with a that have no expert on rank r,

swapping a on p with b on q changes the weighted copies by

    enter[a, q] + enter[b, p] - alone[a, a] - alone[b, b] + alone[a, b] + alone[b, a]:

a set that holds both changes nothing, which the last two terms put right.
"""

import numpy as np

from c2r.types import Bool, Counts, Float, Int


class SwapGains:
    """Weighted copies of a labelling of experts, and their change for every swap.

    Labels are ranks, or nodes. Experts that no set holds are allowed: the search uses them as empty
    slots where the ranks cannot hold equally many experts.

    Attributes:
        labels: `[E]`.
        visits: `[labels]` weight of the sets that visit each label.
    """

    def __init__(self, sets: Int, counts: Counts, labels: Int, num_labels: int) -> None:
        self.labels = labels.copy()
        self._sets = sets
        self._weights = counts.astype(np.float64)
        self._num_experts = len(labels)
        # The sets of each expert: positions of its ids in the flat sets, divided by k.
        order = np.argsort(sets, axis=None, kind="stable")
        ends = np.cumsum(np.bincount(sets.ravel(), minlength=len(labels)))
        self._sets_of = np.split(order // sets.shape[1], ends[:-1])
        self._marked = np.zeros(len(sets), dtype=np.bool_)
        self._held = np.zeros((len(sets), num_labels), dtype=np.uint8)
        for column in sets.T:
            self._held[np.arange(len(sets)), self.labels[column]] += 1
        self.visits = np.stack([self._weights[held > 0].sum() for held in self._held.T])
        everything = np.arange(len(sets))
        self._alone = np.zeros((len(labels), len(labels)))
        self._add_alone(sets, self._is_alone(everything, sets) * self._weights[:, None])
        self._enter = np.stack(
            [self._sum_by_expert(sets, held == 0, self._weights) for held in self._held.T], axis=1
        )

    def changes(self) -> Float:
        """`[E, E]` symmetric: change of cost when two experts swap labels; 0 where they share."""
        # The formula above is symmetric: half of it, [a, b], plus its transpose.
        leave = self._alone.diagonal()[:, None]
        half = self._enter[:, self.labels] + self._alone - leave
        both = half + half.T
        both[self.labels[:, None] == self.labels] = 0
        return both

    def visit_changes(self) -> Float:
        """`[E, E]`: what swapping a and b adds to the visits of the label of a; 0 where shared."""
        changes = self._enter[:, self.labels].T + self._alone - self._alone.diagonal()[:, None]
        changes[self.labels[:, None] == self.labels] = 0
        return changes

    @property
    def cost(self) -> float:
        """Weighted copies: the visits of all labels."""
        return float(self.visits.sum())

    def swap(self, first: int, second: int) -> None:
        """Swaps the labels of two experts."""
        ours, theirs = self.labels[first], self.labels[second]
        if ours == theirs:
            return
        # Only sets that hold one of the two change, so only their sums are taken out and put back.
        touched = self._union(self._sets_of[first], self._sets_of[second])
        rows, weights = self._sets[touched], self._weights[touched]
        alone = self._is_alone(touched, rows)
        absent = [self._held[touched, label] == 0 for label in (ours, theirs)]
        for expert, source, target in ((first, ours, theirs), (second, theirs, ours)):
            self._held[self._sets_of[expert], source] -= 1
            self._held[self._sets_of[expert], target] += 1
            self.labels[expert] = target
        change = self._is_alone(touched, rows).astype(np.int8) - alone.astype(np.int8)
        self._add_alone(rows, change * weights[:, None])
        for label, before in zip((ours, theirs), absent, strict=True):
            after = self._held[touched, label] == 0
            signed = weights * (after.astype(np.int8) - before.astype(np.int8))
            self._enter[:, label] += self._sum_by_expert(rows, after != before, signed)
            self.visits[label] -= signed.sum()

    def _union(self, first: Int, second: Int) -> Int:
        """Ids in either list, by a mark for each set: np.union1d would sort them at every step."""
        self._marked[first] = True
        union = np.concatenate([first, second[~self._marked[second]]])
        self._marked[first] = False
        return union

    def _is_alone(self, set_ids: Int, rows: Int) -> Bool:
        """`[rows, k]`: whether each expert of these sets is alone on its label."""
        alone: Bool = self._held[set_ids[:, None], self.labels[rows]] == 1
        return alone

    def _add_alone(self, rows: Int, values: Float) -> None:
        """Adds `values` `[rows, k]` to `alone[a, b]` for each expert a and all b of its set."""
        row, column = np.nonzero(values)
        keys = rows[row, column][:, None] * self._num_experts + rows[row]
        spread = np.repeat(values[row, column], rows.shape[1])
        added = np.bincount(keys.ravel(), weights=spread, minlength=self._num_experts**2)
        self._alone += added.reshape(self._alone.shape)

    def _sum_by_expert(self, rows: Int, chosen: Bool, weights: Float) -> Float:
        """`[E]` sums of the weights `[rows]` of the chosen sets that hold each expert."""
        spread = np.repeat(weights[chosen], rows.shape[1])
        sums = np.bincount(rows[chosen].ravel(), weights=spread, minlength=self._num_experts)
        return sums.astype(np.float64, copy=False)
