"""A trained model in a notebook: features of images, and what it makes of hidden patches.

    PYTHONPATH=. python docs/features.py RUN 'photos/*.jpg' out.png

RUN is a run, one of its steps, or weights of any kind (docs/weights.md).
"""

import sys

from mae_jax import data, pictures, pretrained


def main(run: str, pattern: str, out: str) -> None:
    """Prints the shapes of what comes out, and which images are most alike; draws a picture."""
    model = pretrained.load(run)
    source = data.files_source(pattern)
    files = [source.describe(i) for i in range(min(16, len(source)))]
    images = model.load_images(files)  # uint8 [N, H, W, C], or any array of that shape

    features = model.features(images)  # float32 [N, D]: mean of the patch tokens
    tokens = model.features(images, pool="patches")  # [N, L, D]
    earlier = model.features(images, pool="cls", layer=0)  # class token behind the first block
    print("features", features.shape, "tokens", tokens.shape, "class token", earlier.shape)

    unit = features / ((features**2).sum(axis=1, keepdims=True) ** 0.5)
    alike = unit @ unit.T
    for row, file in enumerate(files):
        alike[row, row] = -1
        print(f"{file} is most like {files[alike[row].argmax()]} ({alike[row].max():.3f})")

    # original, masked, predicted, pasted
    views = model.reconstruct(images, mask_ratio=0.75, seed=0)
    pictures.save(out, pictures.reconstruction_grid(views, model.target.caption))


if __name__ == "__main__":
    main(*sys.argv[1:])
