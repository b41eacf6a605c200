"""The Hugging Face Trainer on verdicts, with any of probekit's losses.

    python examples/hf_trainer.py ROWS VERDICTS TEST MODEL OUTPUT [LOSS]

ROWS      the rows of the verdicts (text, id), as JSONL, CSV or Parquet
VERDICTS  the output of `probekit filter` or `probekit relabel`
TEST      other rows, with a `label` that you trust
MODEL     the model to finetune, a folder or a name on the hub; OUTPUT: folder for the student
LOSS      xent, logconf, entropy, … (docs/methods/students.md)
"""

import sys

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, pipeline
from transformers.training_args import TrainingArguments

from probekit import Verdicts, load_rows
from probekit.students.losses import make_loss

if len(sys.argv) not in (6, 7):
    sys.exit(__doc__)
rows, verdicts, test = load_rows(sys.argv[1]), Verdicts.load(sys.argv[2]), load_rows(sys.argv[3])
checkpoint, output, *name = sys.argv[4:]


class Student(Trainer):
    """Trains on class probabilities and weights, which go by their own names, not `labels`."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """One of probekit's losses instead of the model's own."""
        probs, weight = inputs.pop("probs"), inputs.pop("weight")
        outputs = model(**inputs)
        value = loss(outputs.logits, probs, weight=weight, step=self.state.global_step)
        return (value, outputs) if return_outputs else value


torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(checkpoint)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
names = dict(enumerate(verdicts.classes))
model = AutoModelForSequenceClassification.from_pretrained(checkpoint, id2label=names)
model.config.pad_token_id = tokenizer.pad_token_id
cut = {"truncation": True, "max_length": 128}
training = [
    {**tokenizer(row["text"], **cut), "probs": row["probs"], "weight": row["weight"]}
    for row in verdicts.apply(list(rows.records()))  # kept rows, with their labels
]
options = TrainingArguments(output, remove_unused_columns=False, report_to="none")
trainer = Student(model, options, train_dataset=training, processing_class=tokenizer)
steps = int(options.num_train_epochs) * len(trainer.get_train_dataloader())
targets = [row["probs"] for row in training]
loss = make_loss(*name or ["xent"], total_steps=steps, weak=targets)
trainer.train()
trainer.save_model()

student = pipeline("text-classification", model=model, tokenizer=tokenizer)
guess = [answer["label"] for answer in student(list(test.columns["text"]), **cut)]
right = sum(a == str(b) for a, b in zip(guess, test.columns["label"], strict=True)) / len(test)
print(f"{loss.name}: {len(training)} rows, {right:.1%} of {len(test)} test rows right")
