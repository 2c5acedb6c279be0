"""What the parts of a training step take on one device: the numbers that forecasts and simulations are made of."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any, Self

import msgspec

from hpcsplit.plan.blocks import BlockTime
from hpcsplit.schedule.timetable import Passes
from hpcsplit.stage.cuts import ranges


@dataclass(frozen=True)
class CutCost:
    """Seconds of a parallel step that a cut costs, messages on their way apart.

    Attributes:
        psi_s: the stage before the cut: the synthetic loss at its output, t_ψ.
        lam_s: the stage behind it: its first variable, with reading and writing its rows, t_λ.
        kappa_s: the same of its other variables, t_κ.
        packing_s: putting together what the two stages send each other.
    """

    psi_s: float = 0.0
    lam_s: float = 0.0
    kappa_s: float = 0.0
    packing_s: float = 0.0

    @property
    def seconds(self) -> float:
        """Of both stages together."""
        return self.psi_s + self.lam_s + self.kappa_s + self.packing_s


@dataclass(frozen=True)
class Profile:
    """Seconds of the parts of a step with one mini-batch, each measured for itself.

    Attributes:
        blocks: each block's passes with a whole mini-batch.
        pieces: the same with one of its `microbatches`.
        cut_costs: what a cut before each block would cost in a parallel step; () where no epoch is parallel.
        update_s: the optimizer's step of one parameter.
        params: of each block.
        data_s: making a mini-batch from the images, t_d.
        packing_s: putting a byte into a message.
        own: the micro-batches that a parallel step has.
        cut: each block's passes with all of these; () where there is one.
        late: `pieces` in exact steps of several stages whose weight gradients wait; () where they do not.
    """

    blocks: tuple[BlockTime, ...]
    pieces: tuple[BlockTime, ...]
    microbatches: int
    cut_costs: tuple[CutCost, ...]
    params: tuple[int, ...]
    update_s: float
    data_s: float
    packing_s: float = 0.0
    own: int = 1
    cut: tuple[BlockTime, ...] = ()
    late: tuple[BlockTime, ...] = ()

    @property
    def parallel(self) -> tuple[BlockTime, ...]:
        """Each block's passes in a parallel step."""
        return self.cut or self.blocks

    @property
    def forward_s(self) -> float:
        """t_f of the whole network."""
        return sum(block.forward_s for block in self.blocks)

    @property
    def backward_s(self) -> float:
        """t_b of the whole network, with the optimizer's step."""
        return sum(block.backward_s for block in self.blocks) + self.update_s * sum(self.params)

    @property
    def serial_s(self) -> float:
        """t_s: an exact step of the whole network on one device."""
        return self.forward_s + self.backward_s + self.data_s

    def join(self, cut: int) -> CutCost:
        """What a cut before this block costs; the two ends of the network are none."""
        return self.cut_costs[cut] if 0 < cut < len(self.cut_costs) else CutCost()

    def blocks_s(self, cuts: Sequence[int]) -> list[float]:
        """Seconds of each stage's blocks, forward and backward."""
        return [sum(self.blocks[i].seconds for i in part) for part in ranges(cuts, len(self.blocks))]

    def parallel_stage_s(self, cuts: Sequence[int]) -> list[float]:
        """Seconds of a parallel step on each stage, if it never waited."""
        stages = []
        for part in ranges(cuts, len(self.blocks)):
            blocks_s = sum(self.parallel[i].seconds + self.update_s * self.params[i] for i in part)
            before, behind = self.join(part.start), self.join(part.stop)
            before_s = before.lam_s + before.kappa_s + before.packing_s / 2 if part.start else self.data_s
            stages.append(blocks_s + before_s + (behind.psi_s + behind.packing_s / 2))
        return stages

    def exact_pieces(self, stages: int) -> tuple[BlockTime, ...]:
        """Each block's passes with a micro-batch in an exact step of so many stages."""
        return self.late if self.late and stages > 1 else self.pieces

    def exact_stages(self, cuts: Sequence[int]) -> list[tuple[Passes, float]]:
        """Seconds of each stage in an exact step: the passes of a micro-batch, and the optimizer's step."""
        pieces = self.exact_pieces(len(cuts) + 1)
        return [
            (
                Passes(*(sum(times) for times in zip(*(astuple(pieces[i]) for i in part), strict=True))),
                self.update_s * sum(self.params[i] for i in part),
            )
            for part in ranges(cuts, len(self.blocks))
        ]

    def slowed(self, cuts: Sequence[int], factors: Sequence[float]) -> Profile:
        """That of stages whose blocks take so many times as long, as when all of them compute at once; what is beside
        the blocks takes their mean."""
        mean = statistics.mean(factors)
        of_block = [factor for part, factor in zip(ranges(cuts, len(self.blocks)), factors, strict=True) for _ in part]

        def slower(times: Sequence[BlockTime]) -> tuple[BlockTime, ...]:
            pairs = zip(times, of_block if times else (), strict=True)
            return tuple(BlockTime(*(factor * seconds for seconds in astuple(time))) for time, factor in pairs)

        return replace(
            self,
            blocks=slower(self.blocks),
            pieces=slower(self.pieces),
            cut=slower(self.cut),
            late=slower(self.late),
            cut_costs=tuple(CutCost(**{name: mean * s for name, s in asdict(join).items()}) for join in self.cut_costs),
            update_s=mean * self.update_s,
            data_s=mean * self.data_s,
            packing_s=mean * self.packing_s,
        )

    def deeper(self, times: int) -> Profile:
        """That of a network with every block but the first and the last so many times in a row."""
        inner = range(1, len(self.blocks) - 1)
        order = [0, *(i for i in inner for _ in range(times)), len(self.blocks) - 1]
        behind = [i + 1 if i == before else i for before, i in zip([-1, *order], order, strict=False)]  # a repeated one
        numbers = dict.fromkeys(("blocks", "pieces", "cut", "late", "params"), order) | {"cut_costs": behind}
        known = {name: getattr(self, name) for name in numbers if getattr(self, name)}
        deep: dict[str, Any] = {name: tuple(old[i] for i in numbers[name]) for name, old in known.items()}
        return replace(self, **deep)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        renamed = {"cut_costs" if name == "joins" else name: value for name, value in values.items()}  # until 0.1
        return msgspec.convert(renamed, cls)
