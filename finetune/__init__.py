"""Finetuning and its evaluation: one program a task, over what `wholegrain` provides."""
