"""The bare loop does the same work as training: the same update from the same batch."""

from accel_train.progress import Meter
from accel_train.tools.bench.bare_loop import BareLoop
from accel_train.tools.bench.step_rates import at_once
from accel_train.tools.bench.training import as_bench
from accel_train.tools.rehearsal import rehearsal
from accel_train.train import global_batches, one_step
from tests.tools.profile.test_recording import small_config

SETTINGS = [
    "optimizer.name=sgd",
    "optimizer.weight_decay=0.1",
    "optimizer.max_grad_norm=0.5",
    "optimizer.towers.image.max_grad_norm=0.1",
]


def test_one_step_of_each_leaves_the_same_weights() -> None:
    with rehearsal(as_bench(small_config(*SETTINGS)), quiet=True) as run:
        batches = global_batches(run)
        batch = next(batches)
        batches.close()
        bare, before = BareLoop(run), {name: p.detach().clone() for name, p in run.engine.model.named_parameters()}
        one_step(run, batch, Meter(run.engine.device))
        whole = at_once(run, batch).micro_batches[0]
        for group in bare.optimizer.param_groups:
            group["lr"] = group["base_lr"]
        bare.step(whole, bare.columns_for_loss(whole))
        found = {name: parameter.detach() for name, parameter in bare.model.named_parameters()}
        moved = 0
        for name, weight in run.engine.model.named_parameters():
            update = float((weight.detach() - before[name]).norm())
            error = float((found[name] - weight.detach()).norm())
            rounding = 1e-7 * float(weight.detach().norm()) + 1e-9  # a bias of keys has nothing but rounding
            assert error <= 1e-3 * update + rounding, f"{name}: {error:.2g} of {update:.2g}"
            moved += update > 100 * rounding
        assert moved > 20
