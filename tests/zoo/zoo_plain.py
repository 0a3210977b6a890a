"""Definitions as people write them: of tutorials, and with the habits that conversion has stumbled over."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, weight_norm
from zoo_models import images, zoo_model


class MnistExample(nn.Module):
    """pytorch/examples, mnist/main.py."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, 1)
        self.conv2 = nn.Conv2d(32, 64, 3, 1)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(9216, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = self.dropout1(F.max_pool2d(x, 2))
        x = torch.flatten(x, 1)
        x = self.dropout2(F.relu(self.fc1(x)))
        return F.log_softmax(self.fc2(x), dim=1)


class CifarTutorial(nn.Module):
    """pytorch.org, "Training a classifier"."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


def _double(inside: int, outside: int) -> nn.Sequential:
    steps: list[nn.Module] = []
    for width in (inside, outside):
        steps += [nn.Conv2d(width, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU(True)]
    return nn.Sequential(*steps)


class UNet(nn.Module):
    """Ronneberger et al. 2015, two levels, transposed convolutions on the way up."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down1, self.down2 = _double(3, width), _double(width, 2 * width)
        self.bottom = _double(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.join2 = _double(4 * width, 2 * width)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1)
        self.join1 = _double(2 * width, width)
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        y = self.up2(self.bottom(F.max_pool2d(b, 2)))
        y = self.up1(self.join2(torch.cat([b, y], 1)))
        return self.head(self.join1(torch.cat([a, y], 1)))


class ConvBnSilu(nn.Module):
    def __init__(self, inside: int, outside: int, k: int = 1, s: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, k, s, k // 2, bias=False)
        self.bn = nn.BatchNorm2d(outside)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Concat(nn.Module):
    def forward(self, x: list[Tensor]) -> Tensor:
        return torch.cat(x, 1)


class YoloLike(nn.Module):
    """A parser's model: layers in a row that carry their index `i`, where they come from `f`, and `save`."""

    def __init__(self) -> None:
        super().__init__()
        rows: list[tuple[Any, nn.Module]] = [
            (-1, ConvBnSilu(3, 8, 3, 2)),
            (-1, ConvBnSilu(8, 16, 3, 2)),
            (-1, nn.Conv2d(16, 16, 3, 1, 1)),
            (-1, nn.Upsample(scale_factor=2)),
            ([-1, 0], Concat()),
            (-1, ConvBnSilu(24, 16)),
            (-1, nn.Conv2d(16, 12, 1)),
        ]
        for i, (f, layer) in enumerate(rows):
            layer.i, layer.f, layer.type = i, f, type(layer).__name__  # type: ignore[assignment]
        self.model = nn.Sequential(*(layer for _, layer in rows))
        self.save = [0]

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Any] = []
        for m in self.model:
            if m.f != -1:
                x = [x if j == -1 else kept[j] for j in m.f]  # type: ignore[assignment]
            x = m(x)
            kept.append(x if m.i in self.save else None)
        return x


class RecurrentClassifier(nn.Module):
    def __init__(self, kind: Any, **settings: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16, padding_idx=0)
        self.rnn = kind(16, 24, batch_first=True, **settings)
        self.fc = nn.Linear(24 * (2 if self.rnn.bidirectional else 1), 4)

    def forward(self, ids: Tensor) -> Tensor:
        y, _ = self.rnn(self.embedding(ids))
        return self.fc(y[:, -1])


class Conv1dNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(2, 16, 7, stride=2, padding=3), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(16, 24, 3, padding=2, dilation=2, groups=2), nn.BatchNorm1d(24), nn.ReLU(),
            nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        )  # fmt: skip
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


