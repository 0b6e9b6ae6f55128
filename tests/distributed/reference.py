"""The plain way to train: one process, the whole batch in one forward pass, losses written out, torch's own SGD.

It shares the model, the data and the plan of the groups with accel_train, and nothing of its step, engines, losses,
clipping or loop.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from accel_train.config.multimodal_alignment import MultimodalAlignmentConfig
from accel_train.config.multimodal_llm import MultimodalLlmConfig
from accel_train.config.schema import RunConfig
from accel_train.config.scorer import ScorerConfig
from accel_train.config.sequence_classification import SequenceClassificationConfig
from accel_train.data.dataset import Dataset, UnreadableSample
from accel_train.data.order import Order
from accel_train.data.padding import join, padding_of
from accel_train.data.rated_images import open_rated_split
from accel_train.models.dropout import install_per_sample_dropout
from accel_train.optim.param_groups import GroupPlan, freeze, plan_groups, set_train_mode
from accel_train.randomness import forward_randomness, seed_everything
from accel_train.tasks.build import build_task
from accel_train.tasks.task import Batch, Task
from tests.distributed import toy
from tests.distributed.scenarios import LR_SCALES


@dataclass(slots=True)
class Reference:
    start: dict[str, Tensor]
    """Weights before the first step."""
    losses: list[float] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Of the first step, before clipping."""
    group_norms: list[dict[str, float]] = field(default_factory=list)
    """Of every step, before clipping."""
    weights: list[dict[str, Tensor]] = field(default_factory=list)
    """After every step."""
    buffers: dict[str, Tensor] = field(default_factory=dict)
    """After the last step."""


def train_plainly(config: RunConfig, *, micro_batch_size: int | None = None) -> Reference:
    """`micro_batch_size` cuts the forward pass, under the draws that fast dropout promises, and leaves one graph."""
    seed_everything(config.seed)
    task = build_task(config)
    model = task.build_model()
    plan = plan_groups(model, config.optimizer)
    freeze(model, plan)
    if config.dropout == "per_sample":
        install_per_sample_dropout(model)
    set_train_mode(model)
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(
        [
            {"params": [parameters[name] for name in group.param_names], "weight_decay": group.weight_decay}
            for group in plan.groups
        ],
        lr=0.0,
        momentum=config.optimizer.momentum,
    )
    task.prepare_training(torch.device("cpu"))
    dataset = task.build_dataset(config.data.train_split)
    data = config.data
    order = Order(
        len(dataset),
        data.global_batch_size,
        seed=config.seed,
        shuffle=data.shuffle,
        last_batch=data.last_batch,
        buckets=task.buckets(dataset),
    )
    reference = Reference(start=copy_of(parameters))
    for step in range(config.max_steps or 0):
        samples = readable(dataset, order.rows(step).tolist(), order.epoch(step))
        batch = task.add_to_batch(join(samples, padding_of(dataset)))
        size = micro_batch_size or data.global_batch_size
        parts = [
            # Each padded to its own longest sample, on which the draws of fast dropout depend.
            {name: column[start : start + size] for name, column in batch.items()}
            | join(samples[start : start + size], padding_of(dataset))
            for start in range(0, len(samples), size)
        ]
        outputs = forward(model, task, config, parts, step)
        optimizer.zero_grad()
        loss = plain_loss(outputs, batch, config)
        loss.backward()
        if step == 0:
            found = {name: p.grad for name, p in parameters.items() if p.requires_grad}
            reference.gradients = {name: grad.clone() for name, grad in found.items() if grad is not None}
        reference.losses.append(loss.item())
        reference.group_norms.append(group_norms(plan, parameters))
        clip(plan, parameters, config)
        for group, planned in zip(optimizer.param_groups, plan.groups, strict=True):
            group["lr"] = planned.lr * LR_SCALES[step]
        optimizer.step()
        reference.weights.append(copy_of(parameters))
    reference.buffers = dict(model.named_buffers())
    return reference


