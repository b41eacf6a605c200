"""A plain PyTorch loop on verdicts: soft targets, weights, and any of probekit's losses.

    python examples/pytorch.py ROWS VERDICTS TEST [LOSS]

ROWS      the rows of the verdicts (text, id), as JSONL, CSV or Parquet
VERDICTS  the output of `probekit filter` or `probekit relabel`
TEST      other rows, with a `label` that you trust
LOSS      xent, logconf, entropy, … (docs/methods/students.md)
"""

import re
import sys
import zlib

import torch
from torch.utils.data import DataLoader

from probekit import Verdicts, load_rows
from probekit.students.losses import make_loss

if len(sys.argv) not in (4, 5):
    sys.exit(__doc__)
EPOCHS, BUCKETS = 20, 2**16


def encode(texts):
    """Numbers of the hashed words of all texts in one row, and where each text begins."""
    words = [[zlib.crc32(w.encode()) % BUCKETS for w in re.findall(r"\w+", t)] for t in texts]
    begins = torch.tensor([0, *map(len, words)]).cumsum(0)[:-1]
    return torch.tensor([w for text in words for w in text], dtype=torch.long), begins


def collate(rows):
    """A batch: words, soft targets (B, C) and weights (B,)."""
    targets, weight = (torch.tensor([row[name] for row in rows]) for name in ("probs", "weight"))
    return encode([row["text"] for row in rows]), targets, weight


torch.manual_seed(0)
verdicts = Verdicts.load(sys.argv[2])
training = verdicts.apply(list(load_rows(sys.argv[1]).records()))  # kept rows, with their labels
batches = DataLoader(training, batch_size=32, shuffle=True, collate_fn=collate)
name = sys.argv[4] if len(sys.argv) == 5 else "xent"
targets = [row["probs"] for row in training]
loss = make_loss(name, total_steps=EPOCHS * len(batches), weak=targets)
model = torch.nn.EmbeddingBag(BUCKETS, len(verdicts.classes), mode="sum")
torch.nn.init.zeros_(model.weight)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

for step, (words, soft, weight) in enumerate(batch for _ in range(EPOCHS) for batch in batches):
    value = loss(model(*words), soft, weight=weight, step=step)
    optimizer.zero_grad()
    value.backward()
    optimizer.step()

test = load_rows(sys.argv[3])
guess = model(*encode(test.columns["text"])).argmax(dim=1).tolist()
pairs = zip(guess, test.columns["label"], strict=True)
right = sum(verdicts.classes[c] == str(label) for c, label in pairs) / len(test)
print(f"{name}: {len(training)} rows, {right:.1%} of {len(test)} test rows right")
