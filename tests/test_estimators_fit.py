"""What an estimator learns from: forms of input, weights, labels, parts; and how it is told."""

import numpy as np
import pandas
import pytest
from sklearn.exceptions import NotFittedError

from cupy_lstm import CosineAnnealingDecay, EpochRecord, mse_loss
from cupy_lstm.estimators import LSTMClassifier, LSTMRegressor
from cupy_lstm.estimators.network import SequenceNetwork
from cupy_lstm.estimators.scaling import Scaling

SMALL = {"hidden_size": 12, "learning_rate": 0.02, "epochs": 30, "random_state": 0}
BRIEF = {"hidden_size": 4, "epochs": 3, "random_state": 0}

rng = np.random.default_rng(0)
LENGTHS = rng.integers(1, 11, 90)
PADDED = rng.standard_normal((90, 10, 2))
PARTS = [x[:n] for x, n in zip(PADDED, LENGTHS, strict=True)]
MEANS = np.array([x.mean(axis=0) for x in PARTS])
LABELS = np.where(MEANS[:, 0] > 0, "up", "down")


# --- forms of input ------------------------------------------------------------------------------


def test_a_list_is_a_padded_array_with_lengths():
    """Also for inputs that hold NaN beyond a length, and in the order in which they came."""
    junk = PADDED.copy()
    junk[np.arange(10) >= LENGTHS[:, None]] = np.nan
    one = LSTMRegressor(**SMALL).fit(PARTS, MEANS)
    other = LSTMRegressor(**SMALL).fit(junk, MEANS, sequence_length=LENGTHS)
    assert one.score(PARTS, MEANS) > 0.9
    found = one.predict(PARTS)
    assert np.array_equal(found, other.predict(junk, LENGTHS))
    alone = np.concatenate([one.predict([part]) for part in PARTS])
    # Sums of float32 in another order; predictions are of order one.
    assert abs(found - alone).max() <= 64 * np.finfo("float32").eps
    ragged = np.empty(90, object)
    ragged[:] = PARTS
    assert np.array_equal(found, one.predict(ragged))


def test_steps_of_one_value():
    table, y = PADDED[..., 0], MEANS[:, 0]
    one = LSTMRegressor(**BRIEF).fit(table, y)
    assert one.n_features_in_ == 10
    other = LSTMRegressor(**BRIEF).fit(PADDED[..., :1], y)
    assert other.n_features_in_ == 1
    assert np.array_equal(one.predict(table), other.predict(PADDED[..., :1]))
    third = LSTMRegressor(**BRIEF).fit(list(table), y)
    assert np.array_equal(one.predict(table), third.predict(list(table)))
    assert np.array_equal(one.predict(table), one.predict(table.tolist()))


def test_tables_of_pandas():
    frame = pandas.DataFrame(PADDED[..., 0]).rename(columns=str)
    y = pandas.Series(LABELS)
    classifier = LSTMClassifier(**BRIEF).fit(frame, y)
    assert classifier.feature_names_in_.tolist() == [str(k) for k in range(10)]
    direct = LSTMClassifier(**BRIEF).fit(PADDED[..., 0], LABELS)
    assert np.array_equal(classifier.predict_proba(frame), direct.predict_proba(PADDED[..., 0]))
    with pytest.raises(ValueError, match="feature names should match"):
        classifier.predict(frame.rename(columns={"0": "first"}))
    classifier.fit(PADDED, LABELS)
    assert not hasattr(classifier, "feature_names_in_")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_given_is_written(dtype):
    given = [PADDED.astype(dtype), MEANS.astype(dtype), np.ones(90), LENGTHS]
    kept = [array.copy() for array in given]
    for array in given:
        array.flags.writeable = False
    for standardize in (True, False):
        regressor = LSTMRegressor(**BRIEF, standardize=standardize).fit(*given)
        regressor.predict(given[0], given[3])
    assert all(np.array_equal(a, b) for a, b in zip(given, kept, strict=True))


# --- targets -------------------------------------------------------------------------------------


