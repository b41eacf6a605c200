"""A skorch network on verdicts: soft labels and weights through scikit-learn's interface.

    python examples/skorch_net.py ROWS VERDICTS TEST

ROWS      the rows of the verdicts (text, id), as JSONL, CSV or Parquet
VERDICTS  the output of `probekit filter` or `probekit relabel`
TEST      other rows, with a `label` that you trust
"""

import sys

import numpy as np
import torch
from sklearn.feature_extraction.text import HashingVectorizer
from skorch import NeuralNet

from probekit import Verdicts, load_rows
from probekit.students.losses import xent

if len(sys.argv) != 4:
    sys.exit(__doc__)
FEATURES = 2**12


class Student(torch.nn.Sequential):
    """Layers on hashed words; the weights ride along with the features to reach the loss."""

    def forward(self, words, weight=None):
        """Logits (B, C) of word counts (B, FEATURES)."""
        return super().forward(words)


class WeakNet(NeuralNet):
    """A network that trains on class probabilities."""

    def get_loss(self, y_pred, y_true, X, training=False):
        """Weighted cross-entropy with soft targets."""
        return xent(y_pred, y_true, weight=X["weight"].to(y_pred.device))


torch.manual_seed(0)
verdicts = Verdicts.load(sys.argv[2])
training = verdicts.apply(list(load_rows(sys.argv[1]).records()))  # kept rows, with their labels
probs, weight = (np.array([row[n] for row in training], np.float32) for n in ("probs", "weight"))
vectorizer = HashingVectorizer(n_features=FEATURES, dtype=np.float32)
words = vectorizer.transform([row["text"] for row in training]).toarray()
layers = [torch.nn.Linear(FEATURES, 64), torch.nn.ReLU(), torch.nn.Linear(64, probs.shape[1])]
options = {"criterion": torch.nn.CrossEntropyLoss, "optimizer": torch.optim.Adam, "lr": 0.003}
net = WeakNet(Student(*layers), max_epochs=15, train_split=None, verbose=0, **options)
net.fit({"words": words, "weight": weight}, probs)

test = load_rows(sys.argv[3])
guess = net.predict({"words": vectorizer.transform(test.columns["text"]).toarray()}).argmax(axis=1)
right = np.mean(np.array(verdicts.classes)[guess] == [str(y) for y in test.columns["label"]])
print(f"skorch: {len(training)} rows, {right:.1%} of {len(test)} test rows right")
