"""An honest forecast of time series: `LSTMForecaster`, and ``python -m cupy_lstm forecast``.

From below: `spacing` and `axis` continue times, `panel` takes in series in every form,
`evaluation`, `baselines` and `backtest` are the yardsticks, `model` is what is trained, `norms` and
`sight` are what it sees, `settings` and `learning` train it, `storage` is for its file. On these
stands `cupy_lstm.estimators.forecaster`, and on that the command: `series` reads a table, `notes`,
`report`, `picture` and `files` write what was found, `options` and `command` talk with the user.
"""