def test_one_value_and_several():
    flat, column, both = (
        LSTMRegressor(**SMALL).fit(PARTS, y) for y in (MEANS[:, 0], MEANS[:, :1], MEANS)
    )
    assert flat.predict(PARTS).shape == (90,)
    assert np.array_equal(flat.predict(PARTS)[:, None], column.predict(PARTS))
    assert both.predict(PARTS).shape == (90, 2) and both.n_outputs_ == 2


def test_units_of_targets_and_inputs_do_not_matter():
    """Standardised, they are the same up to the last digits that the shift costs float64."""
    near = np.round(MEANS, 3)
    one, other = LSTMRegressor(**SMALL), LSTMRegressor(**SMALL)
    one.fit(PADDED, near), other.fit(1024 * PADDED, 2.0**20 + 64 * near)
    found = (other.predict(1024 * PADDED) - 2.0**20) / 64
    assert abs(found - one.predict(PADDED)).max() <= 4 * np.spacing(2.0**20) / 64
    assert one.score(PADDED, near) > 0.5


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_predictions_have_the_dtype_of_the_targets(dtype):
    y = (8 * MEANS[:, 0]).astype(dtype)
    wanted = "float32" if dtype == "float32" else "float64"
    assert LSTMRegressor(**BRIEF).fit(PARTS, y).predict(PARTS).dtype == wanted


@pytest.mark.parametrize(
    "labels",
    [
        ["down", "up"], [b"down".decode(), "a long word"], [-1, 7], [False, True], [0.0, 1.0],
        np.array(["d", "u"], object),
    ],
    ids=str,
)  # fmt: skip
def test_labels_of_any_type(labels):
    labels = np.asarray(labels)
    y = labels[(MEANS[:, 0] > 0).astype(int)]
    classifier = LSTMClassifier(**SMALL).fit(PARTS, y)
    predicted = classifier.predict(PARTS)
    assert predicted.dtype == labels.dtype
    assert (predicted == y).mean() == classifier.score(PARTS, y) > 0.9
    assert np.array_equal(classifier.classes_, np.sort(labels))
    assert np.array_equal(classifier.classes_[classifier.predict_proba(PARTS).argmax(1)], predicted)


# --- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [LSTMRegressor, LSTMClassifier])
def test_samples_of_no_weight_do_not_count(kind):
    y = MEANS if kind is LSTMRegressor else LABELS
    bad = y.copy()
    bad[60:] = 1e3 if kind is LSTMRegressor else "down"
    X = np.concatenate([PADDED[:60], 100 + PADDED[60:]])
    weights = np.repeat([2.0, 0.0], [60, 30])
    options = SMALL | {"batch_size": 90, "validation_fraction": 0.0, "dtype": "float64"}
    weighted = kind(**options).fit(X, bad, weights)
    fewer = kind(**options).fit(X[:60], y[:60])
    say = "predict" if kind is LSTMRegressor else "predict_proba"
    found, expected = (getattr(one, say)(PADDED) for one in (weighted, fewer))
    # Thirty steps, each with sums of order one in another order.
    assert abs(found - expected).max() <= 30 * 8 * np.finfo("float64").eps


def test_balanced_classes():
    """Of two classes that cannot be told apart, the rare one gets its half of the probability."""
    noise = np.random.default_rng(1).standard_normal((200, 4, 1))
    y = np.repeat([0, 1], [180, 20])
    options = SMALL | {"learning_rate": 0.003, "epochs": 10, "patience": None}
    plain, balanced, dearer = (
        LSTMClassifier(**options, class_weight=weight).fit(noise, y).predict_proba(noise)[:, 1]
        for weight in (None, "balanced", {1: 9})
    )
    assert plain.mean() < 0.2 and abs(balanced.mean() - 0.5) < 0.1
    # Weights of the same ratio, scaled to the same mean.
    assert abs(balanced - dearer).max() <= 64 * np.finfo("float32").eps


