"""The inner loop of the beam search: emissions of a batch of clips → each clip's best token sequences, with a path.

The search keeps the K most probable prefixes of each clip (Graves & Jaitly 2014; Hannun et al. 2014, arXiv:1408.2873),
each with two numbers: the paths that end in its last token, and those that end in the blank. A frame either leaves a
prefix as it is or grows it by one token; with P the frame's probabilities and f what the fusions say,

    blank'(p) = (blank(p) + label(p)) · P(blank)
    label'(p) = label(p) · P(last of p) + what grows into p
    p grows by c:  P(c) · f(p, c) · (blank(p) + label(p)), or P(c) · f(p, c) · blank(p) where c repeats p's last token

All prefixes of all clips take a step together, in some fifty array operations. The numbers are probabilities, not
logarithms: each frame is divided by its best token and each clip by its best prefix, so nothing that matters
underflows, and the divisors' logarithms add up beside. Prefixes are told apart by 64-bit hashes of their tokens: two of
a beam of 16 are taken for one in 10^17 frames. When the beam holds every prefix and nothing is pruned, the sums are
exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from speechkit.asr.decode import Alphabet, BestPath
    from speechkit.asr.emissions import Emissions
    from speechkit.asr.fusion import Fusion

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Narrow = NDArray[np.int32]
    Bools = NDArray[np.bool_]

__all__ = ["Found", "Search"]

BLOCK = 64  # steps whose tokens are laid out at a time
# rows of the prefixes' integers; the fusions keep theirs behind
NAME, PARENT, LAST, OWN = 0, 1, 2, 3
ROOT, NOBODY, NO_PARENT = 1, 0, 2  # names no prefix is expected to get
SPREAD = 0x5851F42D4C957F2D  # an odd multiplier with well-mixed bits (Knuth's MMIX)


@dataclass(frozen=True)
class Found:
    """One text: natural log of its score, summed over the token sequences that write it, and the best of these with the
    best single path that says it.
    """

    text: str
    tokens: list[int]
    total: float
    path: BestPath


class _Step(NamedTuple):
    """One kept frame of the n clips that have one left; C is the most tokens that any of them has in it."""

    tokens: Ints  # (n, C + 1), filled up with V, which is no token; the last column holds nothing else
    p: Floats  # (n, C + 1) probabilities, 0 where there is no token
    blank: Floats  # (n, 1)
    gap: Bools | None  # (n, 1) were frames skipped just before; None for nowhere


class _Now(NamedTuple):
    """Where the prefixes stand in a step, (n, K) each; a slot is a prefix's number among the n · K."""

    at: Ints  # column of the last token; -1, in flat arrays the last column of the row before, where it is not there
    p_last: Floats  # its probability, 0 where it is not there
    parent: Ints  # slot of the prefix that is one token shorter
    joins: Bools  # is that in the beam? If not, `parent` means nothing


class _Chosen(NamedTuple):
    """The prefixes of the next frame, (n, K) each, best first."""

    source: Ints  # slot of the prefix that stayed or grew
    stays: Bools
    token: Ints  # what it grew by, V if it stayed
    p: Floats  # the probability of that token
    value: Floats  # the sum that ranked it


class _Trace(NamedTuple):
    """What one step leaves behind to walk the best paths back, (n, K) each: 2 · slot + (did it end in its label?)."""

    last: Narrow  # last token of the prefix
    label: Narrow  # where the path that ends in the last token was before the step
    blank: Narrow  # where the path that ends in the blank was
    crossed: (
        NDArray[np.int8] | None
    )  # before the gap ahead of this step, was the best path in the label? -1 without a gap


