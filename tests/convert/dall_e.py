"""Files as DALL-E's, written without torch: a pickled tree of modules, and what it computes."""

import collections
import contextlib
import io
import pickle
import sys
import types
import zipfile

import numpy as np

MODULES = {
    "dall_e": (),
    "torch.nn": (),
    "torch.nn.modules": (),
    "dall_e.encoder": ("Encoder", "EncoderBlock"),
    "dall_e.decoder": ("Decoder", "DecoderBlock"),
    "dall_e.utils": ("Conv2d",),
    "torch": ("FloatStorage", "device"),
    "torch._utils": ("_rebuild_tensor_v2", "_rebuild_parameter"),
    "torch.nn.modules.activation": ("ReLU",),
    "torch.nn.modules.container": ("Sequential",),
    "torch.nn.modules.linear": ("Identity",),
    "torch.nn.modules.pooling": ("MaxPool2d",),
    "torch.nn.modules.upsampling": ("Upsample",),
}


def state_dict(rng, *, part, channels=3, vocab=24, hidden=8, groups=3, blocks=2, init=12):
    """Random parameters under the published names, in their layout [out, in, k, k]."""
    arrays = {}

    def conv(name, n_in, n_out, side):
        scale = 1 / np.sqrt(n_in * side**2)
        kernel = rng.normal(0, scale, (n_out, n_in, side, side))
        arrays[f"blocks.{name}.w"] = kernel.astype(np.float32)
        arrays[f"blocks.{name}.b"] = rng.normal(0, 0.1, n_out).astype(np.float32)

    encoder = part == "encoder"
    width = hidden if encoder else init
    conv("input", channels if encoder else vocab, width, 7 if encoder else 1)
    sides = (3, 3, 3, 1) if encoder else (1, 3, 3, 3)
    for group in range(1, groups + 1):
        out = hidden * 2 ** (group - 1 if encoder else groups - group)
        for block in range(1, blocks + 1):
            name = f"group_{group}.block_{block}"
            if width != out:
                conv(f"{name}.id_path", width, out, 1)
            widths = (width, out // 4, out // 4, out // 4, out)
            for i, side in enumerate(sides):
                conv(f"{name}.res_path.conv_{i + 1}", widths[i], widths[i + 1], side)
            width = out
    conv("output.conv", width, vocab if encoder else 2 * channels, 1)
    return arrays


def convolve(x, kernel, bias):
    """Plain convolution of x [C, H, W] with kernel [O, C, k, k], zeros around."""
    side, (_, height, width) = kernel.shape[-1], x.shape
    around = side // 2
    padded = np.pad(x, ((0, 0), (around, around), (around, around)))
    out = np.zeros((len(kernel), height, width))
    for i in range(height):
        for j in range(width):
            window = padded[:, i : i + side, j : j + side]
            out[:, i, j] = (kernel * window).sum(axis=(1, 2, 3)) + bias
    return out


def forward(arrays, x, part):
    """What the published modules compute of x [C, H, W], in float64 and step by step."""

    def conv(name, x):
        return convolve(x, arrays[f"blocks.{name}.w"], arrays[f"blocks.{name}.b"])

    blocks = sorted({tuple(n.split(".")[1:3]) for n in arrays if ".block_" in n})
    x = conv("input", x.astype(np.float64))
    for number, (group, block) in enumerate(blocks):
        if block == "block_1" and number:
            if part == "encoder":
                c, h, w = x.shape
                x = x.reshape(c, h // 2, 2, w // 2, 2).max(axis=(2, 4))
            else:
                x = x.repeat(2, axis=1).repeat(2, axis=2)
        name = f"{group}.{block}"
        y = x
        for i in range(1, 5):
            y = conv(f"{name}.res_path.conv_{i}", np.maximum(y, 0))
        if f"blocks.{name}.id_path.w" in arrays:
            x = conv(f"{name}.id_path", x)
        x = x + y / len(blocks) ** 2
    return conv("output.conv", np.maximum(x, 0))


@contextlib.contextmanager
def classes():
    """Stand-ins for the modules of torch and dall_e, which a pickle names but does not contain."""
    made = {}
    for module, names in MODULES.items():
        made[module] = types.ModuleType(module)
        for name in names:
            setattr(made[module], name, type(name, (), {"__module__": module}))
    before = {name: sys.modules.get(name) for name in made}
    sys.modules.update(made)
    try:
        yield lambda module, name: getattr(made[module], name)
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class _Writer(pickle.Pickler):
    """Writes numbers beside the pickle, as torch.save does."""

    def __init__(self, file, find):
        super().__init__(file, protocol=2)
        self.find, self.storages = find, []

    def persistent_id(self, obj):
        if not isinstance(obj, np.ndarray):
            return None
        self.storages.append(obj.tobytes())
        storage = self.find("torch", "FloatStorage")
        return ("storage", storage, str(len(self.storages) - 1), "cpu", obj.size)


def write(path, arrays, part):
    """Pickles a module that holds `arrays`, as `torch.save(encoder, path)` does."""
    with classes() as find:

        def module(kind, parts=(), parameters=(), **attributes):
            made = object.__new__(find(*kind))
            made.__dict__ |= attributes | {
                "training": True,
                "_parameters": collections.OrderedDict(parameters),
                "_buffers": collections.OrderedDict(),
                "_non_persistent_buffers_set": set(),
                "_modules": collections.OrderedDict(parts),
            }
            return made

        class Parameter:
            def __init__(self, x):
                self.x = x

            def __reduce__(self):
                return find("torch._utils", "_rebuild_parameter"), (Tensor(self.x), False, {})

        class Tensor:
            def __init__(self, x):
                self.x = x

            def __reduce__(self):
                strides = tuple(s // self.x.itemsize for s in self.x.strides)
                arguments = (self.x, 0, self.x.shape, strides, False, collections.OrderedDict())
                return find("torch._utils", "_rebuild_tensor_v2"), arguments

        class Device:
            def __reduce__(self):
                return find("torch", "device"), ("cpu",)

        def build(prefix):
            """The module whose parameters begin with `prefix`."""
            if f"{prefix}w" in arrays:
                pair = {key: Parameter(arrays[prefix + key]) for key in ("w", "b")}
                return module(("dall_e.utils", "Conv2d"), (), pair.items(), device=Device())
            inside = [name.removeprefix(prefix) for name in arrays if name.startswith(prefix)]
            names = dict.fromkeys(name.split(".")[0] for name in inside)
            parts = [("relu", module(("torch.nn.modules.activation", "ReLU"), inplace=False))]
            parts += [(name, build(f"{prefix}{name}.")) for name in names]
            title = part.capitalize()
            if not prefix:
                return module((f"dall_e.{part}", title), parts, vocab_size=24, device=Device())
            if "block_" in prefix.split(".")[-2]:
                return module((f"dall_e.{part}", f"{title}Block"), parts, post_gain=0.1)
            return module(("torch.nn.modules.container", "Sequential"), parts)

        file = io.BytesIO()
        writer = _Writer(file, find)
        writer.dump(build(""))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", file.getvalue())
        for i, numbers in enumerate(writer.storages):
            archive.writestr(f"archive/data/{i}", numbers)
    return str(path)
