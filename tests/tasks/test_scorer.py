"""The task `scorer`: its losses and scores, what it starts from, and a folder that scores alike."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from accel_train.config.scorer import ScorerConfig
from accel_train.data.rated_images import RatedImageDataset
from accel_train.data.readers.ratings import RatingColumns
from accel_train.errors import CheckFailed, UserError
from accel_train.models.scorer import Scorer
from accel_train.tasks.contrastive import ContrastiveTask
from accel_train.tasks.scorer import ScorerTask
from accel_train.tools.imports.ratings import import_ratings
from tests.rated import write_ratings

Make = Callable[..., ScorerTask]
CLIP: dict[str, Any] = {"type": "chinese_clip", "size": "tiny", "config": {"text_config": {"vocab_size": 60}}}


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 rows with an explanation in every second one."""
    folder = tmp_path_factory.mktemp("rated")
    write_ratings(folder / "source")
    import_ratings(
        str(folder / "source"),
        str(folder / "dataset"),
        columns=RatingColumns(),
        rating_range=(1.0, 5.0),
        build_tokenizer=60,
        show_progress=False,
    )
    return folder / "dataset"


@pytest.fixture
def make_task(rated: Path) -> Make:
    def make(loss: dict[str, Any] | None = None, **model: Any) -> ScorerTask:
        data = {"image_size": 32, "max_text_length": 10, "global_batch_size": 8, "micro_batch_size": 8}
        torch.manual_seed(0)
        return ScorerTask(
            ScorerConfig.model_validate(
                {
                    "run_dir": "runs/test",
                    "task": "scorer",
                    "max_steps": 1,
                    "model": {"clip": CLIP} | model,
                    "loss": loss or {},
                    "data": {"path": str(rated), "tokenizer": "dataset:tokenizer", "valid_split": "train"} | data,
                    "optimizer": {"towers": [{"name": "all", "layers": [".*"], "lr": 1e-3}]},
                }
            )
        )

    return make


def batch_of(task: ScorerTask, rows: range = range(8)) -> dict[str, Tensor]:
    dataset = task.build_dataset("train")
    samples = [dataset.read(row, 0) for row in rows]
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def test_columns_of_a_training_sample(make_task: Make) -> None:
    batch = batch_of(make_task())
    assert batch["pixel_values"].shape == (8, 3, 32, 32) and batch["pixel_values"].dtype == torch.uint8
    assert batch["has_explanation"].tolist() == [True, False] * 4
    assert batch["explanation_ids"].shape == batch["input_ids"].shape == (8, 10)
    assert bool((batch["quality"] >= 0).all() and (batch["quality"] <= 1).all())
    assert set(batch_of(make_task({"explanation_weight": 0.0}))) == {
        "pixel_values",
        "input_ids",
        "attention_mask",
        "quality",
        "consistency",
        "sample_id",
    }


def test_explanations_alone_compare_the_whole_batch(make_task: Make) -> None:
    assert make_task().compares_whole_batch
    assert not make_task({"explanation_weight": 0.0}).compares_whole_batch


def test_the_temperature_has_its_limit_where_it_learns(make_task: Make) -> None:
    assert make_task().weight_limits() == {"clip.logit_scale": pytest.approx(math.log(100))}
    assert make_task({"explanation_weight": 0.0}).weight_limits() == {}


def test_losses_are_weighted_and_their_columns_declared(make_task: Make) -> None:
    task = make_task({"quality_weight": 0.7, "consistency_weight": 0.2, "label_smoothing": 0.5})
    batch = batch_of(task)
    outputs = task.build_model().eval()(batch)
    losses = task.losses(outputs, {name: batch[name] for name in task.loss_columns})
    dataset = task.build_dataset("train")
    assert isinstance(dataset, RatedImageDataset)
    for name, weight in (("quality", 0.7), ("consistency", 0.2)):
        target = 0.5 * batch[name] + 0.5 * dataset.split.means[name]
        assert losses[name].item() == pytest.approx(weight * (outputs[name] - target).square().mean().item(), rel=1e-5)
    assert losses["explanation"].item() > 0


def evaluated(task: ScorerTask, model: torch.nn.Module) -> dict[str, Tensor]:
    (dataset,) = task.evaluation_sets("train")
    samples = [dataset.read(row, None) for row in range(len(dataset))]
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    with torch.no_grad():
        return task.predictions(model.eval()(batch), batch)


def test_scores_are_those_of_scipy(make_task: Make) -> None:
    task = make_task(residual=None)
    found = evaluated(task, task.build_model())
    scores = task.scores(found, "train")
    assert set(scores) == {*task.score_names, "loss"} and task.best_score == "srocc"
    for name in ("quality", "consistency"):
        pair = found[name].numpy(), found[f"{name}_rating"].numpy()
        assert scores[f"srocc_{name}"] == pytest.approx(stats.spearmanr(*pair).statistic, abs=1e-9)
        assert scores[f"plcc_{name}"] == pytest.approx(stats.pearsonr(*pair).statistic, abs=1e-5)
        assert scores[f"krocc_{name}"] == pytest.approx(stats.kendalltau(*pair).statistic, abs=1e-9)
    assert scores["srocc"] == pytest.approx((scores["srocc_quality"] + scores["srocc_consistency"]) / 2)


