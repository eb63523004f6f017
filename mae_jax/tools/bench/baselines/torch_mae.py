r"""A PyTorch train step of the masked autoencoder, written from the paper as a baseline for speed.

    python -m mae_jax.tools.bench.baselines.torch_mae '{"batch_size": 8, ...}'

Embeds, shuffles and decodes in the paper's order, with what a tuned PyTorch run would use: fused
`scaled_dot_product_attention`, autocast to bfloat16, fused AdamW and optionally `torch.compile`.
It runs in a separate process, so that the two programs do not compete for memory or threads; see
`torch_process.serve` for the protocol.
"""

import json
import resource
import sys
import time
from typing import Any

import torch  # pyright: ignore[reportMissingImports] - not a requirement; used only here

from mae_jax.tools.bench.baselines.torch_process import serve


def build_mae(sizes: dict[str, Any]) -> Any:
    """The model as a torch module: uint8 images [B, 3, H, W] -> loss."""
    nn, functional = torch.nn, torch.nn.functional
    (height, width), (ph, pw) = sizes["image_size"], sizes["patch_size"]
    grid = height // ph, width // pw
    length, channels = grid[0] * grid[1], sizes["channels"]
    keep = int(length * (1 - sizes["ratio"]))

    class Block(nn.Module):
        def __init__(self, dim: int, heads: int):
            super().__init__()
            hidden = int(dim * sizes["mlp_ratio"])
            self.heads = heads
            self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
            self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
            self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

        def forward(self, x: Any) -> Any:
            b, n, d = x.shape
            qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, d // self.heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            y = functional.scaled_dot_product_attention(q, k, v)
            x = x + self.proj(y.transpose(1, 2).reshape(b, n, d))
            return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))

    class MaskedAutoencoder(nn.Module):
        def __init__(self):
            super().__init__()
            dim, narrow = sizes["embed_dim"], sizes["decoder_embed_dim"]

            def token(n: int, d: int) -> Any:
                return nn.Parameter(0.02 * torch.randn(1, n, d))

            self.patch_embed = nn.Conv2d(channels, dim, (ph, pw), (ph, pw))
            self.cls_token, self.mask_token = token(1, dim), token(1, narrow)
            # Constants, whose values do not affect the speed.
            self.register_buffer("pos_embed", 0.02 * torch.randn(1, length + 1, dim))
            self.register_buffer("decoder_pos_embed", 0.02 * torch.randn(1, length + 1, narrow))
            self.register_buffer("mean", torch.full((1, channels, 1, 1), 0.45))
            self.register_buffer("std", torch.full((1, channels, 1, 1), 0.225))
            self.blocks = nn.ModuleList(
                Block(dim, sizes["num_heads"]) for _ in range(sizes["depth"])
            )
            self.norm, self.decoder_embed = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, narrow)
            self.decoder_blocks = nn.ModuleList(
                Block(narrow, sizes["decoder_num_heads"]) for _ in range(sizes["decoder_depth"])
            )
            self.decoder_norm = nn.LayerNorm(narrow, eps=1e-6)
            self.decoder_pred = nn.Linear(narrow, ph * pw * channels)

        def forward(self, images: Any) -> Any:
            images = (images.float() / 255 - self.mean) / self.std
            x = self.patch_embed(images).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
            b = x.shape[0]
            shuffle = torch.rand(b, length, device=x.device).argsort(dim=1)
            restore = shuffle.argsort(dim=1)

            def pick(x: Any, ids: Any) -> Any:
                return torch.gather(x, 1, ids[:, :, None].expand(-1, -1, x.shape[2]))

            x = pick(x, shuffle[:, :keep])
            cls = (self.cls_token + self.pos_embed[:, :1]).expand(b, -1, -1)
            x = torch.cat([cls, x], dim=1)
            for block in self.blocks:
                x = block(x)
            x = self.decoder_embed(self.norm(x))
            hidden = self.mask_token.expand(b, length - keep, -1).to(x.dtype)
            x = torch.cat([x[:, :1], pick(torch.cat([x[:, 1:], hidden], 1), restore)], dim=1)
            x = x + self.decoder_pos_embed
            for block in self.decoder_blocks:
                x = block(x)
            pred = self.decoder_pred(self.decoder_norm(x))[:, 1:].float()
            target = images.reshape(b, channels, grid[0], ph, grid[1], pw)
            target = target.permute(0, 2, 4, 3, 5, 1).reshape(b, length, -1)
            if sizes["normalize"]:
                variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
                target = (target - mean) / (variance + 1e-6).sqrt()
            mask = (restore >= keep).float()
            return (((pred - target) ** 2).mean(-1) * mask).sum() / mask.sum()

    return MaskedAutoencoder()


class TorchStep:
    """One optimizer step on a batch that is already on the device."""

    version = torch.__version__

    def __init__(self, sizes: dict[str, Any]):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model = build_mae(sizes).to(self.device)
        shape = (sizes["batch_size"], sizes["channels"], *sizes["image_size"])
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, device=self.device)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True
        )
        self.autocast = {
            "device_type": self.device,
            "dtype": torch.bfloat16,
            "enabled": sizes["dtype"] == "bfloat16",
        }
        torch.backends.cuda.matmul.allow_tf32 = True
        self.loss = torch.compile(model) if sizes["compile"] else model

    def __call__(self) -> float:
        """Seconds of one step."""
        start = time.perf_counter()
        with torch.autocast(**self.autocast):
            loss = self.loss(self.images)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def peak_memory_mb(self) -> int:
        """Of the GPU allocator; on CPU, of the whole process."""
        if self.device == "cuda":
            return round(torch.cuda.max_memory_allocated() / 2**20)
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


if __name__ == "__main__":
    serve(lambda: TorchStep(json.loads(sys.argv[1])))
