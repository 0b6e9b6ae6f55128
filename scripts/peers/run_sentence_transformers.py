"""sentence-transformers' Trainer with its cached loss on a CLIP model: run_sentence_transformers.py TIMES SETTINGS

SETTINGS is a JSON file, see `workloads.py`. Its own pipeline would send every image through transformers' processor again in
each step; here images and captions are made into tensors once, before the first step, so that the loss is what is compared.
"""

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from timed import time_steps
from torch import Tensor, nn
from transformers import BertTokenizerFast, CLIPModel

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Towers(nn.Module):
    """The first and only module of its model: features of the images or of the captions of a mini-batch."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.clip = CLIPModel.from_pretrained(folder)
        # Its loss has a fixed temperature, and a parameter that never gets a gradient stops DDP.
        self.clip.logit_scale.requires_grad_(False)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        if "pixel_values" in features:
            found = self.clip.get_image_features(pixel_values=features["pixel_values"])
        else:
            found = self.clip.get_text_features(features["input_ids"], attention_mask=features["attention_mask"])
        pooled = found if isinstance(found, Tensor) else found.pooler_output
        return features | {"sentence_embedding": nn.functional.normalize(pooled, dim=-1)}


class FromMemory:
    """Collates rows of the dataset, which are numbers, to the columns `anchor` (images) and `positive` (captions)."""

    valid_label_columns = ("label", "score")

    def __init__(self, settings: dict[str, Any]) -> None:
        source, size = Path(settings["source"]), settings["image_size"]
        texts = [json.loads(line) for line in (source / "train_texts.jsonl").read_text(encoding="utf-8").splitlines()]
        pairs = [(name, record["text"]) for record in texts for name in record["image_ids"]]
        encoded = dict(
            line.split("\t") for line in (source / "train_imgs.tsv").read_text(encoding="utf-8").splitlines()
        )
        places = {name: place for place, name in enumerate(encoded)}
        decoded = [Image.open(io.BytesIO(base64.urlsafe_b64decode(image))).convert("RGB") for image in encoded.values()]
        pixels = np.stack([np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)) for image in decoded])
        self.images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        self.mean, self.std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
        self.image_of_pair = torch.tensor([places[str(name)] for name, _ in pairs])
        tokenizer = BertTokenizerFast(settings["vocabulary"])
        self.tokens = tokenizer(
            [text for _, text in pairs],
            truncation=True,
            padding=True,
            max_length=settings["text_length"],
            return_tensors="pt",
        )

    def __len__(self) -> int:
        return len(self.image_of_pair)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        chosen = torch.tensor([row["anchor"] for row in rows])
        pixels = (self.images[self.image_of_pair[chosen]] / 255 - self.mean) / self.std
        mask = self.tokens["attention_mask"][chosen]
        longest = int(mask.sum(1).max())  # what its own collator pads a batch to
        return {
            "anchor_pixel_values": pixels,
            "positive_input_ids": self.tokens["input_ids"][chosen, :longest],
            "positive_attention_mask": mask[:, :longest],
        }


def main(times: str, settings: dict[str, Any]) -> None:
    model = SentenceTransformer(modules=[Towers(settings["model"])], device="cpu")
    collator = FromMemory(settings)
    time_steps(times)
    loss = CachedMultipleNegativesRankingLoss(
        model,
        mini_batch_size=settings["mini_batch"],
        gather_across_devices=True,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            settings["output"],
            max_steps=settings["max_steps"],
            per_device_train_batch_size=settings["per_device_batch"],
            learning_rate=settings["learning_rate"],
            adam_beta1=settings["betas"][0],
            adam_beta2=settings["betas"][1],
            adam_epsilon=settings["eps"],
            weight_decay=settings["weight_decay"],
            warmup_steps=settings["warmup_steps"],
            max_grad_norm=0,
            ddp_find_unused_parameters=True,  # a mini-batch goes through one tower only
            dataloader_drop_last=True,
            dataloader_num_workers=0,
            use_cpu=True,
            ddp_backend="gloo",
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"anchor": list(range(len(collator))), "positive": list(range(len(collator)))}),
        loss=loss,
        data_collator=collator,
    )
    trainer.train()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
