"""Zero-shot classification: which class name's text feature is nearest to an image's (Radford et al. 2021, section 3.1)."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from accel_train.config.contrastive import ContrastiveConfig
from accel_train.data.dataset import Dataset
from accel_train.data.loose_files import ImageFiles, TextLines, find_images
from accel_train.data.pairs import caption_tokenizer
from accel_train.engine.build import build_engine
from accel_train.errors import UserError
from accel_train.metrics.classification import accuracy_at, mean_per_class_accuracy
from accel_train.prediction_file import check_prediction_file, write_prediction_rows
from accel_train.progress import score_table
from accel_train.tasks.contrastive import ContrastiveTask
from accel_train.tools.evaluation import evaluate_with_bar
from accel_train.tools.prompts import PLACE, ImageClass, name_classes, read_templates
from accel_train.tools.trained import open_config, open_trained

ACCURACY_AT = (1, 5)
RANKS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Problem:
    """Images in folders, one for each class, and the prompts that describe the classes."""

    folder: str
    images: list[str]
    """Paths below the folder, in row order."""
    labels: Tensor
    """(num_images,) int64, a class for each image."""
    classes: list[ImageClass]
    templates_from: str
    prompts: list[str]
    """Every template with every name of every class."""
    prompt_class: Tensor
    """(num_prompts,) int64, the class that a prompt describes."""


class ZeroShot(ContrastiveTask):
    """A trained contrastive model with other inputs to evaluate and other scores."""

    def __init__(self, config: ContrastiveConfig, problem: Problem) -> None:
        super().__init__(config)
        self.problem = problem
        ks = [k for k in ACCURACY_AT if k <= len(problem.classes)]
        self.score_names = (*(f"accuracy@{k}" for k in ks), "mean_per_class_accuracy")

    def evaluation_sets(self, split: str) -> list[Dataset]:
        problem = self.problem
        images = ImageFiles(problem.folder, problem.images, self.config.data)
        return [TextLines(problem.prompts, caption_tokenizer(self.config.data)), images]

    def scores(self, predictions: dict[str, Tensor], split: str) -> dict[str, float]:
        similarity = class_similarity(predictions, self.problem)
        try:
            accuracy = accuracy_at(similarity, self.problem.labels, ks=ACCURACY_AT)
        except ValueError as error:
            raise UserError(f"{self.problem.folder}: its images can't be classified, {error}.") from error
        scores = {f"accuracy@{k}": value for k, value in accuracy.items()}
        return scores | {"mean_per_class_accuracy": mean_per_class_accuracy(similarity, self.problem.labels)}


def zero_shot_command(
    source: str,
    folder: str,
    *,
    class_names: str | None,
    templates: str | None,
    predictions: str | None,
    overrides: list[str],
    as_json: bool,
    checkpoint: str | None,
) -> dict[str, float]:
    """Classifies over all ranks and prints a table or JSON; writes the predictions if asked. Returns the scores."""
    if predictions is not None:
        check_prediction_file(Path(predictions))
    config = open_config(source, overrides)
    if not isinstance(config, ContrastiveConfig):
        raise UserError(f"--zero-shot compares images with texts; the task {config.task} does not.")
    problem = read_problem(folder, class_names, templates)
    engine = build_engine(config, for_evaluation=True)
    try:
        trained = engine.together(lambda: open_trained(source, config, checkpoint=checkpoint))
        assert isinstance(trained.task.config, ContrastiveConfig)
        engine.hold(trained.model, precision=config.precision)
        outcome = evaluate_with_bar(engine, ZeroShot(trained.task.config, problem), folder, config)
        if engine.is_main:
            if predictions is not None:
                rows = prediction_rows(class_similarity(outcome.predictions, problem), problem)
                write_prediction_rows(Path(predictions), rows)
            counts = {
                "num_images": len(problem.images),
                "num_classes": len(problem.classes),
                "num_prompts": len(problem.prompts),
            }
            if as_json:
                about = {"source": trained.source, "step": trained.step, "zero_shot": folder, **counts}
                print(json.dumps(about | {"templates": problem.templates_from, "scores": outcome.scores}, indent=1))
            else:
                Console(highlight=False).print(score_table(outcome.scores, f"{trained.source} on {folder}, zero-shot"))
                listed = ", ".join(f"{count} {name.removeprefix('num_')}" for name, count in counts.items())
                print(f"{listed}; templates: {problem.templates_from}")
                if predictions is not None:
                    print(f"predictions: {predictions}")
    finally:
        engine.close()
    return outcome.scores


def read_problem(folder: str, class_names: str | None, templates: str | None) -> Problem:
    """The images below `folder`, whose first path part is their class. Raises UserError."""
    images = find_images(folder)
    if loose := [image for image in images if "/" not in image]:
        raise UserError(f"{folder}: {loose[0]!r} lies in no subfolder; there must be one for each class.")
    folders = sorted({image.partition("/")[0] for image in images})
    empty = {path.name for path in Path(folder).iterdir() if path.is_dir() and not path.name.startswith(".")}
    if empty := empty - set(folders):
        raise UserError(f"{folder}: the subfolder {min(empty)!r} holds no images. Remove it, or put images there.")
    if len(folders) < 2:
        raise UserError(
            f"{folder} has one subfolder, {folders[0]!r}; there must be at least two classes to tell apart."
        )
    classes = name_classes(folders, class_names)
    templates_from, listed = read_templates(templates, classes)
    prompts, prompt_class = [], []
    for index, one in enumerate(classes):
        for name in one.names:
            prompts += [template.replace(PLACE, name) for template in listed]
            prompt_class += [index] * len(listed)
    labels = torch.tensor([folders.index(image.partition("/")[0]) for image in images])
    return Problem(folder, images, labels, classes, templates_from, prompts, torch.tensor(prompt_class))


def class_similarity(predictions: dict[str, Tensor], problem: Problem) -> Tensor:
    """Cosine of every image with every class, (num_images, num_classes).

    A class's feature is the mean of the unit features of its prompts, scaled to unit length again.
    """
    texts = predictions["text_features"][predictions["text_row"].argsort()]
    images = predictions["image_features"][predictions["image_row"].argsort()]
    sums = texts.new_zeros(len(problem.classes), texts.shape[1]).index_add_(0, problem.prompt_class, texts)
    return images @ F.normalize(sums, dim=-1).T


def prediction_rows(similarity: Tensor, problem: Problem) -> Iterator[dict[str, str]]:
    """For each image its path, true and predicted class, and the best classes with their cosines."""
    best = similarity.topk(min(RANKS_SHOWN, len(problem.classes)))
    folders = [one.folder for one in problem.classes]
    for image, label, scores, places in zip(
        problem.images, problem.labels.tolist(), best.values.tolist(), best.indices.tolist(), strict=True
    ):
        row = {"image": str(image), "true": folders[label], "predicted": folders[places[0]]}
        for rank, (place, score) in enumerate(zip(places, scores, strict=True), 1):
            row |= {f"class_{rank}": folders[place], f"score_{rank}": f"{score:.6f}"}
        yield row
