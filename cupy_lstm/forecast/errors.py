"""The one error of the forecast command: something the user can put right."""


class DataError(ValueError):
    """The input, a model file or an option does not fit; the message is one clear sentence."""