def test_an_untrained_scorer_has_no_opinion_of_quality(make_task: Make) -> None:
    task = make_task()
    assert task.scores(evaluated(task, task.build_model()), "train")["srocc_quality"] == 0


def test_what_can_not_be_scored(make_task: Make) -> None:
    task = make_task()
    found = evaluated(task, task.build_model())
    with pytest.raises(CheckFailed, match="quality that is not a finite number"):
        task.scores(found | {"quality": torch.full((24,), torch.nan)}, "train")
    with pytest.raises(UserError, match="split train: every rating of consistency is the same"):
        task.scores(found | {"consistency_rating": torch.ones(24)}, "train")


def test_a_split_without_several_ratings_is_named_before_training(tmp_path: Path, make_task: Make) -> None:
    write_ratings(tmp_path / "source")
    table = tmp_path / "source" / "ratings.csv"
    first, *lines = table.read_text().splitlines()
    fields = [line.split(",") for line in lines]
    table.write_text("\n".join([first, *(",".join([*row[:2], "3", *row[3:]]) for row in fields)]))
    out = str(tmp_path / "out")
    import_ratings(
        str(table), out, columns=RatingColumns(), rating_range=(1, 5), build_tokenizer=60, show_progress=False
    )
    task = make_task()
    assert task.check_splits(None, ["train"]) == []
    data = task.config.data.model_copy(update={"path": out})
    flat = ScorerTask(task.config.model_copy(update={"data": data}))
    with pytest.raises(UserError, match="split train: every rating of quality is the same"):
        flat.check_splits(None, ["train"])


def test_prediction_rows_are_on_the_scale_of_the_source(make_task: Make) -> None:
    task = make_task()
    found = evaluated(task, task.build_model())
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    rows = list(task.prediction_rows({name: column[order] for name, column in found.items()}, "train"))
    assert [row["image_id"] for row in rows] == [f"{index:03d}.png" for index in range(24)]
    assert list(rows[0]) == [
        "image_id",
        "prompt",
        "quality_rated",
        "quality_predicted",
        "consistency_rated",
        "consistency_predicted",
    ]
    assert all(row["consistency_rated"] in (4.5, 1.5) for row in rows)
    assert all(row["quality_rated"] == round(row["quality_rated"], 3) for row in rows)  # as in the source
    assert rows[0]["quality_predicted"] == pytest.approx(3)


def test_a_contrastive_run_becomes_the_clip_and_heads_stay(make_task: Make) -> None:
    task = make_task()
    model = task.build_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    other = ContrastiveTask(task.config.clip_config()).build_model()
    weights, remark = task.starting_weights(dict(other.state_dict()), model)
    model.load_state_dict(weights)
    assert "into clip.*" in remark and "heads start afresh" in remark
    for name, value in model.state_dict().items():
        wanted = other.state_dict()[name.removeprefix("clip.")] if name.startswith("clip.") else before[name]
        torch.testing.assert_close(value, wanted)
    own, remark = task.starting_weights(before, model)
    assert own is before and remark == ""


@pytest.mark.parametrize(
    "heads",
    [
        {"quality_layers": 2},
        {"residual": None, "refinement": {"num_layers": 1, "num_heads": 2, "width": 8}},
        {"residual": None},
    ],
    ids=["residual", "refinement", "neither"],
)
def test_an_exported_folder_scores_alike(make_task: Make, tmp_path: Path, heads: dict[str, Any]) -> None:
    task = make_task(**heads)
    model = task.build_model()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    wanted = evaluated(task, model)
    task.export(model, str(tmp_path / "export"))
    config = ScorerTask.config_of_export(task.config, str(tmp_path / "export"))
    torch.manual_seed(5)
    opened = ScorerTask(config)
    again = opened.build_model()
    opened.load_pretrained(again, str(tmp_path / "export"))
    for name, column in evaluated(opened, again).items():
        torch.testing.assert_close(column, wanted[name], rtol=0, atol=0)


def test_a_clip_folder_alone_fills_the_clip(make_task: Make, tmp_path: Path) -> None:
    task = make_task()
    clip = ContrastiveTask(task.config.clip_config())
    torch.manual_seed(1)
    other = clip.build_model()
    clip.export(other, str(tmp_path / "clip"))
    model = task.build_model()
    assert isinstance(model, Scorer)
    task.load_pretrained(model, str(tmp_path / "clip"))
    for name, value in model.clip.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name])


def test_explanations_that_are_asked_for_must_be_there(tmp_path: Path, make_task: Make) -> None:
    write_ratings(tmp_path / "source", every_explained=1000)
    source = tmp_path / "source" / "ratings.csv"
    source.write_text(source.read_text().replace("blur 3\n", "\n").replace("blur 2\n", "\n"))
    lines = [line.rsplit(",", 1)[0] + "," for line in source.read_text().splitlines()]
    source.write_text("\n".join(["image,prompt,mos_quality,mos_consistency,explanation", *lines[1:]]))
    import_ratings(str(source), str(tmp_path / "out"), columns=RatingColumns(), build_tokenizer=60, show_progress=False)
    task = make_task()
    data = task.config.data.model_copy(update={"path": str(tmp_path / "out")})
    bare = ScorerTask(task.config.model_copy(update={"data": data}))
    with pytest.raises(UserError, match=r"loss.explanation_weight is 0.1, but the split train .* has no explanations"):
        bare.build_dataset("train")
