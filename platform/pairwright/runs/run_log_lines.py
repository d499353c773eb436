"""A run's records -> the lines of its log."""

from collections.abc import Mapping
from typing import Any


def event_line(record: dict[str, Any]) -> str | None:
    """Return the line of the log for a record that is no figures; None for one that is not shown."""
    match record["kind"]:
        case "resumed":
            return f"resumed from the checkpoint of step {record['step']} of {record['num_steps']}"
        case "new_head":
            names = ", ".join(record["left_out"])
            return f"a new head is drawn, although the weights hold one under another name ({names}), which is left out"
        case "layout":
            return f"layout {record['layout']}: {record['reason']}"
        case "restart":
            return f"lost workers ({'; '.join(record['causes'])}); starting new ones"
        case "hang":
            return f"the run hangs: {record['reason']}; ending its workers, so that new ones start"
        case "skipped":
            return f"skipped {record['reason']}"
        case "notice":
            return f"after step {record['step']}: {record['reason']}"
        case "damaged":
            return f"a checkpoint is damaged and set aside: {record['reason']}"
        case "refused":
            return f"{record['reason']}; trying again in {record['seconds']:.0f} s"
        case "mended":
            return record["what"]
        case "best":
            return f"the checkpoint of step {record['step']} is the best so far: {format_figures(record)}"
    return None


def format_figures(record: Mapping[str, Any]) -> str:
    """Return a record's figures as one line, in the order in which they matter."""
    formats = {
        "loss": "loss {:.4f}",
        "log_loss": "log loss {:.4f}",
        "accuracy": "accuracy {:.3f}",
        "reward_margin": "reward margin {:+.3f}",
        "grad_norm": "grad norm {:.3g}",
        "learning_rate": "lr {:.3g}",
        "tokens_per_second": "{:,.0f} tokens/s",
    }
    return "  ".join(text.format(record[name]) for name, text in formats.items() if record.get(name) is not None)


def last_line(error: BaseException) -> str:
    """Return the last line of an exception's text: the cause, where Ray puts a remote traceback before it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