class Padded(nn.Module):
    """torch's encoder, which leaves its layers for a fused kernel where it can."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        y = self.encoder(x, src_key_padding_mask=padding).masked_fill(padding[:, :, None], 0)
        return self.head(y.sum(1))


class LoraWrapper(nn.Module):
    """peft's form: the layer inside, the input cast to the dtype of the small matrices' weights."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    @property
    def weight(self) -> Any:
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.base_layer(x)
        return y + 2.0 * self.lora_B(self.lora_A(x.to(self.lora_A.weight.dtype)))


class LoraLinear(nn.Linear):
    """loralib's form: a subclass whose forward adds its own matrices."""

    def __init__(self, inside: int, outside: int, rank: int = 4) -> None:
        super().__init__(inside, outside)
        self.lora_A = nn.Parameter(torch.randn(rank, inside) / 4)
        self.lora_B = nn.Parameter(torch.zeros(outside, rank))

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        return y + (x @ self.lora_A.transpose(0, 1) @ self.lora_B.transpose(0, 1)) * 2.0


class TiedLanguageModel(nn.Module):
    """One matrix embeds the tokens and scores them; `functional` reads it without calling a layer."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(60, 24)
        self.inner = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
        self.decoder = None
        if not functional:
            self.decoder = nn.Linear(24, 60, bias=False)
            self.decoder.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.inner(self.embedding(ids))
        return F.linear(x, self.embedding.weight) if self.decoder is None else self.decoder(x)


def _weight_normed() -> nn.Module:
    with_hooks = weight_norm(nn.Conv1d(4, 12, 3, padding=1))  # as in WaveNet and HiFi-GAN
    parametrized = parametrizations.weight_norm(nn.Conv1d(12, 12, 3, padding=1))
    return nn.Sequential(
        with_hooks, nn.LeakyReLU(0.1), parametrized, nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        weight_norm(nn.Linear(12, 5)),
    )  # fmt: skip


@zoo_model("mnist_example")
def mnist_example() -> Any:
    return MnistExample(), images(28, channels=1)


@zoo_model("cifar_tutorial")
def cifar_tutorial() -> Any:
    return CifarTutorial(), images(32)


@zoo_model("unet")
def unet() -> Any:
    return UNet(), images(32)


@zoo_model("yolo_like")
def yolo_like() -> Any:
    return YoloLike(), images(32)


@zoo_model("lstm_classifier", programs=2)
def lstm_classifier() -> Any:
    model = RecurrentClassifier(nn.LSTM, num_layers=2, bidirectional=True)
    return model, torch.randint(1, 50, (3, 6))


@zoo_model("gru_classifier", programs=1)
def gru_classifier() -> Any:
    return RecurrentClassifier(nn.GRU), torch.randint(1, 50, (3, 6))


@zoo_model("conv1d_net")
def conv1d_net() -> Any:
    return Conv1dNet(), torch.randn(3, 2, 64)


@zoo_model("padded_encoder")
def padded_encoder() -> Any:
    padding = torch.zeros(3, 6, dtype=torch.bool)
    padding[0, 4:], padding[2, 5:] = True, True
    return Padded(), (torch.randn(3, 6, 32), padding)


@zoo_model("lora_wrapper")
def lora_wrapper() -> Any:
    layers = [LoraWrapper(nn.Linear(20, 32)), nn.ReLU(), LoraWrapper(nn.Linear(32, 6))]
    return nn.Sequential(*layers), torch.randn(8, 20)


@zoo_model("lora_subclass")
def lora_subclass() -> Any:
    return nn.Sequential(LoraLinear(20, 32), nn.ReLU(), LoraLinear(32, 6)), torch.randn(8, 20)


@zoo_model("tied_layers")
def tied_layers() -> Any:
    return TiedLanguageModel(functional=False), torch.randint(0, 60, (2, 9))


@zoo_model("tied_functional")
def tied_functional() -> Any:
    return TiedLanguageModel(functional=True), torch.randint(0, 60, (2, 9))


@zoo_model("weight_normed")
def weight_normed() -> Any:
    return _weight_normed(), torch.randn(3, 4, 20)  # it has run once `lively` had its look
