"""Progress bars for work of known length."""

import rich.console
import rich.progress


def bar(console: rich.console.Console) -> rich.progress.Progress:
    """What is done, elapsed and remaining time; use as a context manager and add a task."""
    columns = (
        rich.progress.TextColumn("  {task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    return rich.progress.Progress(*columns, console=console)
