"""transformers' Trainer on texts with labels: run_hf_trainer.py TIMES SETTINGS

SETTINGS is a JSON file that `workloads.py` writes.
"""

import json
import sys
from pathlib import Path
from typing import Any

from timed import time_steps
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    LlamaConfig,
    LlamaForSequenceClassification,
    Trainer,
    TrainingArguments,
)

OPTIMIZER: dict[str, Any] = {
    "learning_rate": 2e-3,
    "adam_beta1": 0.9,
    "adam_beta2": 0.98,
    "adam_epsilon": 1e-6,
    "weight_decay": 0.05,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
}


def main(times: str, settings: dict[str, Any]) -> None:
    lines = [
        line.split(" ||| ", 1) for line in Path(settings["texts"]).read_text(encoding="utf-8").splitlines() if line
    ]
    labels = sorted({label for label, _ in lines})
    tokenizer = AutoTokenizer.from_pretrained(settings["tokenizer"])
    tokens = tokenizer([text for _, text in lines], truncation=True, max_length=settings["max_text_length"])[
        "input_ids"
    ]
    rows = [{"input_ids": ids, "labels": labels.index(label)} for ids, (label, _) in zip(tokens, lines, strict=True)]
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_labels=len(labels), pad_token_id=tokenizer.pad_token_id, **settings["model"]
    )
    time_steps(times)
    trainer = Trainer(
        LlamaForSequenceClassification(config),
        TrainingArguments(
            settings["output"],
            max_steps=settings["max_steps"],
            per_device_train_batch_size=settings["per_device_batch"],
            train_sampling_strategy=settings["sampling"],
            dataloader_drop_last=True,
            dataloader_num_workers=0,
            use_cpu=True,
            ddp_backend="gloo",
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **OPTIMIZER,
        ),
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