class Search:
    """The K prefixes of each of n clips, clips sorted by falling number of kept frames: arrays (n, K).

    `ids` (S, n, K) holds names, parents' names, last tokens and the fusions' states; `blank` and `label` the sums;
    `best_blank` and `best_label` the best single paths, in logarithms.
    """

    def __init__(self, batch: list[Emissions], alphabet: Alphabet, width: int, fusions: Sequence[Fusion]) -> None:
        self.batch, self.width, self.fusions, self.quiet = batch, width, fusions, alphabet.blank
        size = len(batch)
        self.none = len(alphabet.symbols)  # id of "no token here"; one above it: "prefix without tokens"
        start = [ROOT, NO_PARENT, self.none + 1, *(value for fusion in fusions for value in fusion.start)]
        self.ids = np.repeat(start, size * width).reshape(-1, size, width)
        self.ids[NAME, :, 1:] = NOBODY
        self.blank, self.label = np.zeros((2, size, width))
        self.best_blank, self.best_label = np.full((2, size, width), -np.inf)
        self.blank[:, 0], self.best_blank[:, 0] = 1.0, 0.0
        self.scale = np.array([_constant(clip) for clip in batch])  # (B,) log of everything divided by
        # the same random numbers every time: a run can be repeated
        self.mix = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, self.none + 2, np.int64)
        self.column = np.full(size * (self.none + 2), -1)  # of each token in the current step, per clip
        self.clip = np.arange(size)[:, None]
        self.slot = np.arange(size * width).reshape(size, width)
        # positive floats order as their bits do: with its rank in the low bits each score is one sortable integer, and
        # equal scores fall in order of rank, whatever else is in the batch. 17 bits leave one part in 3 · 10^10
        self.mask = (1 << (width * (self.none + 1)).bit_length()) - 1
        self.rank = self.mask - np.arange(width * (self.none + 1))
        self.trace: list[_Trace] = []
        self.ended: list[tuple[Ints, Floats, Bools]] = []  # per clip: states, sums, does the best path end in the label

    def run(self, n_best: int, write: Callable[[list[int]], str]) -> list[list[Found]]:
        """Search to the end → per clip the `n_best` best texts, as `write` makes them of tokens, best first."""
        with np.errstate(divide="ignore"):  # log 0 is minus infinity, and meant
            for step in _steps(self.batch, self.none):
                self._shrink(len(step.p))
                self._advance(step)
            self._shrink(0)
            labels = self._labels()
            return [self._results(b, labels[b], n_best, write) for b in range(len(self.batch))]

    def _shrink(self, size: int) -> None:
        """Put the clips aside whose frames are all seen: the shortest, so the last."""
        for b in range(len(self.blank) - 1, size - 1, -1):
            in_label = self.best_label[b] > self.best_blank[b]
            self.ended.insert(0, (self.ids[:, b], self.blank[b] + self.label[b], in_label))
        if size < len(self.blank):
            self.ids, self.blank, self.label = self.ids[:, :size], self.blank[:size], self.label[:size]
            self.best_blank, self.best_label = self.best_blank[:size], self.best_label[:size]
            self.clip, self.slot = self.clip[:size], self.slot[:size]

    def _advance(self, step: _Step) -> None:
        """Leave every prefix as it is, grow it by every token of the frame, and keep the best of both."""
        crossed = self._cross(step.gap)
        now = self._look(step)
        candidates, blank, label = self._grow(step, now)
        chosen = self._choose(step, candidates)
        self._walk(step, now, chosen, crossed)
        top = chosen.value[:, :1]
        self.blank = np.where(chosen.stays, blank.take(chosen.source), 0.0) / top
        self.label = np.where(chosen.stays, label.take(chosen.source), chosen.value) / top
        self.scale[: len(top)] += np.log(top[:, 0])
        self._become(chosen)

    def _cross(self, gap: Bools | None) -> NDArray[np.int8] | None:
        """Skipped frames end every run: what ended in a token now ends in the blank."""
        if gap is None:
            return None
        in_label = self.best_label > self.best_blank
        self.best_blank = np.where(gap & in_label, self.best_label, self.best_blank)
        self.best_label = np.where(gap, -np.inf, self.best_label)
        self.blank = np.where(gap, self.blank + self.label, self.blank)
        self.label = np.where(gap, 0.0, self.label)
        return np.where(gap, in_label, -1).astype(np.int8)

    def _look(self, step: _Step) -> _Now:
        columns, place = step.p.shape[1], self.clip * (self.none + 2)
        here = place + step.tokens
        self.column[here] = np.arange(columns)
        at = self.column.take(place + self.ids[LAST])
        self.column[here] = -1
        parent = self.slot[:, :1] + (self.ids[PARENT][:, :, None] == self.ids[NAME][:, None, :]).argmax(axis=2)
        joins = self.ids[NAME].take(parent) == self.ids[PARENT]
        return _Now(at, step.p.take(self.clip * columns + at), parent, joins)

    def _grow(self, step: _Step, now: _Now) -> tuple[Floats, Floats, Floats]:
        """→ scores of all candidates (n, K, C + 1): growth by each token, then staying; and the two sums of staying."""
        total, columns = self.blank + self.label, step.p.shape[1]
        grown = total[:, :, None] * step.p[:, None, :]
        flat = grown.reshape(-1)
        flat[self.slot * columns + now.at] = self.blank * now.p_last  # a repeat needs the blank between
        for fusion, state in self._states(self.ids):
            grown *= fusion.factors(state, step.tokens)
        # what grows into a prefix that is in the beam already is taken there
        source = now.parent * columns + now.at
        label = self.label * now.p_last + flat.take(source) * now.joins
        flat[source[now.joins]] = 0.0
        blank = total * step.blank
        grown[:, :, -1] = blank + label
        return grown, blank, label

    def _choose(self, step: _Step, candidates: Floats) -> _Chosen:
        """The best K of each clip's candidates, best first."""
        n, columns = step.p.shape
        size = self.width * columns
        order = (candidates.view(np.int64).reshape(n, size) & ~self.mask) | self.rank[:size]
        order.sort(axis=1)
        best = self.mask - (order[:, : -self.width - 1 : -1] & self.mask)
        slot = best // columns
        column = best - slot * columns
        told = column + self.clip * columns
        value = candidates.take(best + self.clip * size)
        token, p = step.tokens.take(told), step.p.take(told)
        return _Chosen(self.slot[:, :1] + slot, column == columns - 1, token, p, value)

    def _walk(self, step: _Step, now: _Now, chosen: _Chosen, crossed: NDArray[np.int8] | None) -> None:
        """Take each prefix's best single paths on by one frame, and note where they came from."""
        in_label = self.best_label > self.best_blank
        best = np.maximum(self.best_blank, self.best_label)
        log_last = np.log(now.p_last)
        # a prefix that stays: its label goes on, or begins here from the prefix one shorter
        stay_score, stay_from = self.best_label + log_last, 2 * self.slot + 1
        join_score, join_from = self._grown_path(best, in_label, now.parent, self.ids[LAST])
        join_score = np.where(now.joins, join_score + log_last, -np.inf)
        later = join_score > stay_score
        stay_score, stay_from = np.where(later, join_score, stay_score), np.where(later, join_from, stay_from)
        # a prefix that grows: its label begins here
        born_score, born_from = self._grown_path(best, in_label, chosen.source, chosen.token)
        born_score += np.log(chosen.p)
        stays, source = chosen.stays, chosen.source
        label_from = np.where(stays, stay_from.take(source), born_from)
        blank_from = 2 * source + in_label.take(source)
        self.best_label = np.where(stays, stay_score.take(source), born_score)
        self.best_blank = np.where(stays, (best + np.log(step.blank)).take(source), -np.inf)
        last = np.where(stays, self.ids[LAST].take(source), chosen.token)
        trace = np.stack((last, label_from, blank_from)).astype(np.int32)
        self.trace.append(_Trace(trace[0], trace[1], trace[2], crossed))

    def _grown_path(self, best: Floats, in_label: Bools, slot: Ints, token: Ints) -> tuple[Floats, Ints]:
        """Best path of the prefixes at `slot` after which `token` may begin, and where it is."""
        repeats = self.ids[LAST].take(slot) == token
        score = np.where(repeats, self.best_blank.take(slot), best.take(slot))
        return score, 2 * slot + (in_label.take(slot) & ~repeats)

    def _become(self, chosen: _Chosen) -> None:
        """Names, last tokens and fusion states of the chosen."""
        ids = self.ids.reshape(len(self.ids), -1).take(chosen.source, axis=1)
        grew = ~chosen.stays
        np.copyto(ids[PARENT], ids[NAME], where=grew)
        np.copyto(ids[NAME], ids[NAME] * SPREAD + self.mix.take(chosen.token), where=grew)
        np.copyto(ids[LAST], chosen.token, where=grew)
        for fusion, state in self._states(ids):
            fusion.advance(state, chosen.token)
        if not chosen.value.all():  # fewer candidates than beams: nobody gets a name, or there might be twins of it
            nobody = chosen.value == 0.0
            ids[NAME][nobody], ids[PARENT][nobody], ids[LAST][nobody] = NOBODY, NO_PARENT, self.none + 1
        self.ids = ids

    def _states(self, ids: Ints) -> Iterator[tuple[Fusion, Ints]]:
        row = OWN
        for fusion in self.fusions:
            yield fusion, ids[row : row + len(fusion.start)]
            row += len(fusion.start)

    def _results(self, b: int, labels: Narrow, n_best: int, write: Callable[[list[int]], str]) -> list[Found]:
        """End the clip's sentences, put together those of one text (a space at the end is none), and rank the texts."""
        clip, (ids, total, _) = self.batch[b], self.ended[b]
        for fusion, state in self._states(ids):
            total = total * fusion.finish(state)
        order = np.argsort(-total, kind="stable")
        order = order[total[order] > 0]
        labels = labels[order, : len(clip.kept)]
        begins = labels != self.quiet
        begins[:, 1:] &= (labels[:, 1:] != labels[:, :-1]) | (np.diff(clip.kept) > 1)  # a gap ends every run
        sums: dict[str, float] = {}
        firsts: dict[str, tuple[int, list[int]]] = {}
        for row, score in enumerate(total[order].tolist()):
            tokens = labels[row, begins[row]].tolist()
            text = write(tokens)
            sums[text] = sums.get(text, 0.0) + score
            firsts.setdefault(text, (row, tokens))
        found = []
        for text in sorted(sums, key=sums.__getitem__, reverse=True)[:n_best]:
            row, tokens = firsts[text]
            score = float(np.log(sums[text]) + self.scale[b])
            found.append(Found(text, tokens, score, clip.path(labels[row], self.quiet)))
        return found

    def _labels(self) -> Narrow:
        """The best path of each prefix → the token, or the blank, of each of its kept frames: (n, K, M), the blank in
        the frames that a clip has not.
        """
        labels = np.full((len(self.batch), self.width, len(self.trace)), self.quiet, np.int32)
        at = np.arange(len(self.batch) * self.width).reshape(-1, self.width)
        in_label = np.array([ended for _, _, ended in self.ended])
        for t in range(len(self.trace) - 1, -1, -1):
            last, label, blank, crossed = self.trace[t]
            n = len(last)
            here = at[:n]
            np.copyto(labels[:n, :, t], last.take(here), where=in_label[:n])
            came = np.where(in_label[:n], label.take(here), blank.take(here))
            at[:n], in_label[:n] = came >> 1, came & 1
            if crossed is not None:
                before = crossed.take(at[:n])
                in_label[:n] = np.where(before >= 0, before, in_label[:n])
        return labels


