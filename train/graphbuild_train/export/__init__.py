"""What a run leaves for others: LoRA files in several forms, a model card."""