def test_weights_count_by_their_ratios_in_a_fit_and_as_they_are_in_a_part():
    options = SMALL | {"batch_size": 90, "epochs": 1, "validation_fraction": 0}
    light, heavy = np.full(90, 0.25), np.ones(90)
    fits, parts = (
        [
            getattr(LSTMRegressor(**options), method)(PADDED, MEANS, weights).history_.loss[0]
            for weights in (light, heavy)
        ]
        for method in ("fit", "partial_fit")
    )
    assert fits[0] == fits[1] == parts[1] == 4 * parts[0]
    alike = LSTMRegressor(**options).fit(PADDED, MEANS, 0.25)
    assert alike.history_.loss[0] == fits[0]


# --- validation, stopping, being told ------------------------------------------------------------


def test_the_best_epoch_is_kept():
    """Noise can only be learnt by heart: soon the validation loss rises, and training ends."""
    y = np.random.default_rng(1).standard_normal(90)
    regressor = LSTMRegressor(
        32, epochs=200, patience=5, validation_fraction=0.3, learning_rate=0.02, random_state=0
    ).fit(PADDED, y)
    history = regressor.history_
    assert history.stopped_early and len(history.loss) == history.best_epoch + 1 + 5
    assert min(history.validation_loss) == history.validation_loss[history.best_epoch]


def test_without_a_validation_part_the_training_loss_is_watched():
    regressor = LSTMRegressor(**BRIEF, validation_fraction=0).fit(PADDED, MEANS)
    assert regressor.history_.validation_loss == [] and len(regressor.history_.loss) == 3


def test_callbacks_and_schedules():
    told = []
    regressor = LSTMRegressor(
        **BRIEF | {"epochs": 9},
        callbacks=[told.append, lambda record: record.epoch < 4],
        learning_rate=CosineAnnealingDecay(0.01, 20),
        loss=mse_loss,
    ).fit(PADDED, MEANS)
    assert [record.epoch for record in told] == [0, 1, 2, 3, 4]
    assert isinstance(told[0], EpochRecord)
    assert regressor.history_.learning_rate[-1] < regressor.history_.learning_rate[0]


def test_a_progress_bar(capsys):
    LSTMRegressor(**BRIEF, progress=True).fit(PADDED, MEANS)
    assert "3/3" in capsys.readouterr().err
    LSTMRegressor(**BRIEF).fit(PADDED, MEANS)
    assert not capsys.readouterr().err


def test_the_seed_decides():
    options = SMALL | {"dropout": 0.3, "num_layers": 2, "epochs": 3}
    one, same, other = (
        LSTMRegressor(**options | {"random_state": seed}).fit(PADDED, MEANS).predict(PADDED)
        for seed in (0, 0, np.random.RandomState(1))
    )
    assert np.array_equal(one, same) and not np.array_equal(one, other)


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_losses(loss):
    assert LSTMRegressor(**SMALL, loss=loss).fit(PARTS, MEANS).score(PARTS, MEANS) > 0.8


def test_a_picture_of_the_training():
    from matplotlib import pyplot

    regressor = LSTMRegressor(**BRIEF).fit(PADDED, MEANS)
    try:
        ax = regressor.plot_history()
        training, validation = (line.get_ydata() for line in ax.get_lines()[:2])
        assert training.tolist() == regressor.history_.loss
        assert validation.tolist() == regressor.history_.validation_loss
        assert regressor.plot_history(ax) is ax
    finally:
        pyplot.close("all")


# --- parts ---------------------------------------------------------------------------------------


def test_parts_one_after_another():
    classifier = LSTMClassifier(**SMALL)
    for _ in range(30):
        for part in (slice(0, 45), slice(45, 90)):
            classifier.partial_fit(PARTS[part], LABELS[part], classes=["up", "down", "still"])
    assert classifier.classes_.tolist() == ["down", "still", "up"]
    assert classifier.score(PARTS, LABELS) > 0.9
    assert len(classifier.history_.loss) == 60
    regressor = LSTMRegressor(**SMALL).fit(PARTS, MEANS)
    before = regressor.predict(PARTS)
    regressor.partial_fit(PARTS, MEANS + 3)
    assert (regressor.predict(PARTS) - before).mean() > 0