def _best_of_frames(clip: Emissions) -> Floats:
    """(M,) the best log-probability of each kept frame, which its probabilities are divided by."""
    if not len(clip.kept):
        return np.zeros(0)
    return np.maximum(np.maximum.reduceat(clip.scores, clip.starts[:-1]), clip.blank[clip.kept])


def _constant(clip: Emissions) -> float:
    """Log of what all prefixes of a clip are divided by: skipped blanks, and each kept frame's best token."""
    skipped = np.ones(len(clip), bool)
    skipped[clip.kept] = False
    return float(clip.blank[skipped].sum() + _best_of_frames(clip).sum())


def _steps(batch: list[Emissions], none: int) -> Iterator[_Step]:
    """The kept frames of clips sorted by falling number of them, side by side."""
    kept = np.array([len(clip.kept) for clip in batch])
    for first in range(0, int(kept.max(initial=0)), BLOCK):
        live = [clip for clip in batch if len(clip.kept) > first]
        sizes = np.zeros((BLOCK, len(live)), np.int64)  # tokens in each frame
        gap = np.zeros((BLOCK, len(live)), bool)
        rows = []
        for b, clip in enumerate(live):
            stop = min(first + BLOCK, len(clip.kept))
            sizes[: stop - first, b] = np.diff(clip.starts[first : stop + 1])
            gap[: stop - first, b] = np.diff(clip.kept[:stop], prepend=-1)[first:] > 1
            rows.append(slice(first, stop))
        tokens = np.full((*sizes.shape, 1 + int(sizes.max())), none)
        p, blank = np.zeros(tokens.shape), np.zeros(sizes.shape)
        for b, (clip, row) in enumerate(zip(live, rows, strict=True)):
            held = slice(clip.starts[row.start], clip.starts[row.stop])
            best = _best_of_frames(clip)[row]
            frame = np.repeat(np.arange(len(best)), sizes[: len(best), b])
            rank = np.arange(len(frame)) - (clip.starts[row] - clip.starts[first])[frame]
            tokens[frame, b, rank] = clip.ids[held]
            p[frame, b, rank] = np.exp(clip.scores[held] - best[frame])
            blank[: len(best), b] = np.exp(clip.blank[clip.kept[row]] - best)
        for t in range(min(BLOCK, int(kept.max()) - first)):
            n, widest = int((kept > first + t).sum()), 1 + int(sizes[t].max())
            between = gap[t, :n, None]
            yield _Step(
                np.ascontiguousarray(tokens[t, :n, :widest]),
                np.ascontiguousarray(p[t, :n, :widest]),
                blank[t, :n, None],
                between if between.any() else None,
            )
