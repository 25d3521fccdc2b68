"""`--loss auto`, on the CPU: which loss is chosen for which model, and that it trains."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from bsfind.inputs import parse_input, parse_input_shape
from bsfind.settings import Workload
from bsfind.workload.precision import precision_plan
from bsfind.workload.step import LoadedWorkload, TrainingSteps

CPU = torch.device("cpu")
VOCABULARY, WIDTH = 50, 16


class Made(nn.Module):
    """Makes its output from the layers and the inputs with a function."""

    def __init__(self, make: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.make = make
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: torch.Tensor) -> Any:
        return self.make(self, x)


def linear(features: int, out: int) -> Made:
    return Made(lambda m, x: m.f(x), f=nn.Linear(features, out))


def convolution(out: int, **options: Any) -> Made:
    return Made(lambda m, x: m.f(x), f=nn.Conv2d(3, out, 3, padding=1, **options))


def language_model(head: int = VOCABULARY) -> Made:
    embedding, layer = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, head)
    return Made(lambda m, x: m.head(m.embedding(x)), embedding=embedding, head=layer)


class LabelledLM(nn.Module):
    """As in nanoGPT: without targets, the scores of the last position alone."""

    def __init__(self, argument: str = "targets") -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        x = self.embedding(idx)
        if targets is None:
            return self.head(x[:, [-1], :]), None
        logits = self.head(x)
        return logits, F.cross_entropy(logits.view(-1, VOCABULARY), targets.view(-1))


class SharedHead(nn.Module):
    """One head for three scales, each made from the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.head = nn.Conv2d(3, 9, 1)

    def forward(self, x: torch.Tensor) -> Any:
        found = []
        for layer in self.layers:
            x = F.max_pool2d(layer(x), 2) if found else layer(x)
            found.append(self.head(x))
        return found


