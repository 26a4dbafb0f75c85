"""ALI in PyTorch, from the same tables: the peers that our step is compared with.

`torch_textbook` alternates as public ports do: D's step, then the step of encoder and decoder, each with a
forward pass of its own, eager, NCHW. To its advantage nothing is differentiated that a step does not need.
`torch_best` is the strongest form that we know: one forward pass, one restricted backward pass per player,
channels_last, fused Adam; `torch_compiled` is the same with the gradients compiled as one program.

A config comes as the nested dict that JSON holds, so that this module imports neither JAX nor ali_jax.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]

Config = Mapping[str, Any]
BATCHES = 4  # made beforehand, taken in turn
WARM_UP = 2  # steps before the clock starts


class Maxout(nn.Module):
    """The maximum over groups of adjacent channels: [B, C, ...] -> [B, C / pieces, ...]."""

    def __init__(self, pieces: int):
        super().__init__()
        self.pieces = pieces

    def forward(self, h: Tensor) -> Tensor:
        groups = h.unflatten(1, (-1, self.pieces))
        if h.is_contiguous():
            return groups.amax(2)
        return groups.max(2).values  # channels_last: 0.75 of the time of amax and its gradient on a CPU


class Stack(nn.Sequential):
    """A table of layers, each: dropout, linear map, batch norm or bias, dropout, activation.

    `size` is what an example of the output has, [features] or [channels, side, side].
    """

    size: list[int]

    @classmethod
    def of(
        cls,
        table: Sequence[Any],
        size: Sequence[int],
        section: Config,
        *,
        batch_norm: Any = (False,),
        dropout: Any = (0.0,),
        dropout_after: Any = (0.0,),
        bias: bool = True,
        transpose: bool = False,
    ) -> "Stack":
        """Make the stack of a config's table for inputs of `size`."""
        made: list[nn.Module] = []
        size = list(size)
        settings = (_per_layer(value, len(table)) for value in (batch_norm, dropout, dropout_after))
        for layer, norm, rate, rate_after in zip(table, *settings, strict=True):
            if rate:
                made.append(nn.Dropout(rate))
            linear, size = _linear(layer, size, bias=bias and not norm, transpose=transpose)
            made += linear
            if norm:
                make = nn.BatchNorm2d if len(size) == 3 else nn.BatchNorm1d
                made.append(make(size[0], eps=1e-4, momentum=0.05))
            if rate_after:
                made.append(nn.Dropout(rate_after))
            act, pieces = _activation(section)
            made.append(act)
            size = [size[0] // pieces, *size[1:]]
        stack = cls(*made)
        stack.size = size
        return stack


class Encoder(nn.Module):
    """z = mu(x) + sigma(x) epsilon, or z = f(x, epsilon)."""

    def __init__(self, config: Config):
        super().__init__()
        section, size = config["encoder"], _x_size(config)
        self.noise = section["posterior"] == "noise"
        if self.noise:
            size = [size[0] + config["latent_dim"]]
        self.stack = Stack.of(section["layers"], size, section, batch_norm=section["batch_norm"])
        outputs = config["latent_dim"] * (1 if self.noise else 2)
        self.head = nn.Linear(math.prod(self.stack.size), outputs)
        _initialise(self, section["init_std"])

    def forward(self, x: Tensor, epsilon: Tensor) -> Tensor:
        if self.noise:
            return self.head(self.stack(torch.cat([x, epsilon], 1)))
        mu, log_sigma = self.head(self.stack(x).flatten(1)).chunk(2, 1)
        return mu + log_sigma.exp() * epsilon


class Decoder(nn.Module):
    """x_tilde = G_x(z), with an output bias per pixel and channel."""

    def __init__(self, config: Config):
        super().__init__()
        section, x_size = config["decoder"], _x_size(config)
        size = [config["latent_dim"]]
        self.stack = Stack.of(
            section["layers"], size, section, batch_norm=section["batch_norm"], transpose=True
        )
        layer = [1, 1, x_size[0]] if len(self.stack.size) == 3 else math.prod(x_size)
        self.output = nn.Sequential(*_linear(layer, self.stack.size, bias=False, transpose=False)[0])
        self.x_size, self.sigmoid = x_size, section["output"] == "sigmoid"
        _initialise(self, section["init_std"])
        self.untied = nn.Parameter(torch.zeros(x_size))

    def forward(self, z: Tensor) -> Tensor:
        logits = self.output(self.stack(z)).reshape(-1, *self.x_size) + self.untied
        return logits.sigmoid() if self.sigmoid else logits


class Discriminator(nn.Module):
    """The logit of "(x, z) comes from the encoder"."""

    def __init__(self, config: Config):
        super().__init__()
        section = config["discriminator"]
        self.x = Stack.of(
            section["x_layers"],
            _x_size(config),
            section,
            batch_norm=section["x_batch_norm"],
            dropout=section["x_dropout"],
            dropout_after=section["x_dropout_after"],
        )
        self.z = Stack.of(
            section["z_layers"],
            [config["latent_dim"]],
            section,
            dropout=section["z_dropout"],
            bias=section["z_bias"],
        )
        joint = section["joint_layers"]
        rates = _per_layer(section["joint_dropout"], len(joint) + 1)
        features = math.prod(self.x.size) + math.prod(self.z.size)
        self.joint = Stack.of(joint, [features], section, dropout=rates[:-1] or (0.0,))
        self.logit = nn.Sequential(nn.Dropout(rates[-1]), nn.Linear(math.prod(self.joint.size), 1))
        _initialise(self, section["init_std"])

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        joined = torch.cat([self.x(x).flatten(1), self.z(z)], 1)
        return self.logit(self.joint(joined))[:, 0].float()


class Textbook:
    """The variant `torch_textbook`."""

    unit = 1
    channels_last = False
    fused = False

    def __init__(self, config: Config, batch_size: int):
        self.config, self.batch_size = config, batch_size
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.started = False

    def compile(self) -> None:
        """Do nothing: PyTorch compiles with the state at hand."""

    def start(self) -> dict[str, Any]:
        """Make networks, optimisers and batches, and warm up."""
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        torch.manual_seed(0)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        self.encoder, self.decoder, self.discriminator = self.networks = [
            module(self.config).to(self.device) for module in (Encoder, Decoder, Discriminator)
        ]
        size = [self.batch_size, *_x_size(self.config)]
        self.batches = [torch.rand(size, device=self.device) for _ in range(BATCHES)]
        if len(size) == 4:
            self.networks = [network.to(memory_format=layout) for network in self.networks]  # pyright: ignore
            self.batches = [batch.contiguous(memory_format=layout) for batch in self.batches]
        self.generator_parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        self.discriminator_parameters = list(self.discriminator.parameters())
        self.generator_adam = self._adam("generator", self.generator_parameters)
        self.discriminator_adam = self._adam("discriminator", self.discriminator_parameters)
        self.taken = 0
        self.started = True
        self.run(WARM_UP)
        counts = [sum(p.numel() for p in network.parameters()) for network in self.networks]
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        return {"device": f"{name}, torch {torch.__version__}", "parameters": counts}

    def run(self, steps: int) -> float:
        """Train, wait, and return D's last loss."""
        loss = torch.zeros(())
        for _ in range(steps):
            loss = self.step(self.batches[self.taken % BATCHES])
            self.taken += 1
        return loss.item()

    def stop(self) -> None:
        """Let go of networks, optimisers and batches."""
        if self.started:
            self.__dict__ = {key: self.__dict__[key] for key in ("config", "batch_size", "device")}
            self.started = False
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def step(self, x: Tensor) -> Tensor:
        """Update D, then encoder and decoder; return D's loss."""
        epsilon, z = self._noise()
        with torch.no_grad(), self._precision():
            z_hat, x_tilde = self.encoder(x, epsilon), self.decoder(z)
        with self._precision():
            discriminator_loss, _ = self._losses(x, z_hat, x_tilde, z)
        self.discriminator_adam.zero_grad()
        discriminator_loss.backward()
        self.discriminator_adam.step()

        epsilon, z = self._noise()
        self.discriminator.requires_grad_(False)
        with self._precision():
            _, generator_loss = self._losses(x, self.encoder(x, epsilon), self.decoder(z), z)
        self.generator_adam.zero_grad()
        generator_loss.backward()
        self.generator_adam.step()
        self.discriminator.requires_grad_(True)
        return discriminator_loss.detach()

    def _losses(self, x: Tensor, z_hat: Tensor, x_tilde: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return D's and the generator's loss from one call of D on the joined pairs."""
        logits = self.discriminator(torch.cat([x, x_tilde]), torch.cat([z_hat, z]))
        q, p = logits.chunk(2)
        return (
            F.softplus(-q).mean() + F.softplus(p).mean(),
            F.softplus(q).mean() + F.softplus(-p).mean(),
        )

    def _noise(self) -> tuple[Tensor, Tensor]:
        size = (self.batch_size, self.config["latent_dim"])
        return torch.randn(size, device=self.device), torch.randn(size, device=self.device)

    def _precision(self) -> contextlib.AbstractContextManager:
        if self.config["dtype"] == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _adam(self, player: str, parameters: list[nn.Parameter]) -> torch.optim.Adam:
        section = self.config["optimizer"][player]
        return torch.optim.Adam(
            parameters,
            lr=section["learning_rate"],
            betas=(section["b1"], section["b2"]),
            eps=section["eps"],
            fused=self.fused,
        )


class Best(Textbook):
    """The variant `torch_best`."""

    channels_last = True
    fused = True

    def step(self, x: Tensor) -> Tensor:
        """Update both players from one forward pass; return D's loss."""
        epsilon, z = self._noise()
        loss, of_discriminator, of_generator = self.gradients(x, epsilon, z)
        for parameters, gradients in (
            (self.discriminator_parameters, of_discriminator),
            (self.generator_parameters, of_generator),
        ):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
        self.discriminator_adam.step()
        self.generator_adam.step()
        return loss

    def gradients(
        self, x: Tensor, epsilon: Tensor, z: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return D's loss and both players' gradients, of their own parameters only."""
        with self._precision():
            losses = self._losses(x, self.encoder(x, epsilon), self.decoder(z), z)
        of_discriminator = torch.autograd.grad(losses[0], self.discriminator_parameters, retain_graph=True)
        of_generator = torch.autograd.grad(losses[1], self.generator_parameters)
        return losses[0].detach(), of_discriminator, of_generator


class Compiled(Best):
    """The variant `torch_compiled`."""

    def start(self) -> dict[str, Any]:
        """Compile both players' gradients as one program, then go on as the others do."""
        torch._dynamo.config.trace_autograd_ops = True
        self.gradients = torch.compile(super().gradients, fullgraph=True)
        return super().start()


VARIANTS = {"torch_textbook": Textbook, "torch_best": Best, "torch_compiled": Compiled}


def make(task: Mapping[str, Any]) -> Textbook:
    """Make the trainer of a worker's task."""
    return VARIANTS[task["variant"]](task["config"], task["batch_size"])


def _x_size(config: Config) -> list[int]:
    """Return the size of one x as torch has it, [C, H, W] or [D]."""
    *sides, channels = config["dataset"]["shape"]
    return [channels, *sides]


def _per_layer(value: Any, count: int) -> list[Any]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * count if len(values) == 1 else values


def _linear(layer: Any, size: list[int], *, bias: bool, transpose: bool) -> tuple[list[nn.Module], list[int]]:
    """Make the linear map of one layer of a table, with what brings its input of `size` into shape."""
    if isinstance(layer, int):
        flatten = [nn.Flatten()] if len(size) == 3 else []
        return [*flatten, nn.Linear(math.prod(size), layer, bias=bias)], [layer]
    kernel, stride, maps, padding = (*layer, 0)[:4]
    unflatten = [nn.Unflatten(1, (size[0], 1, 1))] if len(size) == 1 else []
    channels, side = size[0], size[1] if len(size) == 3 else 1
    if transpose:
        side = stride * (side - 1) + kernel - 2 * padding
        make = nn.ConvTranspose2d
    else:
        side = (side + 2 * padding - kernel) // stride + 1
        make = nn.Conv2d
    return [*unflatten, make(channels, maps, kernel, stride, padding, bias=bias)], [maps, side, side]


def _activation(section: Config) -> tuple[nn.Module, int]:
    """Return a network's activation and by how much it divides the channels."""
    if section["activation"] == "maxout":
        return Maxout(section["pieces"]), section["pieces"]
    if section["activation"] == "relu":
        return nn.ReLU(), 1
    return nn.LeakyReLU(section["slope"]), 1


def _initialise(network: nn.Module, std: float) -> None:
    """Draw weights from N(0, std^2), or He's distribution where std is 0; biases are 0."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            if std:
                nn.init.normal_(module.weight, std=std)
            else:
                nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
