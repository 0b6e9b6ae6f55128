"""Checkpoints back into an engine, from any engine and number of ranks, or as whole weights."""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

from accel_train.checkpoint import files, folders
from accel_train.checkpoint.files import DamagedCheckpoint, Reader
from accel_train.checkpoint.owned import persistent_buffers
from accel_train.engine.engine import Engine
from accel_train.errors import UserError


def damage_at_a_glance(folder: Path) -> str | None:
    """What is wrong with a checkpoint, as far as names and sizes show it. None: nothing."""
    return _damage(folder, slice(0), patient=False)


def damage_in_share(folder: Path, share: slice) -> str | None:
    """What is wrong with this rank's share of the files of a checkpoint that rank 0 has glanced at."""
    return _damage(folder, share, patient=True)


def _damage(folder: Path, share: slice, *, patient: bool) -> str | None:
    try:
        if patient:
            files.check_files(folder, folders.wait_until_whole(folder), share)
        else:
            files.check_sizes(folder, files.read_state(folder))
    except (DamagedCheckpoint, OSError) as error:
        return str(error)
    except (KeyError, TypeError) as error:
        return f"{folder / files.STATE_FILE}: {error!r}"
    return None


def read_into_engine(engine: Engine, folder: Path, state_names: tuple[str, ...], beginners: frozenset[str]) -> None:
    """Fills weights, optimizer state and buffers of this rank; `beginners` keep the empty state that they have.

    Each piece is read into its place: the memory beside that is what the largest piece takes.
    """
    folders.wait_until_whole(folder)
    reader = Reader(folder)
    for shard in engine.shards(state_names):
        engine.whereabouts.move()
        held = {} if shard.name in beginners else shard.state
        for kind, piece in {files.WEIGHT: shard.weight, **held}.items():
            _check_shape(reader, kind, shard.name, shard.shape, folder)
            reader.read_into(piece, kind, shard.name, shard.offset)
    for name, buffer in persistent_buffers(engine).items():
        _check_shape(reader, files.BUFFER, name, tuple(buffer.shape), folder)
        reader.read_into(buffer.view(-1), files.BUFFER, name, 0)


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Whole parameters and buffers of a checkpoint by name, on the CPU. Raises UserError if it is damaged."""
    reader = _checked_reader(folder)
    return {
        name: reader.read(kind, name) for kind in (files.WEIGHT, files.BUFFER) for name in reader.index.get(kind, {})
    }


def load_into_model(folder: Path, model: nn.Module) -> None:
    """Fills a whole model, strictly by name and shape, without a second copy of it. Raises UserError."""
    reader = _checked_reader(folder)
    held = {name: kind for kind in (files.WEIGHT, files.BUFFER) for name in reader.index.get(kind, {})}
    wanted = model.state_dict()
    differing = sorted(held.keys() ^ wanted.keys())
    differing += sorted(
        name for name in held.keys() & wanted.keys() if not _fits(reader, held[name], name, wanted[name])
    )
    if differing:
        raise UserError(
            f"{folder} does not fit the model of this configuration: {len(differing)} names or shapes differ, for example "
            f"{', '.join(differing[:4])}.",
            code="AT302",
        )
    for name, tensor in wanted.items():
        if tensor.is_contiguous():
            reader.read_into(tensor.view(-1), held[name], name, 0)
        else:
            tensor.copy_(reader.read(held[name], name))


def _checked_reader(folder: Path) -> Reader:
    try:
        files.check_files(folder, files.read_state(folder))
    except DamagedCheckpoint as damage:
        raise UserError(f"{folder} can't be used: {damage}", code="AT303") from damage
    return Reader(folder)


def _fits(reader: Reader, kind: str, name: str, tensor: Tensor) -> bool:
    return reader.shape(kind, name) == tuple(tensor.shape)


def _check_shape(reader: Reader, kind: str, name: str, shape: Iterable[int], folder: Path) -> None:
    found = reader.shape(kind, name)
    if found is None:
        raise UserError(
            f"{folder} holds no {kind} of {name}: the model or its frozen layers changed. To start from these weights "
            "with a fresh optimizer use initialize_from and another run_dir.",
            code="AT302",
        )
    if found != tuple(shape):
        raise UserError(
            f"{folder}: {name} has shape {found} there and {tuple(shape)} in the model of this configuration.",
            code="AT302",
        )
