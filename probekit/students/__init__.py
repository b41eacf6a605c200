"""Students: losses for weak labels, and finetuning on the Hugging Face Trainer."""