class TiedHeads(nn.Module):
    """As BERT in pretraining: scores of each token with the embedding's weights, and of the sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.sentence = nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> Any:
        hidden = self.embedding(x)
        return hidden @ self.embedding.weight.t(), self.sentence(hidden[:, 0])


def loaded(
    model: nn.Module, *inputs: str, precision: str = "fp32", **changes: Any
) -> LoadedWorkload:
    specs = tuple(parse_input(t) if "=" in t else parse_input_shape(t) for t in inputs)
    workload = Workload(target="a:b", inputs=specs, **changes)
    return LoadedWorkload(workload, precision_plan(precision), CPU, model)


def trained(workload: LoadedWorkload, batch_size: int = 6) -> tuple[str, str]:
    """Train two steps; return the name of the loss and the reason for it."""
    workload.try_labels(batch_size)
    steps = TrainingSteps(workload, lambda: None)
    steps.run(batch_size)
    steps.run(batch_size)
    assert steps.completed == 2
    (made,) = workload.assumptions
    assert made.what == "loss"
    return made.value, made.why


IMAGE = "3,8,12"
TOKENS = f"7:int64:0..{VOCABULARY}"


@pytest.mark.parametrize(
    ("model", "given", "chosen"),
    [
        # Class scores.
        (linear(16, 10), "16", "cross-entropy on the output (N, 10)"),
        (language_model(), TOKENS, "cross-entropy on the output (N, 7, 50)"),
        (language_model(9), TOKENS, "cross-entropy on the output (N, 7, 9)"),
        (convolution(21), IMAGE, "cross-entropy on the output (N, 21, 8, 12)"),
        (convolution(21, stride=4), IMAGE, "cross-entropy on the output (N, 21, 2, 3)"),
        # More rows than samples.
        (
            Made(lambda m, x: m.f(x.flatten(0, 1)), f=nn.Linear(16, 7)),
            "50,16",
            "cross-entropy on the output (N, 7)",
        ),
        # The model has the logarithm of the softmax in it.
        (
            Made(lambda m, x: m.f(x).log_softmax(-1), f=nn.Linear(16, 10)),
            "16",
            "negative log-likelihood on the output (N, 10)",
        ),
        (
            Made(lambda m, x: m.f(x).log_softmax(1), f=nn.Conv2d(3, 5, 1)),
            IMAGE,
            "negative log-likelihood on the output (N, 5, 8, 12)",
        ),
        # One score.
        (linear(16, 1), "16", "binary cross-entropy on the output (N, 1)"),
        (
            Made(lambda m, x: m.f(x).squeeze(-1), f=nn.Linear(16, 1)),
            "16",
            "binary cross-entropy on the output (N)",
        ),
        (convolution(1), IMAGE, "binary cross-entropy on the output (N, 1, 8, 12)"),
        (
            Made(lambda m, x: m.f(x).squeeze(1), f=nn.Conv2d(3, 1, 1)),
            IMAGE,
            "binary cross-entropy on the output (N, 8, 12)",
        ),
        # What the output says that it is.
        (
            Made(lambda m, x: {"predicted_depth": m.f(x)[:, 0]}, f=nn.Conv2d(3, 1, 1)),
            IMAGE,
            'mse on output["predicted_depth"] (N, 8, 12)',
        ),
        (
            Made(lambda m, x: SimpleNamespace(sample=m.f(x)), f=nn.Conv2d(3, 6, 1)),
            IMAGE,
            'mse on output["sample"] (N, 6, 8, 12)',
        ),
        # An input's shape, or a larger version of it.
        (linear(16, 16), "16", "mse on the output (N, 16)"),
        (convolution(3), IMAGE, "mse on the output (N, 3, 8, 12)"),
        (
            Made(lambda m, x: m.f(x).unflatten(1, (4, 2)), f=nn.Conv1d(2, 8, 3, padding=1)),
            "2,40",
            "mse on the output (N, 4, 2, 40)",
        ),
        (
            Made(lambda m, x: m.f(x), f=nn.ConvTranspose2d(3, 3, 2, 2)),
            IMAGE,
            "mse on the output (N, 3, 16, 24)",
        ),
        # Several outputs.
        (
            Made(
                lambda m, x: {"out": m.f(x), "aux": m.g(x), "features": m.h(x)},
                **{name: nn.Conv2d(3, 5, 1) for name in "fgh"},
            ),
            IMAGE,
            'cross-entropy on output["out"] (N, 5, 8, 12) + '
            'cross-entropy on output["aux"] (N, 5, 8, 12)',
        ),
        (
            Made(
                lambda m, x: [m.f(x), m.g(x), m.h(x)],
                **{name: nn.Conv2d(3, 5, 1) for name in "fgh"},
            ),
            IMAGE,
            "cross-entropy on 3 outputs (N, 5, 8, 12) …",
        ),
        (
            Made(lambda m, x: (h := m.f(x), m.g(h))[::-1], f=nn.Linear(16, 30), g=nn.Linear(30, 4)),
            "16",
            "cross-entropy on output[0] (N, 4)",
        ),
        (
            Made(
                lambda m, x: (m.g(i := m.h(h := m.f(x))), h * 2, i * 2),
                f=nn.Linear(16, 30),
                h=nn.Linear(30, 30),
                g=nn.Linear(30, 4),
            ),
            "16",
            "cross-entropy on output[0] (N, 4)",
        ),
        # Scores, and the same as probabilities.
        (
            Made(lambda m, x: (y := m.f(x), y.softmax(-1)), f=nn.Linear(16, 4)),
            "16",
            "cross-entropy on output[0] (N, 4)",
        ),
        # Heads that share their layers or their weights with the rest of the model are heads too.
        (SharedHead(), IMAGE, "cross-entropy on 3 outputs (N, 9, 8, 12) …"),
        (
            TiedHeads(),
            TOKENS,
            "cross-entropy on output[0] (N, 7, 50) + cross-entropy on output[1] (N, 2)",
        ),
        # What a head with tied weights is made from has none of its own either.
        (
            Made(
                lambda m, x: (h := m.e(x) * 2, h @ m.e.weight.t()),
                e=nn.Embedding(VOCABULARY, WIDTH),
            ),
            TOKENS,
            "cross-entropy on output[1] (N, 7, 50)",
        ),
        # Deep supervision.
        (
            Made(
                lambda m, x: torch.stack([m.f(x), m.g(x)], 1),
                f=nn.Conv2d(3, 5, 1),
                g=nn.Conv2d(3, 5, 1),
            ),
            IMAGE,
            "cross-entropy on the output (N, 2, 5, 8, 12)",
        ),
        # A reconstruction in one row.
        (
            Made(
                lambda m, x: (m.g(h := m.f(x.flatten(1))), h),
                f=nn.Linear(3 * 8 * 12, 8),
                g=nn.Linear(8, 3 * 8 * 12),
            ),
            IMAGE,
            "mse on output[0] (N, 288)",
        ),
        # Scores of each token where there are several in each position.
        (
            Made(lambda m, x: m.g(m.e(x)), e=nn.Embedding(60, WIDTH), g=nn.Linear(WIDTH, 59)),
            "4,7:int64:0..60",
            "cross-entropy on the output (N, 4, 7, 59)",
        ),
        # Speech: fewer steps than the input has, in either order.
        (
            Made(lambda m, x: m.f(x).transpose(1, 2), f=nn.Conv1d(16, 11, 3, 4)),
            "16,90",
            "CTC on the output (N, 22, 11)",
        ),
        (
            Made(lambda m, x: m.f(x).permute(2, 0, 1).log_softmax(-1), f=nn.Conv1d(16, 11, 3, 4)),
            "16,90",
            "CTC on the output (22, N, 11)",
        ),
        (
            Made(lambda m, x: m.f(x).mean(2).permute(2, 0, 1), f=nn.Conv2d(3, 37, (8, 4), (1, 4))),
            "3,8,96",
            "CTC on the output (24, N, 37)",
        ),
        (
            Made(lambda m, x: m.f(x).mean(2).permute(2, 0, 1), f=nn.Conv2d(3, 37, (8, 4), (1, 4))),
            "3,24,96",
            "CTC on the output (24, N, 37)",
        ),
        # What an encoder normalizes last are features.
        (
            Made(
                lambda m, x: m.n(m.f(x).transpose(1, 2)),
                f=nn.Conv1d(16, 11, 3, 4),
                n=nn.LayerNorm(11),
            ),
            "16,90",
            "mean of the output (N, 22, 11)",
        ),
        (
            Made(lambda m, x: m.n(m.f(x).mean((2, 3))), f=nn.Conv2d(3, 37, 4), n=nn.LayerNorm(37)),
            "3,8,96",
            "mean of the output (N, 37)",
        ),
        # Time first.
        (
            Made(lambda m, x: m.f(x).transpose(0, 1), f=nn.Linear(16, 5)),
            "9,16",
            "cross-entropy on the output (9, N, 5)",
        ),
        (
            Made(lambda m, x: (m.f(x), m.g(x)), f=nn.Linear(16, 3), g=nn.Linear(16, 4)),
            "16",
            "cross-entropy on output[0] (N, 3) + cross-entropy on output[1] (N, 4)",
        ),
        (
            Made(
                lambda m, x: namedtuple("Output", "logits aux")(m.f(x), m.g(x)),
                f=nn.Linear(16, 4),
                g=nn.Linear(16, 4),
            ),
            "16",
            "cross-entropy on output[0] (N, 4) + cross-entropy on output[1] (N, 4)",
        ),
        (
            Made(
                lambda m, x: {"hidden": m.f(x), "logits": m.g(m.f(x))},
                f=nn.Linear(16, 30),
                g=nn.Linear(30, 4),
            ),
            "16",
            'cross-entropy on output["logits"] (N, 4)',
        ),
        # The model's own.
        (
            Made(lambda m, x: m.f(x).square().mean(), f=nn.Linear(16, 4)),
            "16",
            "the model's own loss",
        ),
        (
            Made(lambda m, x: {"loss": m.f(x).mean(), "logits": m.f(x)}, f=nn.Linear(16, 4)),
            "16",
            "the model's own loss",
        ),
        (
            Made(lambda m, x: SimpleNamespace(loss=m.f(x).mean()), f=nn.Linear(16, 4)),
            "16",
            "the model's own loss",
        ),
        (
            Made(lambda m, x: (m.f(x).softmax(-1), m.f(x).std()), f=nn.Linear(16, 4)),
            "16",
            "the model's own loss",
        ),
        # As ultralytics returns them: several losses, and what is shown of them.
        (
            Made(
                lambda m, x: (m.f(x).mean(0), {"box": m.f(x).mean().detach()}),
                f=nn.Linear(16, 3),
            ),
            "16",
            "the model's own loss",
        ),
        # A term of the loss is not the loss: the decoder's weights would not be trained.
        (
            Made(
                lambda m, x: (m.g(m.f(x)), m.f(x).square().mean()),
                f=nn.Linear(16, 4),
                g=nn.Linear(4, 16),
            ),
            "16",
            "mse on output[0] (N, 16) + the model's own output[1]",
        ),
        # Nothing that is known.
        (
            Made(lambda m, x: {"last_hidden_state": m.f(x)}, f=nn.Linear(16, 32)),
            "9,16",
            'mean of output["last_hidden_state"] (N, 9, 32)',
        ),
        (
            Made(
                lambda m, x: [h := m.f(x), h := m.g(h), m.h(h)],
                f=nn.Conv2d(3, 8, 2, 2),
                g=nn.Conv2d(8, 16, 2, 2),
                h=nn.Conv2d(16, 32, 2, 2),
            ),
            "3,16,16",
            "mean of 3 outputs",
        ),
        (
            Made(lambda m, x: m.embedding(x), embedding=nn.Embedding(VOCABULARY, WIDTH)),
            TOKENS,
            "mean of the output (N, 7, 16)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_chosen(model: nn.Module, given: str, chosen: str) -> None:
    workload = loaded(model, given)
    assert trained(workload)[0] == chosen
    assert workload.choice.is_stand_in == chosen.startswith("mean")
    trained(workload, 5)  # what is chosen holds for other sizes
    assert workload.assumptions[0].value == chosen


@pytest.mark.parametrize(
    ("shares", "chosen"),
    [
        (False, 'contrastive loss on output["image"] and output["text"] (N, 5)'),
        (True, "cross-entropy"),
    ],
)
def test_two_towers_with_a_learned_scale(shares: bool, chosen: str) -> None:
    """As CLIP: no contrastive loss where both features are of the same layer."""

    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.g = nn.Linear(16, 5), nn.Linear(9, 5)
            self.head = nn.Linear(5, 5) if shares else nn.Identity()
            self.logit_scale = nn.Parameter(torch.ones(()))

        def forward(self, image: torch.Tensor, text: torch.Tensor) -> dict[str, torch.Tensor]:
            features = [self.head(self.f(image)), self.head(self.g(text))]
            return {
                **dict(zip(("image", "text"), features, strict=True)),
                "scale": self.logit_scale.exp(),
            }

    model = Towers()
    workload = loaded(model, "16", "9")
    assert trained(workload)[0].startswith(chosen)
    assert model.logit_scale.grad is not None
    trained(workload, 5)


def scores(shape: tuple[int, ...]) -> Made:
    """Return a model with an output of this shape, whatever its input."""
    size = torch.Size(shape).numel()
    return Made(lambda m, x: m.f(x.flatten(1)[:, :4]).view(-1, *shape), f=nn.Linear(4, size))


@pytest.mark.parametrize(
    ("given", "shape", "targets", "is_doubtful"),
    [
        ("9,5", (9, 7), 9, False),  # (N, T, F) → (N, T, C)
        ("9,5", (7, 5), 5, False),  # (N, F, T) → (N, C, T)
        ("9,5", (9, 6), 9, False),
        ("9,5", (20, 30), 30, True),  # neither fits: the larger one has the targets
        ("9,9", (9, 3), 9, False),
        ("100", (8, 100), 100, False),  # a wave
        (IMAGE, (11, 40), 40, True),
    ],
)
def test_sequences_of_either_order(
    given: str, shape: tuple[int, ...], targets: int, is_doubtful: bool
) -> None:
    workload = loaded(scores(shape), given)
    name, why = trained(workload)
    assert name == f"cross-entropy on the output (N, {shape[0]}, {shape[1]})"
    assert ("takes more memory" in why) == is_doubtful
    steps = TrainingSteps(workload, lambda: None)
    made: list[tuple[int, ...]] = []
    workload.model.register_forward_pre_hook(
        lambda *_: made.extend(tuple(t.shape) for t in steps.targets)
    )
    steps.run(6)
    steps.run(6)
    assert made == [(6, targets)]


class TestLabels:
    @pytest.mark.parametrize("precision", ["fp32", "amp-bf16", "bf16"])
    def test_a_language_model_gets_its_targets(self, precision: str) -> None:
        workload = loaded(LabelledLM(), TOKENS, precision=precision)
        name, why = trained(workload)
        assert name == "the model's own loss from `targets` (N, 7)"
        assert "`forward` takes `targets`" in why
        assert "targets=int64[6, 7]" in str(workload.last_batch)

    def test_they_are_there_before_the_forward_pass_and_in_range(self) -> None:
        seen: list[torch.Tensor] = []
        model = LabelledLM()
        model.register_forward_pre_hook(
            lambda m, args, kwargs: seen.append(kwargs.get("targets")), with_kwargs=True
        )
        trained(loaded(model, TOKENS), 64)
        assert seen[-1].shape == (64, 7)
        assert 30 < int(seen[-1].max()) < VOCABULARY

    def test_they_are_in_range_wherever_the_classes_are(self) -> None:
        """A label out of range ends a CUDA context; on the CPU the loss raises."""

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.f, self.g = nn.Conv1d(3, 100, 1), nn.Conv1d(100, 5, 1)

            def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
                hidden = self.f(x)
                scores = self.g(hidden)
                if labels is None:
                    return hidden, scores
                if labels.is_floating_point() or labels.shape != (len(x), 64):
                    raise ValueError("not class indices of each position")
                assert int(labels.max()) < 5
                return hidden, scores, F.cross_entropy(scores, labels)

        name, _ = trained(loaded(Net(), "3,64"), 16)
        assert name == "the model's own loss from `labels` (N, 64)"

    def test_what_the_user_gives_is_not_made(self) -> None:
        workload = loaded(LabelledLM(), TOKENS, f"targets={TOKENS}")
        assert trained(workload)[0] == "the model's own loss"
        workload = loaded(LabelledLM(), TOKENS, TOKENS)
        assert trained(workload)[0] == "the model's own loss"

    @pytest.mark.parametrize("name", ["labels", "y", "target", "label_ids"])
    def test_names_of_arguments(self, name: str) -> None:
        space: dict[str, Any] = {"F": F}
        exec(  # the argument's name is what is tested
            f"def forward(self, x, {name}=None):\n"
            "    out = self.f(x)\n"
            f"    return out if {name} is None else (out, F.cross_entropy(out, {name}))\n",
            space,
        )
        model = type("Net", (nn.Module,), {"forward": space["forward"]})()
        model.f = nn.Linear(16, 5)
        assert trained(loaded(model, "16"))[0] == f"the model's own loss from `{name}` (N)"

    @pytest.mark.parametrize(
        ("out", "loss", "shape"),
        [
            (nn.Conv2d(3, 5, 1), F.cross_entropy, "(N, 8, 12)"),
            (nn.Conv2d(3, 3, 1), F.l1_loss, "(N, 3, 8, 12)"),
            (nn.Conv2d(3, 1, 1), F.binary_cross_entropy_with_logits, "(N, 1, 8, 12)"),
            (nn.Conv2d(3, 5, 1), F.binary_cross_entropy_with_logits, "(N, 5, 8, 12)"),
        ],
    )
    def test_labels_of_each_position(self, out: nn.Module, loss: Any, shape: str) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.f = out

            def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
                scores = self.f(x)
                return {"scores": scores, "loss": None if labels is None else loss(scores, labels)}

        assert trained(loaded(Net(), IMAGE))[0] == f"the model's own loss from `labels` {shape}"

    def test_labels_of_sounds_have_several_codes_for_each_moment(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                sizes = SimpleNamespace(num_codebooks=4, max_position_embeddings=6)
                self.config = SimpleNamespace(decoder=sizes)
                self.codes = nn.Embedding(VOCABULARY, VOCABULARY)

            def forward(self, input_ids: torch.Tensor, labels: Any = None) -> Any:
                _, _, codebooks = labels.shape
                scores = self.codes(labels).flatten(0, 2)
                return {"loss": F.cross_entropy(scores, labels.flatten()) * codebooks}

        workload = loaded(Net(), f"input_ids={TOKENS}")
        assert trained(workload)[0] == "the model's own loss from `labels` (N, 6, 4)"

    def test_an_argument_that_is_no_label(self) -> None:
        """`y` is the class that a diffusion model is told."""

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.f, self.classes = nn.Linear(16, 16), nn.Embedding(10, 16)

            def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
                out: torch.Tensor = self.f(x)
                return out if y is None else out + self.classes(y)

        assert trained(loaded(Net(), "16"))[0] == "mse on the output (N, 16)"

    def test_labels_that_the_model_refuses(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.f = nn.Linear(16, 4)

            def forward(self, x: torch.Tensor, labels: Any = None) -> torch.Tensor:
                if labels is not None:
                    raise KeyError("boxes")
                out: torch.Tensor = self.f(x)
                return out

        name, why = trained(loaded(Net(), "16"))
        assert name == "cross-entropy on the output (N, 4)"
        assert "with labels the model raises KeyError: 'boxes'" in why

    def test_a_model_that_needs_labels_in_training_only(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.f = nn.Conv2d(3, 5, 1)
                self.frozen = nn.Dropout().eval()

            def forward(self, images: torch.Tensor, targets: Any = None) -> Any:
                scores = self.f(images)
                if not self.training:
                    return scores
                if targets is None:
                    raise ValueError("targets should not be none in training mode")
                return {"seg": F.cross_entropy(scores, targets), "norm": scores.square().mean()}

        workload = loaded(Net(), IMAGE)
        assert trained(workload)[0] == "the model's own loss from `targets` (N, 8, 12)"
        assert workload.model.training

    def test_an_error_without_labels_is_not_hidden(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.f = nn.Linear(16, 4)

            def forward(self, x: torch.Tensor, labels: Any = None) -> torch.Tensor:
                raise ArithmeticError("without" if labels is None else "with")

        with pytest.raises(ArithmeticError, match="without"):
            loaded(Net(), "16").try_labels(4)

    def test_a_model_that_takes_some_batch_sizes_only(self) -> None:
        class Net(LabelledLM):
            def forward(self, idx: torch.Tensor, targets: Any = None) -> Any:
                idx.view(-1, 8, idx.shape[1])
                return super().forward(idx, targets)

        name, _ = trained(loaded(Net(), TOKENS), 16)
        assert name == "the model's own loss from `targets` (N, 7)"

    def test_wrappers_pass_labels_on(self) -> None:
        class Wrapper(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = LabelledLM()

            def forward(self, *args: Any, **kwargs: Any) -> Any:
                return self.inner(*args, **kwargs)

        class WithMore(Wrapper):
            def __init__(self) -> None:
                super().__init__()
                self.more = nn.Dropout()

            def forward(self, idx: torch.Tensor, **kwargs: Any) -> Any:
                return self.inner(idx, **kwargs)

        for model in (Wrapper(), WithMore(), nn.DataParallel(LabelledLM())):
            assert trained(loaded(model, TOKENS))[0] == "the model's own loss from `targets` (N, 7)"

    @pytest.mark.parametrize(
        "changes", [{"loss": "mean"}, {"loss": "cross-entropy"}, {"mode": "infer"}]
    )
    def test_nobody_looks_for_labels_where_the_loss_is_said(self, changes: dict[str, str]) -> None:
        workload = loaded(LabelledLM(), TOKENS, **changes)
        assert not workload.try_labels(4)
        TrainingSteps(workload, lambda: None).run(4)
        assert workload.assumptions == []