def copy_of(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def readable(dataset: Dataset, rows: list[int], epoch: int) -> list[Batch]:
    """The samples that can be read, each as a batch of one."""
    samples = []
    for row in rows:
        try:
            samples.append({name: value[None] for name, value in dataset.read(row, epoch).items()})
        except UnreadableSample:
            continue
    return samples


def forward(model: nn.Module, task: Task, config: RunConfig, parts: list[Batch], step: int) -> Batch:
    pieces: list[Batch] = []
    for part in parts:
        with forward_randomness(
            seed=config.seed,
            step=step,
            position=sum(len(piece["sample_id"]) for piece in parts[: len(pieces)]),
            sample_ids=part["sample_id"] if config.dropout == "per_sample" else None,
        ):
            pieces.append(model(part))
    return {
        name: pieces[0][name] if name in task.shared_outputs else torch.cat([piece[name] for piece in pieces])
        for name in pieces[0]
    }


def plain_loss(outputs: Batch, batch: Batch, config: RunConfig) -> Tensor:
    if config.task == toy.NAME:
        return (outputs["values"] - batch["target"])[batch["counts"]].square().mean()
    if isinstance(config, SequenceClassificationConfig):
        smoothing, likely = config.loss.label_smoothing, outputs["logits"].log_softmax(1)
        return -((1 - smoothing) * likely.gather(1, batch["label"][:, None]).mean() + smoothing * likely.mean())
    if isinstance(config, ScorerConfig):
        return plain_scorer_loss(outputs, batch, config)
    if isinstance(config, MultimodalAlignmentConfig):
        return plain_alignment_loss(outputs, batch)
    if isinstance(config, MultimodalLlmConfig):
        likely = outputs["logits"].log_softmax(2).gather(2, batch["input_ids"][:, :, None])[:, :, 0]
        return -likely[batch["is_target"].bool()].mean()
    if config.distillation is not None:
        alone = config.model_copy(update={"distillation": None})
        return plain_loss(outputs, batch, alone) + config.distillation.weight * imitation(outputs, batch)
    logits = outputs["image_features"] @ outputs["text_features"].T * outputs["logit_scale"]
    positive = torch.eye(len(logits)).bool()
    for key in (batch["image_key"], batch["text_key"]) if config.loss.positives == "shared" else ():
        positive |= key[:, None] == key[None, :]
    smoothing = config.loss.label_smoothing
    if config.loss.name == "sigmoid":
        target = (1 - smoothing) * positive + smoothing / 2
        logits = logits + outputs["logit_bias"]
        likely, unlikely = nn.functional.logsigmoid(logits), nn.functional.logsigmoid(-logits)
        return -(target * likely + (1 - target) * unlikely).sum() / len(logits)
    target = (1 - smoothing) * positive / positive.sum(1, keepdim=True) + smoothing / len(logits)
    return sum(-(target * side.log_softmax(1)).sum() for side in (logits, logits.T)) / (2 * len(logits))


def plain_alignment_loss(outputs: Batch, batch: Batch) -> Tensor:
    """The mean over both directions of all three pairs; rows that share either content are positives of each other."""
    terms = []
    for first, second in (("image", "text"), ("image", "audio"), ("audio", "text")):
        logits = outputs[f"{first}_features"] @ outputs[f"{second}_features"].T * outputs["logit_scale"]
        keys = batch[f"{first}_key"], batch[f"{second}_key"]
        positive = torch.stack([key[:, None] == key[None, :] for key in keys]).any(0)
        target = positive / positive.sum(1, keepdim=True)
        terms += [-(target * side.log_softmax(1)).sum(1).mean() for side in (logits, logits.T)]
    return torch.stack(terms).mean()


def plain_scorer_loss(outputs: Batch, batch: Batch, config: ScorerConfig) -> Tensor:
    """Half of each rating's loss, and a tenth of the cross-entropy between pairs and explanations where there are any."""
    means = open_rated_split(config.data.path, "train").means
    loss = torch.zeros(())
    for name in ("quality", "consistency"):
        e = config.loss.label_smoothing
        distance = (outputs[name] - (1 - e) * batch[name] - e * means[name]).abs()
        if config.loss.name == "mse":
            loss = loss + 0.5 * distance.square().mean()
        else:
            loss = loss + 0.5 * torch.where(distance < 0.1, distance.square() / 0.2, distance - 0.05).mean()
    if config.loss.explanation_weight == 0:
        return loss
    has, key = batch["has_explanation"], batch["explanation_key"]
    assert 1 < has.sum() < len(has)
    logits = outputs["pair_features"][has] @ outputs["explanation_features"][has].T * outputs["logit_scale"]
    same = (key[has][:, None] == key[has][None, :]).float()
    target = same / same.sum(1, keepdim=True)
    both = sum(-(target * side.log_softmax(1)).sum() for side in (logits, logits.T)) / (2 * len(logits))
    return loss + 0.1 * both


def imitation(outputs: Batch, batch: Batch) -> Tensor:
    """All three guides, for a teacher of another width."""
    loss = torch.zeros(())
    for kind in ("image", "text"):
        student, teacher = outputs[f"projected_{kind}_features"], batch[f"teacher_{kind}_features"]
        loss = loss + 1 - nn.functional.cosine_similarity(student, teacher).mean()
    ours = outputs["image_features"] @ outputs["text_features"].T * outputs["logit_scale"]
    theirs = batch["teacher_image_features"] @ batch["teacher_text_features"].T * batch["teacher_logit_scale"][0]
    for student, teacher in ((ours, theirs), (ours.T, theirs.T)):
        divergence = nn.functional.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="batchmean")
        loss = loss + divergence / 2
    return loss


def group_norms(plan: GroupPlan, parameters: dict[str, nn.Parameter]) -> dict[str, float]:
    norms = {}
    for group in plan.groups:
        squares = [parameters[name].grad.double().square().sum() for name in group.param_names]
        norms[group.name] = float(torch.stack(squares).sum().sqrt())
    return norms


def clip(plan: GroupPlan, parameters: dict[str, nn.Parameter], config: RunConfig) -> None:
    """Each tower by its own limit, then everything by the overall one."""
    for tower in config.optimizer.towers:
        own = [parameters[name] for group in plan.groups if group.tower == tower.name for name in group.param_names]
        if tower.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(own, tower.max_grad_norm)
    if config.optimizer.max_grad_norm is not None:
        nn.utils.clip_grad_norm_(list(parameters.values()), config.optimizer.max_grad_norm)
