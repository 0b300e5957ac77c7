"""The picture of a training: losses over epochs."""

from typing import Any

from sklearn.utils.validation import check_is_fitted

from cupy_lstm.history import History
from cupy_lstm.io.optional import optional_module

# From the palette of Okabe and Ito, which readers with any kind of colour vision tell apart.
TRAINING, VALIDATION = "#0072B2", "#D55E00"


def draw_history(history: History, ax: Any = None) -> Any:
    """Draw the losses on axes of matplotlib, by default new ones of pyplot; return the axes."""
    if ax is None:
        pyplot = optional_module("matplotlib.pyplot", "plot_history", "'cupy_lstm[sklearn]'")
        _, ax = pyplot.subplots(layout="constrained")
    watched, name = (
        (history.validation_loss, "validation")
        if history.validation_loss
        else (history.loss, "training")
    )
    ax.plot(history.loss, color=TRAINING, label="training")
    if history.validation_loss:
        ax.plot(history.validation_loss, color=VALIDATION, label="validation")
    best = history.best_epoch
    if best < len(watched):
        colour = VALIDATION if history.validation_loss else TRAINING
        ax.plot(best, watched[best], "o", color=colour, label=f"best {name}, epoch {best}")
    ax.set(xlabel="epoch", ylabel="loss")
    losses = history.loss + history.validation_loss
    if max(losses) > 10 * min(losses) > 0:
        ax.set_yscale("log")
    ax.grid(alpha=0.3, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return ax


class HistoryPlot:
    """What draws the `history_` of an estimator."""

    history_: History

    def plot_history(self, ax: Any = None) -> Any:
        """Draw the losses of the training over its epochs.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to; default: a new figure of pyplot.

        Returns
        -------
        Axes

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        NotFittedError
            If nothing was learnt yet.
        """
        check_is_fitted(self, "history_")
        return draw_history(self.history_, ax)
