"""A model that calls everything a step of training calls, on CuPy arrays."""

from cupy_lstm import LSTM, Adam, ClipGradByGlobalNorm, Linear, softmax_cross_entropy


class Model:
    """Two bidirectional layers with dropout, projection and lengths, and a head."""

    def __init__(self, cupy, dtype):
        options = {"dtype": dtype, "xp": "cupy", "seed": 0}
        self.lstm = LSTM(4, 8, 2, "bidirect", False, 0.5, proj_size=3, **options)
        self.head = Linear(6, 5, **options)
        parameters = self.lstm.parameters() + self.head.parameters()
        clip = ClipGradByGlobalNorm(1.0)
        self.adam = Adam(1e-3, parameters, weight_decay=1e-3, grad_clip=clip, loss_scale=2.0)
        self.x = cupy.ones((3, 6, 4), dtype)
        self.lengths = cupy.array([6, 2, 0])
        self.target = cupy.ones((3, 6, 5), dtype)
        self.labels = cupy.zeros((3, 6), "int64")

    def step(self, loss):
        """Forward, loss, backward and an update."""
        y, _ = self.lstm(self.x, None, self.lengths)
        value, gradient = loss(self.head(y), self.target)
        self.adam.clear_grad()
        self.lstm.backward(self.head.backward(gradient))
        self.adam.step()
        return value

    def classify(self):
        """Forward and the loss of a classification."""
        return softmax_cross_entropy(self.head(self.lstm(self.x)[0]), self.labels)
