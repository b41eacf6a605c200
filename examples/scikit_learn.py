"""A scikit-learn classifier on a training set that probekit cleaned, beside the weak labels.

    python examples/scikit_learn.py ROWS VERDICTS TEST

ROWS      the rows of the verdicts (text, id), as JSONL, CSV or Parquet
VERDICTS  the output of `probekit filter` or `probekit relabel`
TEST      other rows, with a `label` that you trust

scikit-learn wants one class per row. A soft label becomes one copy of the row for every class,
weighted by its probability: the same loss, for any classifier that takes `sample_weight`.
"""

import sys
from dataclasses import replace

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from probekit import Verdicts, load_rows

if len(sys.argv) != 4:
    sys.exit(__doc__)


def train(rows):
    """Fit TF-IDF and logistic regression to rows with `text`, `probs` and `weight`."""
    probs = np.array([row["probs"] for row in rows])
    weight = np.array([row["weight"] for row in rows])
    row, number = np.nonzero(probs)
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(max_iter=1000))
    return model.fit(
        [rows[i]["text"] for i in row],
        number,
        logisticregression__sample_weight=weight[row] * probs[row, number],
    )


rows, test = load_rows(sys.argv[1]), load_rows(sys.argv[3])
verdicts = Verdicts.load(sys.argv[2])
unchanged = replace(verdicts, keep=np.ones(len(verdicts), bool), label=verdicts.weak)
truth = np.array([str(label) for label in test.columns["label"]])

for name, chosen in (("weak labels", unchanged), ("verdicts", verdicts)):
    training = chosen.apply(list(rows.records()))  # joined by id; refuses rows of another text
    guess = train(training).predict(test.columns["text"])
    right = np.mean(np.array(verdicts.classes)[guess] == truth)
    print(f"{name}: {len(training)} rows, {right:.1%} of {len(test)} test rows right")
