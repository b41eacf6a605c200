"""TRL's RewardTrainer on preference pairs that probekit cleaned.

    python examples/trl_reward.py PAIRS VERDICTS TEST MODEL OUTPUT

PAIRS     rows whose `text` and `text_pair` are a dialogue with one and with the other completion
VERDICTS  the output of `probekit filter` or `probekit relabel` about them: class 1 (the last one)
          where the second completion is the better one
TEST      other pairs, with a `label` that you trust: the same classes
MODEL     the model to finetune, a folder or a name on the hub; OUTPUT: folder for the reward model

Dropped pairs are left out; relabelled pairs are swapped.
"""

import sys

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from probekit import Verdicts, load_rows

if len(sys.argv) != 6:
    sys.exit(__doc__)
pairs, verdicts, test = load_rows(sys.argv[1]), Verdicts.load(sys.argv[2]), load_rows(sys.argv[3])
checkpoint, output = sys.argv[4:]


def preferences(rows):
    """TRL's form: the dialogue that is preferred, and the other one."""
    chosen = []
    for row in rows:
        second = verdicts.classes.index(str(row["label"]))
        dialogues = row["text"], row["text_pair"]
        chosen.append({"chosen": dialogues[second], "rejected": dialogues[1 - second]})
    return Dataset.from_list(chosen)


training = preferences(verdicts.apply(list(pairs.records())))  # kept pairs, with their labels
torch.manual_seed(0)  # the head is new
tokenizer = AutoTokenizer.from_pretrained(checkpoint)
tokenizer.eos_token = tokenizer.eos_token or tokenizer.sep_token  # TRL ends every text with it
gpu = torch.cuda.is_available()
options = RewardConfig(output, learning_rate=1e-4, max_length=512, bf16=gpu, report_to="none")
trainer = RewardTrainer(
    AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=1),
    options,
    train_dataset=training,
    eval_dataset=preferences(test.records()),
    processing_class=tokenizer,
)
before = trainer.evaluate()["eval_accuracy"]
trainer.train()
trainer.save_model()
after = trainer.evaluate()["eval_accuracy"]
print(f"{len(training)} pairs; of {len(test)} test pairs right: {before:.1%} -> {after:.1%}")
