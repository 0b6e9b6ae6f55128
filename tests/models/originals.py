"""The models of Chinese-CLIP and open_clip in a few lines of plain torch, under the names that their files use.

Modules are registered in the originals' order, so that state dicts and optimizers are those that their trainers save.
"""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, activation: nn.Module) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        layers = [("c_fc", nn.Linear(width, 4 * width)), ("gelu", activation), ("c_proj", nn.Linear(4 * width, width))]
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        hidden = self.ln_1(x)
        x = x + self.attn(hidden, hidden, hidden, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, activation: nn.Module) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, activation) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class VisualTransformer(nn.Module):
    def __init__(
        self, width: int = 64, layers: int = 2, grid: int = 4, patch: int = 8, out: int = 32, activation=None
    ) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(grid**2 + 1, width))
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, out))
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, width // 64, activation or QuickGELU())
        self.ln_post = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)
        self.stride = stride
        if stride > 1 or inputs != 4 * planes:
            layers = [
                ("-1", nn.AvgPool2d(stride)),
                ("0", nn.Conv2d(inputs, 4 * planes, 1, bias=False)),
                ("1", nn.BatchNorm2d(4 * planes)),
            ]
            self.downsample = nn.Sequential(OrderedDict(layers))
        else:
            self.downsample = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        if self.stride > 1:
            out = F.avg_pool2d(out, self.stride)
        return (self.bn3(self.conv3(out)) + self.downsample(x)).relu()


class AttentionPool(nn.Module):
    def __init__(self, grid: int, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(grid**2 + 1, width) / width**0.5)
        self.k_proj, self.q_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, out)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(0, keepdim=True), x]) + self.positional_embedding[:, None]
        found, _ = F.multi_head_attention_forward(
            x, x, x, x.shape[-1], self.heads, None,
            torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias]),
            None, None, False, 0.0, self.c_proj.weight, self.c_proj.bias, use_separate_proj_weight=True,
            q_proj_weight=self.q_proj.weight, k_proj_weight=self.k_proj.weight, v_proj_weight=self.v_proj.weight,
        )  # fmt: skip
        return found[0]


class ModifiedResNet(nn.Module):
    def __init__(self, width: int = 8, layers: tuple[int, ...] = (1, 2, 1, 1), grid: int = 2, out: int = 32) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width // 2, 3, 2, 1, bias=False), nn.BatchNorm2d(width // 2)
        self.conv2, self.bn2 = nn.Conv2d(width // 2, width // 2, 3, 1, 1, bias=False), nn.BatchNorm2d(width // 2)
        self.conv3, self.bn3 = nn.Conv2d(width // 2, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        inputs = width
        for stage, depth in enumerate(layers):
            planes, blocks = width * 2**stage, []
            for number in range(depth):
                blocks.append(Bottleneck(inputs, planes, 2 if stage and not number else 1))
                inputs = 4 * planes
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.attnpool = AttentionPool(grid, 32 * width, width * 32 // 64, out)

    def forward(self, x: Tensor) -> Tensor:
        for number in ("1", "2", "3"):
            x = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(x)).relu()
        x = F.avg_pool2d(x, 2)
        for stage in "1234":
            x = self.get_submodule(f"layer{stage}")(x)
        return self.attnpool(x)


class Named(nn.Module):
    """Modules under the names of the arguments."""

    def __init__(self, /, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


def bert_layer(width: int) -> nn.Module:
    query, key, value, dense = (nn.Linear(width, width) for _ in range(4))
    return Named(
        attention=Named(
            self=Named(query=query, key=key, value=value),
            output=Named(dense=dense, LayerNorm=nn.LayerNorm(width, 1e-12)),
        ),
        intermediate=Named(dense=nn.Linear(width, 2 * width)),
        output=Named(dense=nn.Linear(2 * width, width), LayerNorm=nn.LayerNorm(width, 1e-12)),
    )


class Bert(nn.Module):
    """Without dropout, which is off outside training."""

    def __init__(self, width: int = 128, layers: int = 2) -> None:
        super().__init__()
        self.embeddings = Named(
            word_embeddings=nn.Embedding(100, width),
            position_embeddings=nn.Embedding(20, width),
            token_type_embeddings=nn.Embedding(2, width),
            LayerNorm=nn.LayerNorm(width, 1e-12),
        )
        self.encoder = Named(layer=nn.ModuleList(bert_layer(width) for _ in range(layers)))

    def forward(self, ids: Tensor) -> Tensor:
        part = self.embeddings
        x = part.word_embeddings(ids) + part.position_embeddings.weight[: ids.shape[1]]
        x = part.LayerNorm(x + part.token_type_embeddings.weight[0])
        hidden_pads = (ids == 0)[:, None, None] * -10000.0
        for layer in self.encoder.layer:
            own, heads = layer.attention.get_submodule("self"), x.shape[-1] // 64
            q, k, v = (f(x).unflatten(-1, (heads, -1)).transpose(1, 2) for f in (own.query, own.key, own.value))
            mixed = ((q @ k.mT / math.sqrt(64) + hidden_pads).softmax(-1) @ v).transpose(1, 2).flatten(2)
            x = layer.attention.output.LayerNorm(layer.attention.output.dense(mixed) + x)
            x = layer.output.LayerNorm(layer.output.dense(F.gelu(layer.intermediate.dense(x))) + x)
        return x


class ChineseCLIP(nn.Module):
    def __init__(self, visual: nn.Module, text_layers: int = 2) -> None:
        super().__init__()
        self.text_projection = nn.Parameter(torch.randn(128, 32) / 10)
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
        self.visual = visual
        self.bert = Bert(layers=text_layers)

    def forward(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Features of length 1."""
        return F.normalize(self.visual(images)), F.normalize(self.bert(ids)[:, 0] @ self.text_projection)


class OpenCLIP(nn.Module):
    def __init__(self, activation: nn.Module, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(12, width))
        self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, 32))
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
        self.visual = VisualTransformer(activation=activation)
        self.transformer = Transformer(width, layers, width // 64, activation)
        self.token_embedding = nn.Embedding(100, width)
        self.ln_final = nn.LayerNorm(width)

    def forward(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        length = ids.shape[1]
        causal = torch.full((length, length), float("-inf")).triu(1)
        x = self.token_embedding(ids) + self.positional_embedding[:length]
        x = self.ln_final(self.transformer(x, causal))
        x = x[torch.arange(len(ids)), ids.argmax(-1)] @ self.text_projection
        return F.normalize(self.visual(images)), F.normalize(x)


def shaken(model: nn.Module) -> nn.Module:
    """Every weight and running statistic moved from its start."""
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.05 * torch.rand_like(value))
    return model.eval()


def saved(model: nn.Module) -> dict[str, Tensor]:
    """The weights as DistributedDataParallel names them."""
    return {f"module.{name}": value for name, value in model.state_dict().items()}