def test_passes_of_partial_fit_are_epochs_of_fit():
    """The same network, order and steps; dropout, too, goes on."""
    options = SMALL | {"epochs": 4, "patience": None, "validation_fraction": 0, "dropout": 0.2}
    whole, parts = LSTMRegressor(**options).fit(PADDED, MEANS), LSTMRegressor(**options)
    for _ in range(4):
        parts.partial_fit(PADDED, MEANS)
    assert np.array_equal(whole.predict(PADDED), parts.predict(PADDED))
    assert whole.history_.loss == parts.history_.loss


# --- the network and the scaling -----------------------------------------------------------------


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize(("num_layers", "dropout"), [(1, 0.0), (1, 0.5), (2, 0.5)])
def test_gradients_of_the_network(direction, num_layers, dropout):
    network = SequenceNetwork(
        2, 3, hidden_size=3, num_layers=num_layers, direction=direction, dropout=dropout,
        dtype="float64", seed=0,
    )  # fmt: skip
    x, lengths = PADDED[:4, :5], np.array([5, 2, 0, 3])
    weights = np.random.default_rng(0).standard_normal((4, 3))

    def value():
        network.lstm.dropout_calls = 0
        return (weights * network(x, lengths)).sum()

    value()
    assert network.lstm.dropout_calls == (1 if dropout else 0)
    network.backward(weights)
    step = np.finfo("float64").eps ** (1 / 3)
    for parameter in network.parameters():
        index = np.unravel_index(abs(parameter.grad).argmax(), parameter.shape)
        slopes = []
        for h in (step, 2 * step):
            moved = []
            for sign in (1, -1):
                kept = parameter.data.copy()
                parameter.data[index] += sign * h
                moved.append(value())
                parameter.set_value(kept)
            slopes.append((moved[0] - moved[1]) / (2 * h))
        allowed = abs(slopes[1] - slopes[0]) + 8 * np.finfo("float64").eps / step
        assert abs(parameter.grad[index] - slopes[0]) <= allowed, parameter.name


def test_dropout_is_for_training():
    network = SequenceNetwork(2, 3, hidden_size=64, dropout=0.5, dtype="float64", seed=0)
    x = PADDED[:8]
    still = network.eval()(x)
    assert np.array_equal(still, network(x))
    drawn = [network.train()(x) for _ in range(400)]
    # The mean of 400 draws, each off by about the size of the outputs.
    assert not np.array_equal(drawn[0], drawn[1])
    assert abs(np.mean(drawn, axis=0) - still).max() < 5 * np.std(drawn, axis=0).max() / 20


def test_scaling():
    values = np.array([[1e9, 5.0, 2.0], [1e9 + 2, 5.0, 4.0], [np.nan, 0.0, 9.0]])
    scaling = Scaling.of(values, np.array([2.0, 2.0, 0.0]))
    assert scaling.mean.tolist() == [1e9 + 1, 5, 3] and scaling.scale.tolist() == [1, 1, 1]
    assert scaling.apply(values[:2], "float32").tolist() == [[-1, 0, -1], [1, 0, 1]]
    assert scaling.undo(scaling.apply(values[:2], "float32"), "float64").tolist() == [
        [1e9, 5, 2], [1e9 + 2, 5, 4],
    ]  # fmt: skip
    long = np.random.default_rng(0).standard_normal((3 * 2**20 // 8, 4, 2))  # several blocks
    found, weights = Scaling.of(long, np.ones(long.shape[:2])), 1 / len(long) / 4
    rounding = len(long) * np.finfo("float64").eps  # of sums of terms of order 1 / len(long)
    assert abs(found.mean - weights * long.sum(axis=(0, 1))).max() <= rounding
    assert abs(found.scale - long.std(axis=(0, 1))).max() <= rounding
    constant = Scaling.of(np.full((7, 1), 0.1, "float32"), np.ones(7))
    assert constant.scale.tolist() == [1]


def test_not_fitted_yet():
    for call in ("predict", "score", "save", "plot_history", "to"):
        arguments = {"score": (PADDED, LABELS), "plot_history": ()}.get(call, (PADDED,))
        with pytest.raises(NotFittedError):
            getattr(LSTMClassifier(), call)(*arguments)
