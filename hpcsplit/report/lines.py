"""Numbers and records as the words of a line or the cells of a table; an absent number is "-"."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hpcsplit.run.records import EpochRecord, flat


@dataclass(frozen=True)
class Moment:
    """Where a run is between two steps; eta_s is None as long as nobody knows."""

    epoch: int
    phase: str
    step: int
    steps: int
    loss: float | None
    samples_per_s: float | None
    eta_s: float | None


def number(value: float | None, form: str, scale: float = 1) -> str:
    """The scaled value in the given format; an absent one is a dash of the same width."""
    width = form.partition(".")[0]
    return f"{'-':>{width if width.isdigit() else ''}}" if value is None else format(value * scale, form)


def clock(seconds: float | None) -> str:
    """Hours, minutes and seconds, with days in front where there are some (as Slurm writes them)."""
    if seconds is None:
        return "-"
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days}-" if days else "") + f"{hour:02d}:{minute:02d}:{second:02d}"


def position(epoch: int, total_epochs: int, phase: str) -> str:
    """Where the run is; epochs count from 0 inside and from 1 for the reader."""
    return f"epoch {epoch + 1:>{len(str(total_epochs))}}/{total_epochs} {phase:<8}"


def rate(samples_per_s: float | None) -> str:
    """Training speed; slow runs keep three digits."""
    return number(samples_per_s, "4.0f" if samples_per_s is None or samples_per_s >= 100 else "4.3g") + " samples/s"


def loss_text(loss: float | None) -> str:
    """A loss with four decimals, a very large one with its exponent."""
    return "loss " + number(loss, "6.4f" if loss is None or abs(loss) < 1000 else "6.2e")


def bn_differs(record: EpochRecord) -> bool:
    """Whether re-estimating BatchNorm statistics has changed the accuracy; without BatchNorm it never does."""
    return record.test_accuracy_bn not in (None, record.test_accuracy)


def epoch_line(record: EpochRecord, total_epochs: int, eta_s: float | None) -> str:
    """The line that a finished epoch leaves; L is the objective of methods that have one."""
    words = [position(record.epoch, total_epochs, record.phase), loss_text(record.loss)]
    if (objective := flat(record).get("terms.objective")) is not None:
        words.append(f"L {objective:9.4g}")
    if record.validation_accuracy is not None:
        words.append(f"held out {record.validation_accuracy * 100:5.2f} %")
    if record.test_accuracy is not None:
        words.append(f"test {record.test_accuracy * 100:5.2f} %")
    elif record.test_loss is not None:
        words.append(f"test {loss_text(record.test_loss)}")
    if record.test_perplexity is not None:
        words.append(f"perplexity {record.test_perplexity:.4g}")
    if record.test_r2 is not None:
        words.append(f"R² {record.test_r2:.4f}")
    if bn_differs(record):
        words.append(f"(bn {number(record.test_accuracy_bn, '5.2f', 100)} %)")
    if record.test_accuracy_ema is not None:
        words.append(f"(ema {number(record.test_accuracy_ema, '5.2f', 100)} %)")
    words += [rate(record.samples_per_s), number(record.wall_s, "5.1f") + " s", f"ETA {clock(eta_s)}"]
    if record.recomputed:
        words.append("aux recomputed")
    return "  ".join(words)


def progress_line(moment: Moment, total_epochs: int) -> str:
    """The line of an epoch that is still going on."""
    share = 100 * moment.step // max(1, moment.steps)
    step = f"step {moment.step:>{len(str(moment.steps))}}/{moment.steps} ({share:3d} %)"
    words = [position(moment.epoch, total_epochs, moment.phase), step, loss_text(moment.loss)]
    return "  ".join([*words, rate(moment.samples_per_s), f"ETA {clock(moment.eta_s)}"])


def shortened(text: str, most: int = 48) -> str:
    """A text of the user's with its middle left out where it is long."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 2 + 1 :]}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A line for each row, as Markdown has it; the first column stands on the left, the others on the right."""
    grid = Table(box=box.MARKDOWN)
    for column in columns:
        grid.add_column(Text(column), justify="right" if grid.columns else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*map(Text, row))
    return printed(grid, 10_000)  # columns: no cell is folded or cut


def printed(grid: Table, width: int, *, coloured: bool = False) -> str:
    """What rich makes of it, without empty lines and without spaces at the ends of lines."""
    text = io.StringIO()
    Console(file=text, width=width, force_terminal=coloured, highlight=False, emoji=False).print(grid)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip())
